"""ONNX nodes -> program, parameters bound to the values of the original initializers."""

from opadapt.expand.expansion import Expanded, expand
from opadapt.expand.table import HANDLERS

__all__ = ["HANDLERS", "Expanded", "expand"]
