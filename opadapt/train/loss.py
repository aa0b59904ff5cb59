"""What fine-tuning minimises: distance to the teacher's outputs and features, and to the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from opadapt.train.signature import float_outputs, output_of

OutputForm = Literal["scores", "probabilities", "values"]
_SOFTMAX = frozenset({"Softmax", "LogSoftmax"})
_TINY = 1e-12


@dataclass(frozen=True)
class Head:
    """One output as training sees it: the tensor to take, and whether it holds class scores, normalised or not.

    Where an output is a softmax over the last axis, ``tensor`` is the softmax's input: its gradient does not
    vanish where a probability rounds to 0.
    """

    tensor: str
    form: OutputForm
    softmax: str = ""  # the operator that makes the output of the tensor: Softmax, LogSoftmax or none

    def scores(self, values: Tensor) -> Tensor:
        """Class scores: logarithms of probabilities are scores as good as any."""
        return values.clamp_min(_TINY).log() if self.form == "probabilities" else values


def heads_of(proto: onnx.ModelProto, classes: bool) -> list[Head]:
    """The outputs of a model that hold floats. ``classes``: whether its first output is known to hold class scores."""
    producer = {name: node for node in proto.graph.node for name in node.output}
    first = proto.graph.output[0].name
    heads = []
    for output in float_outputs(proto):
        node = producer.get(output)
        while node is not None and node.op_type == "Identity":
            node = producer.get(node.input[0])
        rank = 1 + len(output_of(proto, output).shape)
        if node is not None and node.op_type in _SOFTMAX and _axis(node, proto) in (-1, rank - 1):
            heads.append(Head(node.input[0], "scores", softmax=node.op_type))
        else:
            heads.append(Head(output, "scores" if classes and output == first else "values"))
    return heads


def alike(heads: Sequence[Head], originals: Sequence[Head]) -> list[Head]:
    """The student's heads in the original's sense: where the original ends in a softmax and the student makes its
    output in another way (its last region was replaced), that output holds probabilities all the same."""
    forms: dict[str, OutputForm] = {"Softmax": "probabilities", "LogSoftmax": "scores"}
    return [
        replace(head, form=forms[original.softmax]) if original.softmax and not head.softmax else head
        for head, original in zip(heads, originals, strict=True)
    ]


def _axis(node: onnx.NodeProto, proto: onnx.ModelProto) -> int:
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 13)
    return next((a.i for a in node.attribute if a.name == "axis"), -1 if opset >= 13 else 1)


def soft_target_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of class scores over the last axis, mean over the rest (arXiv 1503.02531)."""
    classes = student.shape[-1]
    p = F.log_softmax(teacher.reshape(-1, classes) / temperature, dim=1)
    q = F.log_softmax(student.reshape(-1, classes) / temperature, dim=1)
    return F.kl_div(q, p, reduction="batchmean", log_target=True) * temperature**2


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error over the variance of the teacher's batch: 1 where the student gives the mean."""
    return F.mse_loss(student, teacher) / teacher.var(unbiased=False).clamp_min(_TINY)


@dataclass(frozen=True)
class Loss:
    """The weighted sum. The first float output meets the labels; feature tensors follow the outputs."""

    heads: Sequence[Head]
    originals: Sequence[Head]
    temperature: float
    teacher_weight: float
    label_weight: float
    feature_weight: float

    def __call__(self, student: Sequence[Tensor], teacher: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        """``student`` and ``teacher``: the heads' tensors, then the features, all [batch, ...] float32."""
        count = len(self.heads)
        total = torch.zeros((), device=student[0].device)
        if self.teacher_weight:
            for head, original, s, t in zip(self.heads, self.originals, student, teacher, strict=False):
                if head.form != "values":
                    distance = soft_target_loss(head.scores(s), original.scores(t), self.temperature)
                    total = total + self.teacher_weight * distance
                else:
                    total = total + self.teacher_weight * relative_error(s, t)
        if self.label_weight and labels is not None:
            if self.heads[0].form != "values":
                scores = self.heads[0].scores(student[0])
                total = total + self.label_weight * F.cross_entropy(scores, labels)
            else:
                total = total + self.label_weight * relative_error(student[0].reshape(labels.shape), labels)
        for s, t in zip(student[count:], teacher[count:], strict=True):
            total = total + self.feature_weight * relative_error(s, t)
        return total
