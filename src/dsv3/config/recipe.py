"""A recipe: a whole ablation as data, one file of the group `recipe`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dsv3.config.section import field

Word = str
"""An override as the command line has it: `balance=aux_free`."""

Metric = Literal[
    "loss",
    "bpb",
    "max_violation_global",
    "max_violation_sequence",
    "mtp_acceptance",
    "specialization",
    "relative_loss_error",
]
Derived = Literal["parameters.total", "parameters.active", "flops_per_token", "tokens", "steps"]


class RecipePart(BaseModel):
    """A frozen part of a recipe; unknown keys are refused. What most recipes leave out may be."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Rule(RecipePart):
    """How a difference becomes a verdict."""

    better: Literal["lower", "higher"] = field("Which values of the metric are better.")
    confidence: float = Field(
        0.95, gt=0.5, lt=1, description="Of all intervals of the sweep together."
    )
    power: float = Field(
        0.8, gt=0, lt=1, description="Chance with which the smallest detectable difference is seen."
    )
    margin: float = Field(
        0.0, ge=0, description="A difference that is surely no larger than this counts for nothing."
    )
    bound: float | None = Field(
        None, gt=0, description="The metric of an arm has to stay below it, whatever is better."
    )


class ModelPart(RecipePart):
    """What a recipe does at one scale, because the report did it there."""

    setup: tuple[Word, ...] = Field((), description="Overrides of every arm, beside the recipe's.")
    arms: dict[str, tuple[Word, ...]] = Field(
        {}, description="Arms that are spelled in another way at this scale."
    )
    seeds: tuple[int, ...] | None = Field(
        None, min_length=1, description="Seeds at this scale; null: the recipe's."
    )


class Recipe(RecipePart):
    """An ablation: its question, what varies, and what decides it."""

    question: str = field("What is asked, in a sentence.", min_length=1)
    axis: tuple[str, ...] = field("Groups and keys in which arms may differ.", min_length=1)
    baseline: str = field("The arm that the others are compared with.")
    arms: dict[str, tuple[Word, ...]] = field(
        "Arms by name: each the overrides that mark it.", min_length=2
    )
    seeds: tuple[int, ...] = field("Each arm is trained with each of them.", min_length=1)
    setup: tuple[Word, ...] = Field((), description="Overrides of every arm.")
    models: dict[str, ModelPart] = Field({}, description="By the model's name: what differs there.")
    metric: Metric = field("Figure that decides.")
    rule: Rule = field("How it decides.")
    derived: tuple[Derived, ...] = Field(
        (), description="Quantities that follow from the axis and may differ."
    )
    reference: str | None = Field(
        None, description="The published result it stands beside: a name in `dsv3.report.paper`."
    )
