"""Builders by operator, one file per family. Adding an operator: a row in its family's table."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from opadapt.torchgraph.context import Builder
from opadapt.torchgraph.ops import (
    activation,
    arithmetic,
    constants,
    convolution,
    index,
    linear,
    normalization,
    padding,
    pooling,
    reduction,
    resize,
    shape,
)

_FAMILIES = (
    activation,
    arithmetic,
    constants,
    convolution,
    index,
    linear,
    normalization,
    padding,
    pooling,
    reduction,
    resize,
    shape,
)

BUILDERS: Mapping[str, Builder] = MappingProxyType(
    {op_type: builder for family in _FAMILIES for op_type, builder in family.BUILDERS.items()}
)
