"""ONNX -> a trainable torch.fx.GraphModule, and the trained weights back into the same initializers."""

from opadapt.torchgraph.build import build
from opadapt.torchgraph.ops import BUILDERS
from opadapt.torchgraph.weights import parameter_names, statistics_names, write_back

SUPPORTED = frozenset(BUILDERS)

__all__ = ["SUPPORTED", "build", "parameter_names", "statistics_names", "write_back"]
