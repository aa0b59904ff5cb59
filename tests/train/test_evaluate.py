from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from tiny_models import classifier, image_dataset, noise_images, regressor

from opadapt.errors import DataError, ModelError
from opadapt.train.capture import capture, with_outputs
from opadapt.train.evaluate import predict, run_batched

IMAGES = noise_images(23, 0)[:, None].astype(np.float32) / 255


def reference(proto, feeds):
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


@pytest.mark.parametrize("batch", [1, 4, 23, 64])
def test_batches_do_not_change_the_outputs(batch):
    proto = classifier(0)
    made = run_batched(proto, {"image": IMAGES}, threads=1, batch=batch)
    np.testing.assert_allclose(made["out"], reference(proto, {"image": IMAGES})[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fixed", [1, 5])
def test_models_of_fixed_batch_are_fed_at_it(fixed):
    made = run_batched(classifier(0, batch=fixed), {"image": IMAGES}, threads=1, batch=64)
    wanted = reference(classifier(0), {"image": IMAGES})[0]
    np.testing.assert_allclose(made["out"], wanted, rtol=1e-5, atol=1e-6)


def test_predict_preprocesses():
    data = image_dataset(50, None)
    made = predict(classifier(0), data.validation, data.preprocess, batch=4, threads=1)
    images = (data.validation.inputs["image"][:, None] / 255 - 0.5) / 0.3
    wanted = reference(classifier(0), {"image": images.astype(np.float32)})[0]
    np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-5)


def test_samples_the_model_cannot_take_are_refused():
    with pytest.raises(DataError, match="cannot run"):
        run_batched(classifier(0), {"image": IMAGES[..., :4]}, threads=1)
    with pytest.raises(ModelError, match="no output 'other'"):
        run_batched(classifier(0), {"image": IMAGES}, outputs=["other"])


def test_captured_activations_are_those_of_the_model(tmp_path):
    proto = classifier(0, softmax=True)
    batches = [{"image": IMAGES[i : i + 8]} for i in range(0, 23, 8)]
    wanted = reference(with_outputs(proto, ["r", "z"]), {"image": IMAGES})
    held = capture(proto, ["image", "r", "z"], batches, threads=1)
    mapped = capture(proto, ["image", "r", "z"], batches, threads=1, folder=tmp_path)
    for made in (held, mapped):
        np.testing.assert_array_equal(made["image"], IMAGES)
        np.testing.assert_allclose(made["r"], wanted[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(made["z"], wanted[1], rtol=1e-5, atol=1e-6)
    assert isinstance(mapped["r"], np.memmap)
    np.testing.assert_array_equal(np.load(tmp_path / "1.npy"), mapped["r"])


def test_capture_of_inputs_alone_runs_nothing():
    feeds = {"a": np.ones((3, 4), np.float32), "b": np.zeros((3, 2), np.float32)}
    made = capture(regressor(0), ["b"], [feeds, feeds])
    np.testing.assert_array_equal(made["b"], np.zeros((6, 2)))


def test_capture_refuses_what_does_not_exist(tmp_path):
    with pytest.raises(ModelError, match="no node makes the tensor 'q'"):
        capture(classifier(0), ["q"], [{"image": IMAGES}])
    for folder in (None, tmp_path):
        with pytest.raises(DataError, match="nothing to capture"):
            capture(classifier(0), ["r"], [], folder=folder)
