"""The figures that a recipe can decide by: what they are called and how they are read off a run."""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from dsv3.config.recipe import Metric
from dsv3.report.study import ExpertLoad, Study, StudyRun
from dsv3.sweep.statistics import Values

EMA_COEFFICIENT = 0.9
"""Of the loss curves that are compared: figure 10 of the report smooths its own so."""
LAST_STEPS = 50
"""Steps at the end of training over which figures of a batch are averaged."""

FROM_RESULT = ("loss", "bpb", "max_violation_global", "max_violation_sequence")


@dataclass(frozen=True)
class MetricInfo:
    """A figure of a run: `read` takes the run and the baseline's run of the same seed.

    `unit` is empty for a ratio or a count; `digits` are those behind the point in a table; `better`
    is None where neither direction is. `read` returns None where the run does not have the figure.
    """

    name: str
    label: str
    unit: str
    digits: int
    better: str | None
    explanation: str
    read: Callable[[StudyRun, StudyRun | None], float | None]


def values_of(info: MetricInfo, study: Study, arm: str) -> Values:
    """The figure of every finished run of an arm by seed; None where there is none."""
    baseline = {run.seed: run for run in study.of_arm(study.record.baseline)}
    return {
        run.seed: info.read(run, baseline.get(run.seed)) if run.done else None
        for run in study.of_arm(arm)
    }


def relative_loss_error(run: StudyRun, baseline: StudyRun | None) -> float | None:
    """max over the run of |L(run) - L(baseline)| / L(baseline), L being the smoothed training loss.

    L_t = 0.9 L_(t-1) + 0.1 loss_t, from L_1 = loss_1. Two runs of one seed, over the steps that
    both made; None unless those were at the same tokens and both ended at the same step.
    """
    if baseline is None or not (run.done and baseline.done):
        return None
    if "loss" not in run.curves or "loss" not in baseline.curves:
        return None
    ours, theirs = run.curves["loss"], baseline.curves["loss"]
    _, at, of = np.intersect1d(ours.steps, theirs.steps, return_indices=True)
    if len(at) == 0 or ours.steps[-1] != theirs.steps[-1]:
        return None
    if not np.array_equal(ours.tokens[at], theirs.tokens[of]):
        return None
    smooth, reference = smoothed(ours.values[at]), smoothed(theirs.values[of])
    return float(np.max(np.abs(smooth - reference) / reference))


def smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Exponential moving average with coefficient 0.9, from the first value."""
    kept = EMA_COEFFICIENT
    averages = itertools.accumulate(values.tolist(), lambda a, b: kept * a + (1 - kept) * b)
    return np.fromiter(averages, dtype=np.float64, count=len(values))


def specialization(load: ExpertLoad) -> float:
    """How much the experts' load depends on the domain: bits, mean over layers.

    Jensen-Shannon divergence of the domains' distributions of load over experts, each domain
    weighing the same: H(mean over domains of p_d) - mean over domains of H(p_d). 0 if all domains
    use the experts alike, log2(domains) if no two share one. It is information about the domain
    that the choice of an expert carries.
    """
    p_DLE = load.relative_DLE / load.relative_DLE.sum(-1, keepdims=True)
    within_DL, overall_L = _entropy_bits(p_DLE), _entropy_bits(p_DLE.mean(0))
    return float(np.mean(overall_L - within_DL.mean(0)))


def _entropy_bits(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy over the last dimension; 0 log 0 is 0."""
    logs = np.log2(p, out=np.zeros_like(p), where=p > 0)
    entropy: NDArray[np.float64] = -(p * logs).sum(-1)
    return entropy


def _of_result(name: str) -> Callable[[StudyRun, StudyRun | None], float | None]:
    def read(run: StudyRun, _: StudyRun | None) -> float | None:
        value = None if run.result is None else run.result.get(name)
        if isinstance(value, list):  # a number for each MTP module
            value = value[0] if value else None
        return _number(value)

    return read


def _specialization(run: StudyRun, _: StudyRun | None) -> float | None:
    return None if run.expert_load is None else specialization(run.expert_load)


def _at_the_end(name: str) -> Callable[[StudyRun, StudyRun | None], float | None]:
    def read(run: StudyRun, _: StudyRun | None) -> float | None:
        curve = run.curves.get(name)
        return None if curve is None else float(np.mean(curve.values[-LAST_STEPS:]))

    return read


def _tokens_per_second(run: StudyRun, _: StudyRun | None) -> float | None:
    curve = run.curves.get("tokens_per_second")
    return None if curve is None else float(np.median(curve.values))


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


METRICS: Mapping[str, MetricInfo] = {
    info.name: info
    for info in (
        MetricInfo(
            "loss",
            "validation loss",
            "nats per token",
            4,
            "lower",
            "Cross entropy of the next token on held-out text; MTP is dropped.",
            _of_result("loss"),
        ),
        MetricInfo(
            "bpb",
            "bits per byte",
            "bits per byte",
            4,
            "lower",
            "The same loss per byte of text: comparable between tokenizers.",
            _of_result("bpb"),
        ),
        MetricInfo(
            "max_violation_global",
            "MaxVio global",
            "",
            3,
            "lower",
            "Largest load over mean load, minus 1, over the evaluation set; mean over layers.",
            _of_result("max_violation_global"),
        ),
        MetricInfo(
            "max_violation_sequence",
            "MaxVio sequence",
            "",
            3,
            None,
            "The same within each held-out sequence.",
            _of_result("max_violation_sequence"),
        ),
        MetricInfo(
            "mtp_acceptance",
            "MTP acceptance",
            "",
            3,
            "higher",
            "Share of the first MTP module's best tokens that are the main model's.",
            _of_result("mtp_acceptance"),
        ),
        MetricInfo(
            "specialization",
            "specialization",
            "bits",
            4,
            None,
            "Jensen-Shannon divergence of the experts' load between domains, mean over layers.",
            _specialization,
        ),
        MetricInfo(
            "relative_loss_error",
            "relative loss error",
            "",
            5,
            "lower",
            "Largest relative distance of the smoothed training loss from the baseline's.",
            relative_loss_error,
        ),
        MetricInfo(
            "max_violation_batch",
            "MaxVio batch",
            "",
            3,
            None,
            f"MaxVio of a training step, mean over layers and the last {LAST_STEPS} steps.",
            _at_the_end("max_violation"),
        ),
        MetricInfo(
            "tokens_per_second",
            "speed",
            "tokens/s",
            0,
            "higher",
            "Median over the steps, all devices together; of runs side by side it says little.",
            _tokens_per_second,
        ),
    )
}
"""By name: every metric of a recipe, and what is shown beside them."""

assert set(get_args(Metric)) <= METRICS.keys()
