"""The end of a run: export, re-measure the exported file against the original, test once, report."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx

from opadapt.measure.profile import Profile
from opadapt.model.graph import Model
from opadapt.model.regions import unsupported
from opadapt.model.save import export, write_atomic
from opadapt.report.data import (
    AccuracyFacts,
    DeviceFacts,
    LatencyFacts,
    ModelFacts,
    OperatorCost,
    PointFacts,
    Refusal,
    Report,
    Unexpanded,
    Verdict,
    write_json,
)
from opadapt.report.html import write_html
from opadapt.steps.accuracy import accuracy, check_test
from opadapt.steps.baseline import measure
from opadapt.steps.boards import compare_boards
from opadapt.steps.context import Context
from opadapt.steps.exact import NOTHING
from opadapt.steps.final import Final, compare_files, warn_if_hot
from opadapt.steps.folding import folded
from opadapt.steps.front import ADAPTED, front
from opadapt.steps.history import History

NO_DATA = "data: without it only exact replacements are tried"
PACKAGES = ("opadapt", "onnx", "onnxruntime", "torch", "deap", "numpy", "scipy")


def conclude(context: Context, baseline: Profile, model: Model, history: History) -> Report:
    """Write adapted.onnx, front/ where the run made several models, report.json and report.html. An adapted model that
    is not measurably faster is not exported: the original is, and the verdict says so."""
    experiment = context.experiment
    path = context.folder / ADAPTED
    final, measured = _exported(context, model, path)
    while history.changed and not measured.latency.is_gain:
        if (other := history.fall_back(model)) is not None:
            context.warn("the fastest model is not faster beyond the noise: the next one takes its place")
            model = other
            final, measured = _exported(context, model, path)
            continue
        context.warn("the adapted model is not faster beyond the noise: the original is exported unchanged")
        history.withdraw("no gain above the noise floor" if context.dataset is not None else NOTHING)
    if not (changed := history.changed):
        final = context.original
        _export_original(context, path)
        measured = compare_files(
            context, path, processes=1
        )  # it is the original: there is nothing to tell apart
    profile = measure(context, final, "adapted")
    scores: AccuracyFacts | None = None
    points: tuple[PointFacts, ...] = ()
    if (dataset := context.dataset) is not None:
        scores = accuracy(context, dataset, final)
        if changed:
            check_test(context, scores, scores.test, ADAPTED)
        points = front(context, dataset, model, measured.latency, scores, history)
    context.tell_losses()
    warn_if_hot(context, measured.state)
    _check_boards(context, baseline, profile)
    report = Report(
        name=experiment.name or context.folder.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=experiment.seed,
        verdict=_verdict(context, measured.latency, history, changed),
        original=_facts(experiment.model, context.original, baseline),
        adapted=_facts(path, final, profile),
        device=DeviceFacts(
            name=experiment.device,
            threads=context.device.threads,
            state=measured.state,
            conditions=measured.conditions,
        ),
        boards=compare_boards(context),
        latency=measured.latency,
        energy=measured.energy,
        accuracy=scores,
        points=points,
        replacements=tuple(history.replacements),
        operators=_operators(baseline, profile),
        front=history.front(),
        training=tuple(history.training),
        attempts=tuple(history.attempts),
        refusals=tuple(
            Refusal(stage=stage, reason=reason, count=count)
            for (stage, reason), count in history.refusals.most_common()
        ),
        unexpanded=tuple(
            Unexpanded(node=node, op_type=context.original.nodes[node].op_type, reason=reason)
            for node, reason in unsupported(context.original).items()
        ),
        seconds={stage: seconds for stage, (_, _, seconds) in context.journal.counts().items()},
        versions={name: version(name) for name in PACKAGES},
        warnings=tuple(dict.fromkeys(context.warnings)),
    )
    write_json(report, context.folder / "report.json")
    write_html(report, context.folder / "report.html")
    return report


def _exported(context: Context, model: Model, path: Path) -> tuple[Model, Final]:
    """The model as it is exported, and what was measured of the file."""
    final = folded(context, model, "adapted model")
    context.progress.stage("export the adapted model")
    export(final, path, context.experiment.opset)
    return final, compare_files(context, path)


def _export_original(context: Context, path: Path) -> None:
    """The original as it was given, unless another opset is asked for."""
    if context.experiment.opset is None:
        write_atomic(path, (context.folder / "original.onnx").read_bytes())
    else:
        export(context.original, path, context.experiment.opset)


def _check_boards(context: Context, before: Profile, after: Profile) -> None:
    """The latencies per operator of both models are comparable if they come from one board; the speed-up always is."""
    first, last = (profile.conditions.get("board") for profile in (before, after))
    if first != last:
        context.warn(
            f"the original was profiled on {first}, the adapted model on {last}: their latencies per operator include "
            "the difference between the boards; the speed-up does not"
        )


def _verdict(context: Context, latency: LatencyFacts, history: History, changed: bool) -> Verdict:
    target = context.experiment.target
    reached = None
    if target is not None:
        wanted = target.as_speedup(latency.original_s.value)
        reached = (changed or wanted <= 1) and latency.speedup.value >= wanted * 0.999
    bound = None
    if reached is False:
        bound = history.bound(latency.speedup.value) if context.dataset is not None else NO_DATA
    return Verdict(
        adapted=changed,
        target=None if target is None else str(target),
        target_reached=reached,
        bound=bound,
        reason=history.reason,
    )


def _facts(path: Path, model: Model, profile: Profile) -> ModelFacts:
    proto = onnx.load(path, load_external_data=False)
    opset = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    graph = model.proto.graph
    return ModelFacts(
        path=str(path),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        opset=opset,
        nodes=len(graph.node),
        parameters=sum(v.size for v in model.initializers.values() if np.issubdtype(v.dtype, np.floating)),
        macs=sum(node.macs for node in profile.nodes),
        inputs={i.name: _dims(i) for i in graph.input},
        outputs={o.name: _dims(o) for o in graph.output},
    )


def _dims(info: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(d.dim_param or d.dim_value for d in info.type.tensor_type.shape.dim)


def _operators(before: Profile, after: Profile) -> tuple[OperatorCost, ...]:
    """The original's nodes, 0 afterwards where they are gone, then the new ones, 0 before."""
    old, new = ({node.name: node for node in profile.nodes} for profile in (before, after))
    return tuple(
        OperatorCost(
            name=name,
            op_type=(old.get(name) or new[name]).op_type,
            latency_before_s=old[name].latency_s if name in old else 0.0,
            latency_after_s=new[name].latency_s if name in new else 0.0,
        )
        for name in dict.fromkeys([*old, *new])
    )
