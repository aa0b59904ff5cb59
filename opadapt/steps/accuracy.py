"""What a finished model is worth on the validation and test data, for the report."""

from __future__ import annotations

from opadapt.model.graph import Model
from opadapt.report.data import AccuracyFacts, Scores
from opadapt.steps.attempt import difference
from opadapt.steps.context import Context
from opadapt.steps.tuning import compare, metric_of, several_groups
from opadapt.train.data import Dataset


def accuracy(context: Context, dataset: Dataset, final: Model) -> AccuracyFacts:
    """The metric of the original and of ``final`` on both splits, through the journal."""
    metric = metric_of(context)
    context.progress.stage("accuracy on the validation and test data")
    for name, split in (("validation", dataset.validation), ("test", dataset.test)):
        if split.groups is not None and not several_groups(split):
            context.warn(
                f"the {name} data is of one group alone: its interval takes the samples for independent of each other, "
                "and is too narrow"
            )
    verdicts = {
        name: compare(context, dataset, final, split, name)
        for name, split in (("validation", dataset.validation), ("test", dataset.test))
    }
    scores = {
        name: Scores(
            samples=len(getattr(dataset, name)),
            original=v.original,
            adapted=v.candidate,
            difference=difference(v),
        )
        for name, v in verdicts.items()
    }
    return AccuracyFacts(
        metric=metric.name,
        unit="%" if metric.points == 100 else "",
        higher_is_better=metric.higher_is_better,
        tolerance=verdicts["validation"].allowed,
        reference=context.experiment.tolerance.reference_points,
        validation=scores["validation"],
        test=scores["test"],
    )


def check_test(context: Context, found: AccuracyFacts, test: Scores | None, path: str) -> None:
    """Acceptance was decided on validation; where the test data says otherwise, the report says so first.

    ``found``: of any model of the run; ``test``: of the one in the file ``path``.
    """
    sign = -1 if found.higher_is_better else 1
    if test is not None and sign * test.difference.value > found.tolerance:
        context.warn(
            f"the test data contradicts the acceptance of {path}: {found.metric} changed by "
            f"{test.difference.value:+.2f} there, the tolerance is {found.tolerance:.2f}"
        )
