"""program -> ONNX: ``lower`` into a graph, ``to_model`` alone; ``raise_params`` brings weights back."""

from opadapt.lower.emit import Layout
from opadapt.lower.lowering import Lowered, lower, raise_model, raise_params, to_model

__all__ = ["Layout", "Lowered", "lower", "raise_model", "raise_params", "to_model"]
