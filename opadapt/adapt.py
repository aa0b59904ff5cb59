"""The story of a run: profile, rank, evolve, select, fine-tune, accept, export, report.

Every step that costs anything goes through the journal, so a killed run goes on by running again: this function is
a deterministic function of the experiment, its seed and the results in the journal.
"""

from __future__ import annotations

from pathlib import Path

from opadapt.experiment import Experiment
from opadapt.report.data import Report
from opadapt.report.progress import Progress
from opadapt.steps.activations import record
from opadapt.steps.assemble import assemble
from opadapt.steps.augmentation import augmented
from opadapt.steps.baseline import measure
from opadapt.steps.conclude import conclude
from opadapt.steps.context import open_context
from opadapt.steps.exact import exact, without_data
from opadapt.steps.explore import rank_groups
from opadapt.steps.harm import Harm
from opadapt.steps.history import History
from opadapt.steps.searching import search_groups
from opadapt.steps.speedup import aim


def adapt(experiment: Experiment, folder: Path, progress: Progress) -> Report:
    """Make the experiment's model faster on its device, within tolerance, and report what came of it.

    Writes adapted.onnx, original.onnx, report.json and the journal into ``folder``. Interrupted at any moment, the
    same call goes on where it was. Raises the errors of opadapt/errors.py.
    """
    with open_context(experiment, folder, progress) as context:
        history = History()
        baseline = measure(context, context.original, "original")
        dataset = context.dataset
        if dataset is None:
            # without data nothing can be trained or judged: only what is exact up to rounding is allowed
            return conclude(context, baseline, without_data(context, baseline, history), history)
        dataset = augmented(context, dataset)
        # what computes the same and is faster costs no accuracy
        model = exact(context, context.original, baseline, history)
        profile = measure(context, model, "exact") if history.exact else baseline
        for number in range(experiment.search.rounds):
            wanted = aim(context, baseline, model)
            if wanted is not None and wanted <= 1:
                break
            if number and context.stop("round", number):
                context.warn("the budget leaves no time for another round")
                break
            # the worst groups of equal regions, by measured latency and parameters
            ranked = rank_groups(context, model, profile)
            tag = f"round{number}-{model.digest[:8]}"
            activations = record(context, dataset, model, [r.group for r in ranked], tag)
            harm = Harm(context, dataset, model)
            # programs for each of them, cheapest check first
            explored, offered = search_groups(context, model, profile, ranked, activations, harm)
            # one program per region jointly, the whole model fine-tuned, accepted only within tolerance
            assembled = assemble(context, dataset, model, profile.wall.value, offered, wanted, number, harm)
            history.add(explored, assembled)
            if assembled.accepted is None:
                break
            model = assembled.accepted.model
            profile = measure(context, model, f"round{number}")
        return conclude(context, baseline, model, history)
