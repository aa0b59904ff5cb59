"""Static int8 quantisation by ONNX Runtime, as a peer to compare with and as a last step after opadapt."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process


class Batches(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, samples: NDArray[np.float32], batch: int = 32) -> None:
        self._batches: Iterator[dict[str, NDArray[np.float32]]] = iter(
            [{name: samples[i : i + batch]} for i in range(0, len(samples), batch)]
        )

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._batches, None)


def int8(proto: onnx.ModelProto, samples: NDArray[np.float32]) -> onnx.ModelProto:
    """The model with 8-bit weights and activations (QDQ, weights per channel, ranges from ``samples`` by entropy).

    ``samples`` [count, ...]: training data as the model reads it. Activations are unsigned and weights of 7 bits, as
    processors without VNNI need it (their 16-bit sums would saturate).
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{name}.onnx" for name in ("float", "ready", "int8")]
        onnx.save(proto, files[0])
        quant_pre_process(files[0], files[1], skip_symbolic_shape=True)
        quantize_static(
            files[1],
            files[2],
            Batches(proto.graph.input[0].name, samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Entropy,
        )
        return onnx.load(files[2])
