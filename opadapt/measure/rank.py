"""Which nodes and regions are worth replacing: a weighted mean of their shares of time and of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from opadapt.measure.profile import NodeCost, Profile


class RankConfig(BaseModel):
    """How operators are ranked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(
        default=1.0, ge=0, le=1, description="weight of the share of latency; the rest weighs parameters"
    )


@dataclass(frozen=True)
class Ranked:
    """One row: a node, or a region as the sum of its nodes. Shares are of the whole model, 0 to 1."""

    name: str
    latency_s: float
    parameters: int
    macs: int
    latency_share: float
    parameter_share: float
    score: float


def rank_nodes(profile: Profile, config: RankConfig) -> list[Ranked]:
    """Every node, the worst first; equals in topological order."""
    return rank_regions(profile, [(node.name, (node.name,)) for node in profile.nodes], config)


def rank_regions(
    profile: Profile, regions: Iterable[tuple[str, Sequence[str]]], config: RankConfig
) -> list[Ranked]:
    """Regions, given as (name, names of nodes), the worst first; equals in the order given.

    A region costs the sum of its nodes. Nodes that the profile does not know (folded away before it was
    taken) cost nothing.
    """
    known = {node.name: node for node in profile.nodes}
    total_parameters = sum(node.parameters for node in profile.nodes)
    rows = [
        _row(name, [known[n] for n in nodes if n in known], profile.wall.value, total_parameters, config)
        for name, nodes in regions
    ]
    return sorted(rows, key=lambda row: -row.score)


def _row(
    name: str, nodes: Sequence[NodeCost], wall_s: float, total_parameters: int, config: RankConfig
) -> Ranked:
    latency_s = sum(node.latency_s for node in nodes)
    parameters = sum(node.parameters for node in nodes)
    time_share = latency_s / wall_s
    parameter_share = parameters / total_parameters if total_parameters else 0.0
    score = config.weight * time_share + (1 - config.weight) * parameter_share
    macs = sum(node.macs for node in nodes)
    return Ranked(name, latency_s, parameters, macs, time_share, parameter_share, score)
