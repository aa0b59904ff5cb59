"""Folding in a run: what computes something else afterwards stays unfolded."""

from __future__ import annotations

from opadapt.errors import ModelError
from opadapt.model import validate
from opadapt.model.fold import fold
from opadapt.model.graph import Model
from opadapt.model.normalise import RTOL
from opadapt.steps.context import Context


def folded(context: Context, model: Model, what: str) -> Model:
    """The model folded, proved on random inputs to compute the same; as it is, with a warning that says ``what`` it
    is, where it does not."""
    try:
        result = fold(model)
        error = validate.compare_outputs(model.proto, result.proto)
    except ModelError as refused:
        found = refused.message
    else:
        if error <= RTOL:
            return result
        found = f"outputs differ by {error:.3g} of the largest, {RTOL:g} is allowed"
    context.warn(f"the {what} is not folded, because it would compute something else: {found}")
    return model
