"""What a study shows, by the rule of its recipe: figures of every arm, verdicts where they are due.

A verdict is withheld where the runs are not the pairs they are meant to be, where a run has yet to
end, and where numbers went wrong: leaving out the seeds that diverged would flatter what is left.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dsv3.config.recipe import Recipe, Rule
from dsv3.errors import NumericHealthError
from dsv3.report.collect import DAMAGED
from dsv3.report.metrics import METRICS, MetricInfo, values_of
from dsv3.report.pairing import pair_differences
from dsv3.report.study import Study, StudyRun
from dsv3.runs.directory import Status
from dsv3.sweep.statistics import (
    Comparison,
    Summary,
    Values,
    compare,
    confidence_of_each,
    detectable_difference,
    finite,
    pooled_sd,
    summarize,
)

DEFAULT_METRIC, DEFAULT_RULE = "loss", Rule(better="lower")
"""For a sweep that the command line spelled out."""


@dataclass(frozen=True)
class ArmFigures:
    """One figure of an arm: by seed (None where a run has none), and over the seeds."""

    arm: str
    values: Values
    summary: Summary


@dataclass(frozen=True)
class NoiseFloor:
    """What the seeds do: standard deviations pooled over arms, None without two seeds anywhere.

    `between_seeds` is that of runs of one arm; `paired` that of a difference between two runs of
    one seed; `detectable` the difference that the recipe's seeds show with the rule's power at that
    paired noise.
    """

    between_seeds: float | None
    paired: float | None
    detectable: float | None


@dataclass(frozen=True)
class MetricFindings:
    """A figure over all arms, the baseline first, and the others' comparisons with it.

    Where the figure does not decide, comparisons have no verdict, and intervals the confidence of
    the rule corrected for the number of arms, not of figures.
    """

    info: MetricInfo
    arms: tuple[ArmFigures, ...]
    comparisons: Mapping[str, Comparison]
    noise: NoiseFloor

    def of_arm(self, arm: str) -> ArmFigures:
        """The figures of one arm."""
        return next(figures for figures in self.arms if figures.arm == arm)


@dataclass(frozen=True)
class MissingCell:
    """A run of the sweep without a result, and why."""

    arm: str
    seed: int
    id: str
    status: str
    why: str


@dataclass(frozen=True)
class Judgement:
    """A study judged: `deciding` has the verdicts, `others` are for information.

    `confidence_of_each` is the rule's, corrected for `len(deciding.comparisons)` comparisons.
    `differences` lists by arm what keeps its runs from being pairs with the baseline's.
    """

    baseline: str
    rule: Rule
    confidence_of_each: float
    deciding: MetricFindings
    others: tuple[MetricFindings, ...]
    missing: tuple[MissingCell, ...]
    differences: Mapping[str, tuple[str, ...]]


def judge(study: Study, recipe: Recipe | None = None) -> Judgement:
    """Judge a study by `recipe`, that of its record unless another is given."""
    recipe = recipe if recipe is not None else study.record.recipe
    metric = DEFAULT_METRIC if recipe is None else recipe.metric
    rule = DEFAULT_RULE if recipe is None else recipe.rule
    arms = [arm for arm in study.record.arms if arm != study.record.baseline]
    differences = {arm: pair_differences(study, arm) for arm in arms}
    withheld = {arm: _withheld(study, arm, differences[arm]) for arm in arms}
    deciding = _findings(METRICS[metric], study, arms, rule)
    # A bound is for the figure it was written for.
    unbound = rule.model_copy(update={"bound": None})
    shown = [
        _with_verdicts(_findings(info, study, arms, unbound), {})
        for name, info in METRICS.items()
        if name != metric
    ]
    verdicts = {arm: withheld[arm] or found.verdict for arm, found in deciding.comparisons.items()}
    return Judgement(
        baseline=study.record.baseline,
        rule=rule,
        confidence_of_each=confidence_of_each(rule.confidence, len(arms)),
        deciding=_with_verdicts(deciding, verdicts),
        others=tuple(each for each in shown if any(arm.summary.n for arm in each.arms)),
        missing=tuple(_missing_cell(run) for run in study.runs if not run.done),
        differences=differences,
    )


def _findings(info: MetricInfo, study: Study, arms: list[str], rule: Rule) -> MetricFindings:
    baseline = study.record.baseline
    values = {arm: values_of(info, study, arm) for arm in (baseline, *arms)}
    comparisons = {
        arm: compare(values[arm], values[baseline], rule, comparisons=len(arms)) for arm in arms
    }
    known = {arm: list(finite(of).values()) for arm, of in values.items()}
    paired = pooled_sd([[*comparison.differences.values()] for comparison in comparisons.values()])
    seeds = len({run.seed for run in study.runs})
    detectable = None
    if paired is not None:
        each = confidence_of_each(rule.confidence, len(arms))
        detectable = detectable_difference(paired, seeds, confidence=each, power=rule.power)
    return MetricFindings(
        info=info,
        arms=tuple(ArmFigures(arm, of, summarize(known[arm])) for arm, of in values.items()),
        comparisons=comparisons,
        noise=NoiseFloor(pooled_sd([*known.values()]), paired, detectable),
    )


def _with_verdicts(findings: MetricFindings, verdicts: Mapping[str, str | None]) -> MetricFindings:
    comparisons = {
        arm: replace(comparison, verdict=verdicts.get(arm))
        for arm, comparison in findings.comparisons.items()
    }
    return replace(findings, comparisons=comparisons)


def _withheld(study: Study, arm: str, differences: tuple[str, ...]) -> str | None:
    """Why there is no verdict on an arm, or None."""
    runs = [run for name in (study.record.baseline, arm) for run in study.of_arm(name)]
    diverged = [run for run in runs if _diverged(run)]
    if diverged:
        return f"not decided: numbers went wrong in {_named(diverged)}"
    open_ = [run for run in runs if not run.done and run.status != Status.FAILED]
    if open_:
        return f"not decided: no result yet of {_named(open_)}"
    if differences:
        return f"not comparable: {'; '.join(differences)}"
    return None


def _diverged(run: StudyRun) -> bool:
    code = None if run.failure is None else run.failure.get("exit_code")
    return code == NumericHealthError.exit_code


def _named(runs: list[StudyRun]) -> str:
    seeds: dict[str, list[str]] = {}
    for run in runs:
        seeds.setdefault(run.arm, []).append(str(run.seed))
    return ", ".join(
        f"{arm} seed{'s' if len(of) > 1 else ''} {', '.join(of)}" for arm, of in seeds.items()
    )


def _missing_cell(run: StudyRun) -> MissingCell:
    why = ""
    if run.failure is not None:
        problems = run.failure.get("problems") or [{}]
        first = problems[0]
        why = str(first.get("rule", first) if isinstance(first, Mapping) else first)
    elif run.status == DAMAGED:
        why = "; ".join(run.problems)
    return MissingCell(run.arm, run.seed, run.id, run.status, why)
