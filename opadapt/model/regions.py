"""Regions: the parts of a model that can be replaced; groups: regions that are the same program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from opadapt.errors import OpadaptError, Refused
from opadapt.expand import Expanded, expand
from opadapt.ir.canonical import canonical, digest
from opadapt.ir.program import Program
from opadapt.model.blocks import LARGEST, LONGEST, Finder, Span
from opadapt.model.graph import Model

Kind = Literal["operator", "chain", "block", "stage"]
_MOST_INPUTS = 2
_MOST_NODES: Mapping[Kind, int] = {
    "operator": LARGEST,
    "chain": LARGEST,
    "block": LARGEST,
    "stage": LONGEST,
}


@dataclass(frozen=True)
class Region:
    """A connected part of the model with one tensor leaving it.

    ``nodes`` are node names in topological order, ``inputs`` the one or two activations it reads. An *operator*
    is one node, a *chain* a convolution or product with its activation, a *stage* three or more equal regions in a
    row, a *block* everything else.
    """

    name: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    output: str
    kind: Kind


@dataclass(frozen=True, eq=False)
class Member:
    """A region of a group; its expansion is said in the group's program and its own values."""

    region: Region
    expanded: Expanded


@dataclass(frozen=True, eq=False)
class Group:
    """Regions with the same program: searched once, weights kept apart. ``key`` is the program's digest."""

    key: str
    program: Program
    members: tuple[Member, ...]


def expand_region(model: Model, region: Region) -> Expanded:
    """The region's program. Raises Refused with the operator that has none."""
    return _expand(model, Span(region.nodes, region.inputs, region.output))


def _expand(model: Model, span: Span) -> Expanded:
    nodes = [model.nodes[name] for name in span.nodes]
    if len(span.inputs) > _MOST_INPUTS or not span.inputs:
        raise Refused("expand", f"{len(span.inputs)} activations enter (1 or {_MOST_INPUTS} are allowed)")
    tensors = [
        *span.inputs,
        *(t for n in nodes for t in n.output if t in model.consumers or t == span.output),
    ]
    untyped = next((t for t in tensors if t not in model.types), None)
    if untyped is not None:
        raise Refused("expand", f"tensor '{untyped}' is no float32 tensor of known shape")
    constants = {t: model.initializers[t] for n in nodes for t in n.input if t in model.initializers}
    try:
        return expand(nodes, span.inputs, span.output, model.types, constants)
    except Refused:
        raise
    except OpadaptError as error:  # a program that does not type-check
        raise Refused("expand", str(error)) from error


def regions(model: Model) -> list[Region]:
    """Every replaceable region, smallest kind first, each kind in topological order.

    Operators that ``expand`` accepts alone, chains, and single-entry/single-exit blocks of at most 24 nodes: what
    surrounds every join (residual blocks, squeeze-and-excitation, GELU), the branches of a join, and chains in
    a row; then whole stages, the rows of equal ones among these. Names are ``node`` or ``first..last``, unique.
    """
    finder = Finder(model)
    refused = unsupported(model)
    programs: dict[Span, Program] = {}
    found: dict[frozenset[str], Region] = {}
    names: set[str] = set()
    for kind, candidates in _candidates(model, finder, programs):
        most = _MOST_NODES[kind]
        spans = (finder.span(set(c)) for c in candidates if len(c) <= most and not refused.keys() & c)
        ordered = sorted((s for s in spans if s is not None), key=lambda s: _order(model, s))
        for span in ordered:
            key = frozenset(span.nodes)
            if key in found or len(span.inputs) > _MOST_INPUTS:
                continue
            try:
                programs[span] = _expand(model, span).program
            except Refused:
                continue
            name = span.nodes[0] if len(span.nodes) == 1 else f"{span.nodes[0]}..{span.nodes[-1]}"
            if name in names:
                name = f"{name} ({len(span.nodes)} nodes)"
            names.add(name)
            found[key] = Region(name, span.nodes, span.inputs, span.output, kind)
    return list(found.values())


def _order(model: Model, span: Span) -> tuple[int, int]:
    return model.position[span.nodes[0]], len(span.nodes)


def _candidates(
    model: Model, finder: Finder, programs: Mapping[Span, Program]
) -> Iterator[tuple[Kind, Iterator[tuple[str, ...]]]]:
    """Nodes by kind. ``programs`` fills up with the regions found of them, which stages are made of."""
    yield "operator", ((name,) for name in model.nodes)
    yield "chain", finder.chains()
    yield "block", (c for source in (finder.joins(), finder.sequences()) for c in source)
    yield "stage", finder.stages(programs)


def unsupported(model: Model) -> dict[str, str]:
    """Nodes that no program can stand for, and why; they pass through untouched."""
    finder = Finder(model)
    reasons: dict[str, str] = {}
    for name in model.nodes:
        span = finder.span({name})
        if span is None:
            reasons[name] = f"{model.nodes[name].op_type}: not exactly one result is used"
            continue
        try:
            _expand(model, span)
        except Refused as error:
            reasons[name] = f"{model.nodes[name].op_type}: {error.reason}"
    return reasons


def groups(model: Model, regions: Sequence[Region]) -> list[Group]:
    """Regions by canonical program, in order of first appearance. Members of a group share no node, so that all
    can be replaced at once: of overlapping ones (windows over a row of equal layers) the first is taken.

    Every member's expansion is rewritten to the group's program: the same parameter names, its own values.
    """
    found: dict[str, list[Member]] = {}
    taken: dict[str, set[str]] = {}
    for region in regions:
        expanded = expand_region(model, region)
        key = digest(expanded.program)
        if not taken.setdefault(key, set()).isdisjoint(region.nodes):
            continue
        taken[key].update(region.nodes)
        members = found.setdefault(key, [])
        members.append(
            Member(region, _aligned(expanded, members[0].expanded.program) if members else expanded)
        )
    return [Group(key, members[0].expanded.program, tuple(members)) for key, members in found.items()]


def _aligned(expanded: Expanded, program: Program) -> Expanded:
    """The expansion in terms of an equal program: canonical forms agree parameter by parameter."""
    own, common = (list(canonical(p).params) for p in (expanded.program, program))
    rename = dict(zip(own, common, strict=True))
    return replace(
        expanded,
        program=program,
        binding={rename[k]: v for k, v in expanded.binding.items() if k in rename},
        origin={rename[k]: v for k, v in expanded.origin.items() if k in rename},
    )
