"""Models of several outputs: floats are all taught, whole numbers are left alone."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper
from tiny_models import classifier, image_dataset

from opadapt.train.finetune import FinetuneConfig, finetune
from opadapt.train.loss import Head, heads_of
from opadapt.train.signature import float_outputs

CONFIG = FinetuneConfig(epochs=6, batch=32, learning_rate=0.05, threads=1)


def with_index_and_map(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The classifier with the number of its class as second output and its activations as third."""
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    changed.graph.node.append(helper.make_node("ArgMax", ["out"], ["index"], "argmax", axis=1, keepdims=0))
    for name, kind, shape in (("index", TensorProto.INT64, ["N"]), ("r", TensorProto.FLOAT, ["N", 4, 6, 6])):
        changed.graph.output.append(helper.make_tensor_value_info(name, kind, shape))
    onnx.checker.check_model(changed, full_check=True)
    return changed


def test_heads_are_the_outputs_of_floats():
    proto = with_index_and_map(classifier(0))
    assert float_outputs(proto) == ("out", "r")
    assert heads_of(proto, classes=True) == [Head("out", "scores"), Head("r", "values")]
    softmax = with_index_and_map(classifier(0, softmax=True))
    assert heads_of(softmax, classes=True) == [Head("z", "scores", "Softmax"), Head("r", "values")]


def test_an_output_that_only_looks_first_has_no_class_scores():
    """The labels' classes are those of the model's first output, not of its first output of floats."""
    proto = with_index_and_map(classifier(0))
    outputs = list(proto.graph.output)
    del proto.graph.output[:]
    proto.graph.output.extend([outputs[1], outputs[0]])
    assert heads_of(proto, classes=True) == [Head("out", "values")]


@pytest.mark.parametrize("norm", [False, True])
def test_a_model_with_an_index_output_is_fine_tuned(tmp_path, norm):
    teacher, student = (with_index_and_map(classifier(seed, norm=norm)) for seed in (0, 1))
    result = finetune(student, teacher, image_dataset(400, None), CONFIG, tmp_path)
    assert [o.name for o in result.proto.graph.output] == ["out", "index", "r"]
    assert result.history[-1].loss < 0.7 * result.history[1].loss
    assert result.metric < result.history[0].metric  # deviation: less is better
