"""Which fast forms are tried for a value, by the instruction that makes it, in order of preference."""

from __future__ import annotations

from types import MappingProxyType

from opadapt.lower import composite, convolution, pooling
from opadapt.lower.match import Recognisers

RECOGNISERS: Recognisers = MappingProxyType(
    {
        "contract": (convolution.contract_to_conv,),
        "reshape": (convolution.reshape_to_conv,),
        "add": (convolution.add_to_conv, composite.layer_normalization),
        "mul": (composite.gelu, composite.hard_swish, composite.scaled_layer_normalization),
        "div": (composite.softmax, pooling.uncounted_average_pool),
        "where": (composite.leaky_relu,),
        "clip": (composite.hard_sigmoid,),
        "max": (pooling.max_pool, pooling.global_pool("GlobalMaxPool")),
        "mean": (pooling.average_pool, pooling.global_pool("GlobalAveragePool")),
        "sum": (pooling.sum_pool,),
    }
)
