"""The original as teacher: its outputs for a training batch, computed as fast as the machine allows."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

from opadapt.torchgraph import build
from opadapt.train.capture import with_outputs
from opadapt.train.evaluate import open_session
from opadapt.train.signature import inputs_of
from opadapt.train.speed import Execution


class Teacher:
    """Values of some tensors of the original, float32, without gradients.

    On a CPU through ONNX Runtime, whose fused kernels take about half the time of torch's; on a GPU through torch.
    """

    def __init__(self, proto: onnx.ModelProto, tensors: Sequence[str]) -> None:
        self.names = list(inputs_of(proto))
        self.tensors = list(tensors)
        self.proto = with_outputs(proto, dict.fromkeys(tensors))
        self.execution: Execution | None = None
        self.sessions: dict[int, ort.InferenceSession] = {}  # by threads
        self.modules: dict[bool, nn.Module] = {}  # by layout: whether channels are last

    def apply(self, execution: Execution) -> None:
        """Get ready for a way of execution; what was made for another one is used again where it fits."""
        self.execution = execution
        if execution.device == "cpu":
            if execution.threads not in self.sessions:
                self.sessions[execution.threads] = open_session(self.proto, execution.threads)
        elif execution.channels_last not in self.modules:
            self.modules[execution.channels_last] = module = build(self.proto).eval()
            execution.apply(module)

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """``inputs`` as the model reads them [batch, ...]; the tensors in the order they were asked for."""
        assert self.execution is not None
        unique = list(dict.fromkeys(self.tensors))
        if self.execution.device == "cpu":
            feeds = {n: x.contiguous().numpy() for n, x in zip(self.names, inputs, strict=True)}
            session = self.sessions[self.execution.threads]
            found = [torch.from_numpy(a) for a in session.run(unique, feeds)]
        else:
            with torch.no_grad(), self.execution.autocast():
                module = self.modules[self.execution.channels_last]
                made = module(*(self.execution.layout(x) for x in inputs))
            found = [t.float() for t in (made if isinstance(made, tuple) else (made,))]
        by_name = dict(zip(unique, found, strict=True))
        return [by_name[name] for name in self.tensors]
