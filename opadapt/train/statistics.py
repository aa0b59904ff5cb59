"""Batch-normalisation statistics of a torch module, estimated anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import nn

from opadapt.torchgraph import statistics_names

T = TypeVar("T")


def estimate_statistics(module: nn.Module, batches: Iterable[T], run: Callable[[T], object]) -> bool:
    """Replace the running means and variances by averages over ``batches``; weights stay.

    ``run`` calls the module on one batch. The module is left in ``eval()``. Returns whether there were
    statistics to estimate (arXiv 1502.03167, section 3.1).
    """
    layers: list[Any] = [m for m in module.modules() if isinstance(getattr(m, "momentum", None), float)]
    if not statistics_names(module) or not layers:
        return False
    momenta = [layer.momentum for layer in layers]
    module.eval()
    for layer in layers:
        layer.train()  # the layers alone: dropout would disturb what they see
    try:
        with torch.no_grad():
            for number, batch in enumerate(batches):
                for layer in layers:
                    layer.momentum = 1.0 / (number + 1)  # the running value becomes the plain average
                run(batch)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        module.eval()
    return True
