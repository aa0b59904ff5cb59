"""What a model reads and returns, as the data and the training need to know it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import helper

from opadapt.errors import ModelError


@dataclass(frozen=True)
class Port:
    """One input or output: numpy dtype, batch, and the sizes after it (None where free)."""

    name: str
    dtype: str
    batch: int | None
    shape: tuple[int | None, ...]


def inputs_of(proto: onnx.ModelProto) -> dict[str, Port]:
    """The inputs that have to be fed, by name, in graph order. Raises ModelError for an unknown rank."""
    stored = {i.name for i in proto.graph.initializer}
    return {i.name: _port(i) for i in proto.graph.input if i.name not in stored}


def output_of(proto: onnx.ModelProto, name: str | None = None) -> Port:
    """One output: the named one, or the first. Raises ModelError for a name that is no output."""
    outputs = {o.name: o for o in proto.graph.output}
    wanted = next(iter(outputs)) if name is None else name
    if wanted not in outputs:
        raise ModelError(f"no output '{wanted}'", expected=f"one of: {', '.join(outputs)}", found=wanted)
    return _port(outputs[wanted])


def float_outputs(proto: onnx.ModelProto) -> tuple[str, ...]:
    """The outputs that hold floats, in graph order: what can be taught and compared. Others, such as the index that
    an ArgMax gives, have no gradient and no distance. Raises ModelError for an unknown rank."""
    return tuple(o.name for o in proto.graph.output if "float" in _port(o).dtype)


def fixed_ports(proto: onnx.ModelProto) -> list[Port]:
    """Inputs and outputs whose leading size is a number. Raises ModelError for an unknown rank."""
    ports = [*inputs_of(proto).values(), *(_port(o) for o in proto.graph.output)]
    return [port for port in ports if port.batch is not None]


def free_batch(proto: onnx.ModelProto) -> bool:
    """Whether every input and output leaves the batch open."""
    return not fixed_ports(proto)


def _port(info: onnx.ValueInfoProto) -> Port:
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        raise ModelError(f"'{info.name}' has no known rank", do="export the model with its shapes")
    sizes = [d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim]
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return Port(info.name, dtype, sizes[0] if sizes else 1, tuple(sizes[1:]))
