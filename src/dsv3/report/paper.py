"""Published results that ours stand beside, as data, each with its source.

"Report" is the DeepSeek-V3 technical report (arXiv 2412.19437), "V2" arXiv 2405.04434, "ALF"
"Auxiliary-Loss-Free Load Balancing" (arXiv 2408.15664). Why ours do not compare with them:
`dsv3.report.comparable`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dsv3.config.root import RunConfig

TRAINED_ON = "the authors' own corpus, which is not public"


@dataclass(frozen=True)
class Column:
    """One arm as published; `matches` tells which of our runs is its counterpart."""

    label: str
    matches: Callable[[RunConfig], bool]


@dataclass(frozen=True)
class Row:
    """One measurement, with a value for each column; None where none was published.

    `metric` is ours (a name in `dsv3.report.metrics`) that stands beside it; None: we have none.
    """

    label: str
    values: tuple[float | None, ...]
    metric: str | None
    digits: int = 1
    set: str | None = None  # what it was measured on, where that is not held-out text of its own


@dataclass(frozen=True)
class Scale:
    """One size at which it was done; `model` is the option of ours that describes it."""

    name: str
    model: str
    parameters: float
    active: float | None
    tokens: float
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class HeatMap:
    """What figure 9 shows: relative expert load (load over even load), coloured from 0 to `top`."""

    layers: tuple[int, ...]
    of_layers: int
    domains: tuple[str, ...]
    top: float


@dataclass(frozen=True)
class Reference:
    """A published result: what it says in words, and its numbers by scale where it has any.

    `unstated` is what was not published and therefore chosen by us, even at the same scale.
    """

    name: str
    title: str
    source: str
    columns: tuple[Column, ...]
    scales: tuple[Scale, ...]
    claims: tuple[str, ...]
    unstated: str
    heat_map: HeatMap | None = None


def _strategy(*names: str) -> Callable[[RunConfig], bool]:
    return lambda config: config.balance.strategy in names


def _depth(depth: int) -> Callable[[RunConfig], bool]:
    return lambda config: config.mtp.num_nextn_predict_layers == depth


def _precision(prefix: str) -> Callable[[RunConfig], bool]:
    return lambda config: config.precision.recipe.startswith(prefix)


def _update(rule: str, speed: float) -> Callable[[RunConfig], bool]:
    return lambda config: (
        config.balance.has_expert_bias
        and config.balance.bias_update_rule == rule
        and config.balance.bias_update_speed == speed
    )


_BENCHMARKS = (
    ("Pile-test (BPB)", "bpb", 3),
    ("BBH (EM, 3-shot)", None, 1),
    ("MMLU (EM, 5-shot)", None, 1),
    ("DROP (F1, 1-shot)", None, 1),
    ("TriviaQA (EM, 5-shot)", None, 1),
    ("NaturalQuestions (EM, 5-shot)", None, 1),
    ("HumanEval (Pass@1, 0-shot)", None, 1),
    ("MBPP (Pass@1, 3-shot)", None, 1),
    ("GSM8K (EM, 8-shot)", None, 1),
    ("MATH (EM, 4-shot)", None, 1),
)


def _benchmarks(*columns: tuple[float, ...]) -> tuple[Row, ...]:
    """Rows in the order of tables 4 and 5, from one tuple for each column."""
    values = zip(*columns, strict=True)
    return tuple(
        Row(label, of, metric, digits, "Pile-test" if metric is not None else None)
        for (label, metric, digits), of in zip(_BENCHMARKS, values, strict=True)
    )


def _perplexities(*perplexities: float | None) -> tuple[Row, ...]:
    logs = tuple(round(math.log(value), 3) if value is not None else None for value in perplexities)
    return (
        Row("validation perplexity", perplexities, None, 2),
        Row("validation loss, the logarithm of it", logs, "loss", 3),
    )


_ONE_RUN = "seeds and spread (one run of each)"
_SMALL, _LARGE = ("small MoE", "moe_16b", 15.7e9, 2.4e9), ("large MoE", "moe_228b", 228.7e9, 20.9e9)

TABLE_4 = Reference(
    name="table4",
    title="Multi-token prediction (table 4)",
    source="report, section 4.5.1, table 4",
    columns=(Column("baseline", _depth(0)), Column("with MTP", _depth(1))),
    scales=(
        Scale(
            *_SMALL,
            tokens=1.33e12,
            rows=_benchmarks(
                (0.729, 39.0, 50.0, 39.2, 56.9, 22.7, 20.7, 35.8, 25.4, 10.7),
                (0.729, 41.4, 53.3, 41.3, 57.7, 22.3, 26.8, 36.8, 31.4, 12.6),
            ),
        ),
        Scale(
            *_LARGE,
            tokens=540e9,
            rows=_benchmarks(
                (0.658, 70.0, 67.5, 68.5, 67.0, 27.2, 44.5, 61.6, 72.3, 38.6),
                (0.657, 70.7, 66.6, 70.6, 67.3, 28.5, 53.7, 62.2, 74.0, 39.8),
            ),
        ),
    ),
    claims=(
        "MTP improves most of the benchmarks; inference costs the same, the module is dropped.",
        "Bits per byte on Pile-test are the same: 0.729 and 0.729, 0.658 and 0.657.",
    ),
    unstated=f"lambda, balancing, learning rate, batch size, schedule, {_ONE_RUN}",
)

TABLE_5 = Reference(
    name="table5",
    title="Auxiliary-loss-free balancing (table 5)",
    source="report, section 4.5.2, table 5",
    columns=(
        Column("aux-loss-based", _strategy("aux_loss", "aux_loss_v2")),
        Column("aux-loss-free", _strategy("aux_free")),
    ),
    scales=(
        Scale(
            *_SMALL,
            tokens=1.33e12,
            rows=_benchmarks(
                (0.727, 37.3, 51.0, 38.1, 58.3, 23.2, 22.0, 36.6, 27.1, 10.9),
                (0.724, 39.3, 51.8, 39.0, 58.5, 23.4, 22.6, 35.8, 29.6, 11.1),
            ),
        ),
        Scale(
            *_LARGE,
            tokens=578e9,
            rows=_benchmarks(
                (0.656, 66.7, 68.3, 67.1, 66.7, 27.1, 40.2, 59.2, 70.7, 37.2),
                (0.652, 67.9, 67.2, 67.1, 67.7, 28.1, 46.3, 61.2, 74.5, 39.6),
            ),
        ),
    ),
    claims=("The auxiliary-loss-free strategy is better on most of the benchmarks.",),
    unstated=f"gamma, learning rate, batch size, schedule, {_ONE_RUN}",
)

SECTION_4_5_3 = Reference(
    name="section453",
    title="Balance per sequence and per batch (section 4.5.3)",
    source="report, section 4.5.3, in the text",
    columns=(
        Column("sequence-wise loss", _strategy("aux_loss")),
        Column("aux-loss-free", _strategy("aux_free")),
        Column("batch-wise loss", _strategy("aux_batch")),
    ),
    scales=(
        Scale(
            "1B",
            "moe_1b",
            1e9,
            None,
            tokens=100e9,
            rows=(Row("validation loss", (2.258, 2.253, 2.253), "loss", 3),),
        ),
        Scale(
            "3B",
            "moe_3b",
            3e9,
            None,
            tokens=200e9,
            rows=(Row("validation loss", (2.085, 2.080, 2.080), "loss", 3),),
        ),
    ),
    claims=(
        "What matters is the scope of the balance: per batch it does not force balance in each"
        " domain, and experts can specialise.",
        "At a similar level of batch-wise balance, the batch-wise loss does as well as the"
        " auxiliary-loss-free strategy.",
    ),
    unstated=f"the models and their tokens (those given are of ALF's 1B and 3B), alpha, {_ONE_RUN}",
)

FIGURE_9 = Reference(
    name="figure9",
    title="Expert load by domain (figure 9)",
    source="report, section 4.5.3, figure 9; all layers in its appendix C",
    columns=TABLE_5.columns,
    scales=(Scale(*_SMALL, tokens=1.33e12, rows=()),),
    claims=(
        "The model with the auxiliary loss is pale, near even, in all three domains.",
        "The auxiliary-loss-free one has single experts at many times the even load, others in each"
        " domain: greater specialisation.",
    ),
    unstated="numbers (it is a figure), and the size of the text",
    heat_map=HeatMap((9, 18), 27, ("Wikipedia (en)", "Github", "DM Mathematics"), top=10.0),
)

_FP8_BOUND = Row("largest relative loss error, below", (None, 0.0025), "relative_loss_error", 4)

APPENDIX_B1 = Reference(
    name="appendixB1",
    title="FP8 against BF16 training (appendix B.1)",
    source="report, section 3.3 and appendix B.1, figure 10 (curves smoothed with coefficient 0.9)",
    columns=(Column("BF16", _precision("bf16")), Column("FP8", _precision("fp8"))),
    scales=(
        Scale("about 16B", "moe_16b", 16e9, None, tokens=1.33e12, rows=(_FP8_BOUND,)),
        Scale("about 230B", "moe_228b", 230e9, None, tokens=0.9e12, rows=(_FP8_BOUND,)),
    ),
    claims=("The relative loss error of FP8 training stays below 0.25 %.",),
    unstated=f"the formula of the error, learning rate, batch size, schedule, {_ONE_RUN}",
)

APPENDIX_B2 = Reference(
    name="appendixB2",
    title="Block-wise quantisation of activation gradients (appendix B.2)",
    source="report, appendix B.2",
    columns=(),
    scales=(Scale("about 16B", "moe_16b", 16e9, None, tokens=300e9, rows=()),),
    claims=(
        "With all tensors of Dgrad quantised in blocks of 128 x 128 the model diverges; activation"
        " gradients are highly imbalanced among tokens.",
    ),
    unstated="numbers, and when it diverged",
)

ALF_UPDATE_RATE = Reference(
    name="alf_update_rate",
    title="Update of the expert bias (ALF, table 3 and figure 4)",
    source="ALF (arXiv 2408.15664), tables 2 and 3, figure 4",
    columns=(
        Column("loss-controlled", _strategy("aux_loss")),
        Column("u sign(e), u = 0.001", _update("sign", 1e-3)),
        Column("u e, u = 0.01", _update("proportional", 1e-2)),
        Column("u e, u = 0.001", _update("proportional", 1e-3)),
        Column("u e, u = 0.0001", _update("proportional", 1e-4)),
        Column("u sign(e), u = 0.01", _update("sign", 1e-2)),
        Column("u sign(e), u = 0.0001", _update("sign", 1e-4)),
    ),
    scales=(
        Scale(
            "1B",
            "moe_1b",
            1e9,
            None,
            tokens=100e9,
            rows=(
                *_perplexities(9.56, 9.50, 9.53, 9.51, 9.51, None, None),
                Row(
                    "MaxVio global",
                    (0.72, 0.044, 0.028, 0.036, 0.040, None, None),
                    "max_violation_global",
                    3,
                ),
            ),
        ),
        Scale(
            "3B",
            "moe_3b",
            3e9,
            None,
            tokens=200e9,
            rows=(
                Row("validation perplexity", (7.97, 7.92, *[None] * 5), None, 2),
                Row("MaxVio global", (0.52, 0.04, *[None] * 5), "max_violation_global", 2),
            ),
        ),
    ),
    claims=(
        "u = 0.0001 balances slowly at first, 0.01 fluctuates late, 0.001 is best (figure 4; there"
        " are numbers for 0.001 alone).",
        "u was tuned at 1B; the sign of the error does better than the error itself.",
    ),
    unstated=f"the unit of e (ours: of the mean load), optimizer, corpus, {_ONE_RUN}",
)

REFERENCES: Mapping[str, Reference] = {
    reference.name: reference
    for reference in (
        TABLE_4,
        TABLE_5,
        SECTION_4_5_3,
        FIGURE_9,
        APPENDIX_B1,
        APPENDIX_B2,
        ALF_UPDATE_RATE,
    )
}
"""By the name that a recipe's `reference` has."""
