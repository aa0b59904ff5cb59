"""Settings of the search."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator


class SearchConfig(BaseModel):
    """How much to search, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["evolution", "random"] = Field(
        "evolution", description="random: chains of mutations of the original, without selection (a baseline)"
    )
    budget_share: float = Field(
        0.5, gt=0, le=1, description="share of the experiment's budget after which nothing more is searched"
    )
    space: str = Field("default", description="search space: a shipped name, or a path to a space file")
    top_groups: int = Field(4, ge=1, description="how many groups of equal regions to search, worst first")
    stages: int = Field(
        3,
        ge=0,
        description="how many whole stages (three or more equal blocks in a row) to search beside the groups, worst "
        "first; 0: none, and none where the space has no depth choices",
    )
    max_overlap: float = Field(
        0.5,
        ge=0,
        le=1,
        description="skip a group if more than this share of its latency is in groups already chosen",
    )
    max_region_nodes: int = Field(
        10,
        ge=1,
        description="largest region to search as one program, whole stages aside; what is larger is searched in parts",
    )
    population: int = Field(12, ge=4, description="programs kept from one generation to the next, per group")
    generations: int = Field(3, ge=0, description="generations after the seeds, per group")
    crossover: float = Field(0.3, ge=0, le=1, description="probability that a child has two parents")
    rewrite: float = Field(
        0.5, ge=0, le=1, description="probability that a mutation is a rule, not a point mutation"
    )
    adaptive: bool = Field(
        True,
        description="try those rules, mutations and crossovers more often that have improved the front of a group's "
        "search; false: each as often as crossover and rewrite say",
    )
    max_instructions: int = Field(
        96, ge=8, description="longest program allowed, or half of this more than the original has"
    )
    max_macs_ratio: float = Field(
        1.5,
        gt=0,
        description="refuse a program with more multiply-accumulates than this, times the original's",
    )
    max_bytes_ratio: float = Field(
        4.0, gt=0, description="refuse a program that moves more bytes than this, times the original's"
    )
    max_parameters_ratio: float = Field(
        4.0, gt=0, description="refuse a program with more parameters than this, times the original's"
    )
    min_gain: float = Field(
        0.15,
        ge=0,
        lt=1,
        description="share of a region's latency that a program must save to be trained at all",
    )
    learned_bounds: bool = Field(
        True,
        description="refuse a program unmeasured where what was measured for its group in earlier generations shows "
        "that it cannot be fast enough",
    )
    rungs: int = Field(
        2,
        ge=1,
        description="rungs of distillation in a generation: with 2 every program gets a quarter of distil.steps and "
        "the better half the whole; with 3 a sixteenth, a quarter, the whole; with 1 every program the whole. What "
        "stays behind keeps the error it has then, which is pessimistic",
    )
    finalists: int = Field(
        6, ge=1, description="programs per group distilled for every member and offered to selection"
    )
    finalist_steps: int = Field(240, ge=1, description="distillation steps of a finalist, for every member")
    activation_samples: int = Field(
        1024, ge=16, description="training samples whose activations are recorded"
    )
    probe_samples: int = Field(
        512, ge=16, description="inputs on which damage inside the whole model is measured"
    )
    probe_members: int = Field(
        1, ge=1, description="members of a group on which a program is tried out during evolution"
    )
    rounds: int = Field(1, ge=1, description="times the whole search is repeated on the adapted model")
    recoverable: float = Field(
        10.0,
        gt=0,
        description="without a target: how many times the tolerance a model may lose before it is fine-tuned; the "
        "fastest such selection is tried first",
    )
    points: int = Field(
        3,
        ge=1,
        description="without a target: how many models of different speed a round makes, each fine-tuned once with an "
        "equal share of the time; the fastest accepted one is adapted.onnx, the others that are worth it lie in "
        "front/. 1: one model, with max_attempts",
    )
    pairs: int = Field(
        0,
        ge=0,
        description="pairs of selected replacements whose damage is measured together, those that lie closest to one "
        "another first; what a pair harms beyond the sum of both then counts in the selection. 0: damages are taken "
        "to add up",
    )
    selections: int = Field(
        1,
        ge=1,
        description="selections that are compared by a short fine-tuning before one of them gets the rest of the time; "
        "1: the one of least damage, without comparison",
    )
    rates: tuple[PositiveFloat, ...] = Field(
        (),
        description="largest learning rates that are compared in the same way, each with every selection; none: "
        "finetune.learning_rate, without comparison",
    )
    heat_share: float = Field(
        0.08,
        gt=0,
        lt=1,
        description="of the time for fine-tuning, for each selection and rate that is compared",
    )
    max_attempts: int = Field(3, ge=1, description="selections fine-tuned per round before giving up")
    workers: int = Field(0, ge=0, description="worker processes for distillation (0: one per core)")

    @model_validator(mode="after")
    def _time_is_left(self) -> Self:
        heats = self.selections * max(len(self.rates), 1)
        if heats > 1 and heats * self.heat_share >= 1:
            raise ValueError(
                f"selections x rates x heat_share is {heats * self.heat_share:g}: less than 1 leaves time for the best "
                "of them"
            )
        return self
