"""What every device must do. A new kind of device joins the ``device`` fixture and passes this file unchanged."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from opadapt.errors import DeviceError
from opadapt.measure.device import Device
from opadapt.measure.profile import BETWEEN, profile
from opadapt.measure.timing import Timing, floor_of, median_latency, ratio
from opadapt.model.graph import Model
from opadapt.model.save import at_batch

MakeCnn = Callable[..., Model]


@pytest.fixture(scope="module")
def small(cnn: MakeCnn) -> bytes:
    return at_batch(cnn(8, 8), 1).SerializeToString()


@pytest.fixture(scope="module")
def large(cnn: MakeCnn) -> bytes:
    return at_batch(cnn(64, 32), 1).SerializeToString()


def test_says_what_it_is(device: Device) -> None:
    hello = device.hello()
    assert {"cpu", "machine", "cores", "onnxruntime"} <= set(hello)
    assert device.facts.name in ("null", "local", "redmi-note-7s", "generic-aarch64")


def test_conditions_name_what_samples_are_filed_under_and_fit_into_json(device: Device) -> None:
    found = device.conditions()
    assert {"cpu", "machine", "onnxruntime", "provider", "threads"} <= set(found)
    assert found["threads"] == device.threads
    assert json.loads(json.dumps(found)) == found


def test_times_every_model_in_every_block(device: Device, small: bytes, large: bytes, quick: Timing) -> None:
    times = device.time([small, large, small], quick)
    assert times.latency_s.shape == (3, quick.blocks)
    assert times.latency_s.dtype == np.float64
    assert np.all(np.isfinite(times.latency_s)) and np.all(times.latency_s > 0)
    assert times.conditions["threads"] == quick.threads
    json.dumps(dict(times.conditions))


@pytest.mark.parametrize("models", [1, 2, 3])
def test_interleaves_the_models(device: Device, small: bytes, quick: Timing, models: int) -> None:
    order = device.time([small] * models, quick).order
    assert Counter(order) == dict.fromkeys(range(models), quick.blocks)
    rounds = [order[i : i + models] for i in range(0, len(order), models)]
    assert all(sorted(r) == list(range(models)) for r in rounds)
    assert all(b == a[::-1] for a, b in zip(rounds[::2], rounds[1::2], strict=True))


def test_several_processes_measure_the_same_models(device: Device, small: bytes, quick: Timing) -> None:
    told: list[int] = []
    timing = quick.model_copy(update={"processes": 6})
    times = device.time([small, small], timing, on_process=told.append)
    assert told == [1, 2, 3, 4, 5, 6]
    assert times.latency_s.shape == (2, 6)
    assert Counter(times.order) == dict.fromkeys(range(2), 6 * quick.blocks)
    assert floor_of(times) >= 0


def test_a_larger_model_takes_longer(device: Device, small: bytes, large: bytes, quick: Timing) -> None:
    times = device.time([large, small], quick)
    assert ratio(times, 0, 1).low > 2  # 200 times the MACs
    assert median_latency(times, 0).value > median_latency(times, 1).value


def test_runs_as_onnxruntime_does(device: Device, small: bytes) -> None:
    x = np.random.default_rng(1).standard_normal((1, 8, 8, 8)).astype(np.float32)
    expected = ort.InferenceSession(small, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    first, second = device.run(small, {"x": x}), device.run(small, {"x": x})
    assert list(first) == ["y"]
    np.testing.assert_allclose(first["y"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(first["y"], second["y"])


def test_raw_profile_has_kernels_the_optimised_model_and_the_truth(
    device: Device, small: bytes, quick: Timing
) -> None:
    raw = device.profile(small, quick)
    onnx.checker.check_model(onnx.load_model_from_string(small))
    optimized = onnx.load_model_from_string(raw.optimized)
    assert len(raw.kernels) == len(optimized.graph.node)
    assert raw.times.latency_s.shape == (1, quick.blocks)
    assert all(k.latency_s > 0 for k in raw.kernels)


def test_profile_attributes_the_wall_time(device: Device, cnn: MakeCnn, quick: Timing) -> None:
    model = cnn(32, 16)
    found = profile(device, model, quick)
    assert [n.name for n in found.nodes] == list(model.nodes)
    assert {name for name, _ in found.unattributed} <= {BETWEEN}  # every kernel belongs to a node
    attributed_s = sum(n.latency_s for n in found.nodes)
    assert attributed_s == pytest.approx(found.covered * found.wall.value)
    assert attributed_s + sum(s for _, s in found.unattributed) == pytest.approx(found.wall.value)
    by_name = {n.name: n for n in found.nodes}
    assert by_name["second"].macs == 32 * 32 * 9 * 16 * 16
    assert by_name["second"].parameters == 32 * 32 * 9
    assert max(found.nodes, key=lambda n: n.latency_s).name == "second"  # most of the MACs


@pytest.mark.parametrize("action", ["time", "profile", "run"])
def test_garbage_is_refused_and_the_device_goes_on(
    device: Device, small: bytes, quick: Timing, action: str
) -> None:
    broken = b"this is no model"
    with pytest.raises(DeviceError, match=device.facts.name):
        if action == "run":
            device.run(broken, {})
        elif action == "time":
            device.time([small, broken], quick)
        else:
            device.profile(broken, quick)
    assert device.time([small], quick).latency_s.shape == (1, quick.blocks)


def test_a_free_shape_is_refused(device: Device, cnn: MakeCnn, quick: Timing) -> None:
    with pytest.raises(DeviceError) as error:
        device.time([cnn().proto.SerializeToString()], quick)
    assert "free shape" in str(error.value)


def test_wrong_feeds_are_refused(device: Device, small: bytes) -> None:
    with pytest.raises(DeviceError):
        device.run(small, {"x": np.zeros((1, 8, 9), np.float32)})


def test_nothing_to_time(device: Device, quick: Timing) -> None:
    with pytest.raises(ValueError, match="nothing"):
        device.time([], quick)
