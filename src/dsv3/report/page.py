"""What a report says, in its order: the question, the verdicts, then the evidence."""

from dsv3 import picture
from dsv3.picture import NO_BREAK
from dsv3.plan.quantities import plural
from dsv3.report import curves, figures, heatmaps, tables, wording
from dsv3.report.blocks import Block, Details, Figure, Items, Page, Section, Text
from dsv3.report.figures import Plot
from dsv3.report.metrics import EMA_COEFFICIENT
from dsv3.report.paper import REFERENCES, Reference
from dsv3.report.study import Study, StudyRun
from dsv3.report.timeline import timeline
from dsv3.report.verdicts import Judgement

PUBLISHED_BOUND = 0.0025
"""Below which FP8 training stays in the report (appendix B.1)."""
MOST_SENTENCES, MOST_HEAT_MAPS, MOST_OF_ALL_LAYERS = 8, 8, 12
"""Arms whose verdicts are sentences; that are shown unfolded; whose layers are all shown."""


def build(study: Study, judgement: Judgement) -> Page:
    """The whole report of a study and what was judged of it."""
    recipe = study.record.recipe
    reference = None if recipe is None else REFERENCES.get(recipe.reference or "")
    if recipe is not None:
        lead = recipe.question
    else:
        lead = f"How does the {judgement.deciding.info.label} depend on the arm?"
    sections = (
        Section("verdict", "Verdict", _verdict(study, judgement)),
        Section("numbers", "Numbers", _results(judgement)),
        Section("paper", "Beside the published result", _paper(study, judgement, reference)),
        Section("loss", "Training loss", _loss(study, judgement)),
        Section("error", "Relative loss error", _error(study, judgement)),
        Section("balance", "Balance", _balance(study)),
        Section("experts", "Load of the experts", _experts(study)),
        Section("cost", "Cost", _cost(study)),
        Section("missing", "Failed and missing runs", _missing(study, judgement)),
        Section("configuration", "What differs between the arms", _configuration(study)),
        Section("pairs", "Pairs", _pairs(judgement)),
        Section("provenance", "Where this comes from", _provenance(study, judgement)),
    )
    title = f"{study.record.name}, {study.record.model}"
    return Page(title, lead, tuple(section for section in sections if section.blocks))


def _verdict(study: Study, judgement: Judgement) -> tuple[Block, ...]:
    arms = list(judgement.deciding.comparisons)
    done = sum(run.done for run in study.runs)
    runs = f"{done} of {plural(len(study.runs), 'run')} done"
    arms_said = plural(len(study.record.arms), "arm")
    scope = f"{arms_said}, {runs}; the baseline is {judgement.baseline}."
    found: list[Block] = [Text(scope)]
    if not arms:
        found.append(Text("There is one arm, and nothing to compare it with."))
    elif len(arms) <= MOST_SENTENCES:
        found.append(Items(tuple(wording.verdict(judgement, arm) for arm in arms), named=True))
    else:
        found.append(tables.verdicts(judgement))
    if arms:
        found += [Text(wording.noise(judgement)), Text(wording.rule(judgement))]
    return tuple(found)


def _results(judgement: Judgement) -> tuple[Block, ...]:
    meanings = [
        f"{f.info.label}: {f.info.explanation}" for f in (judgement.deciding, *judgement.others)
    ]
    found: list[Block] = [tables.results(judgement)]
    differences = tables.all_differences(judgement)
    if differences.rows:
        note = "Intervals are corrected for the number of arms, not for that of figures."
        summary = "Differences in every figure, for information"
        found.append(Details(summary, (Text(note), differences)))
    found.append(Details("What the figures mean", (Items(tuple(meanings), named=True),)))
    return tuple(found)


def _paper(study: Study, judgement: Judgement, reference: Reference | None) -> tuple[Block, ...]:
    if reference is None:
        return ()
    table = tables.beside_the_paper(study, judgement, reference)
    found: list[Block] = [Text(f"{reference.title}; {reference.source}."), Items(reference.claims)]
    if table is not None and table.rows:
        found.append(table)
    return tuple(found)


def _loss(study: Study, judgement: Judgement) -> tuple[Block, ...]:
    baseline = study.record.baseline
    end = tables.finding(judgement, "loss")
    smoothing = f"Smoothed with coefficient {EMA_COEFFICIENT:g}"
    band = "the band is one standard deviation over seeds"
    loss = Plot(
        "loss",
        "Training loss",
        f"Training loss. {smoothing}; {band}; the first quarter may lie above the frame.",
        "nats per token",
        3,
    )
    difference = Plot(
        "loss-difference",
        f"Training loss, arm - {picture.plain(baseline)}",
        f"Training loss, arm - {baseline}, seed by seed. {smoothing}; {band} of the differences.",
        f"nats per token, arm - {picture.plain(baseline, 24)}",
        4,
        (0.0, ""),
    )
    drawn = _drawn(
        figures.curves(loss, curves.lines(study, "loss"), baseline),
        figures.curves(difference, curves.differences(study, "loss"), baseline),
    )
    if not drawn:
        return (Text("No run has made a step yet."),)
    paired = len(drawn) > 1 or end is None or not end.comparisons
    return drawn if paired else (*drawn, Text("No arm shares a seed with the baseline yet."))


def _error(study: Study, judgement: Judgement) -> tuple[Block, ...]:
    bound = judgement.rule.bound
    deciding = judgement.deciding.info.name == "relative_loss_error" and bound is not None
    level = 100 * (bound if deciding and bound is not None else PUBLISHED_BOUND)
    whose = "the recipe's bound" if deciding else "the report's bound for FP8"
    plot = Plot(
        "loss-error",
        "Relative loss error",
        f"|arm - {study.record.baseline}| / {study.record.baseline} of the smoothed training loss, "
        f"in percent; dashed: {whose}, {level:g}{NO_BREAK}%.",
        "percent",
        3,
        (level, f"bound: {level:g} %"),
    )
    return _drawn(figures.curves(plot, curves.relative_errors(study), study.record.baseline))


def _balance(study: Study) -> tuple[Block, ...]:
    """MaxVio per batch and per sequence over training."""
    found = []
    for scope, figure in (("batch", "max_violation"), ("sequence", "max_violation_sequence")):
        plot = Plot(
            f"max-violation-{scope}",
            f"MaxVio of each {scope}",
            f"MaxVio of each {scope} in training: largest load over mean load, minus 1, mean over "
            f"layers; 0 is even. Smoothed and framed as the loss, with one standard deviation.",
            f"MaxVio, {scope}",
            2,
        )
        found.append(figures.curves(plot, curves.lines(study, figure), study.record.baseline))
    return _drawn(*found)


def _experts(study: Study) -> tuple[Block, ...]:
    shown = _of_one_seed(study)
    if not shown:
        return ()
    note = (
        "Load of each expert over the even load, by domain of the held-out text, as in figure 9 of "
        "the report: first, middle and last MoE layer. One seed is shown, because experts of "
        "different seeds have nothing to do with each other."
    )
    drawn = [
        heatmaps.strips(f"experts-{number}", run.arm, run.seed, load)
        for number, run in enumerate(shown)
        if (load := run.expert_load) is not None
    ]
    deep = [
        heatmaps.all_layers(f"experts-all-layers-{number}", run.arm, run.seed, load)
        for number, run in enumerate(shown[:MOST_OF_ALL_LAYERS])
        if (load := run.expert_load) is not None
        and len(heatmaps.chosen_layers(load)) < len(load.layers)
    ]
    found: list[Block] = [Text(note), *drawn[:MOST_HEAT_MAPS]]
    if len(drawn) > MOST_HEAT_MAPS:
        rest = drawn[MOST_HEAT_MAPS:]
        found.append(Details(f"The other {plural(len(rest), 'arm')}", tuple(rest)))
    if deep:
        of = "" if len(deep) == len(drawn) else f" of the first {len(deep)} arms"
        found.append(Details(f"All layers{of}", tuple(deep)))
    return tuple(found)


def _of_one_seed(study: Study) -> list[StudyRun]:
    """A run of each arm that has a load, of the seed that most arms have, else of their first."""
    having = [run for run in study.runs if run.expert_load is not None]
    if not having:
        return []
    seeds = [run.seed for run in having]
    common = min(set(seeds), key=lambda seed: (-seeds.count(seed), seed))
    chosen: dict[str, StudyRun] = {}
    for run in sorted(having, key=lambda run: (run.seed != common, run.seed)):
        chosen.setdefault(run.arm, run)
    return [chosen[arm] for arm in study.record.arms if arm in chosen]


def _cost(study: Study) -> tuple[Block, ...]:
    return (tables.cost(study), *_drawn(timeline(study)))


def _missing(study: Study, judgement: Judgement) -> tuple[Block, ...]:
    if not judgement.missing:
        return (Text(f"None: all {plural(len(study.runs), 'run')} have a result."),)
    problems = tuple(f"{run.id}: {problem}" for run in study.runs for problem in run.problems)
    table = tables.missing(judgement)
    return (table, Items(problems, named=True)) if problems else (table,)


def _configuration(study: Study) -> tuple[Block, ...]:
    table = tables.configuration(study)
    if not table.rows:
        return ()
    found: list[Block] = [table]
    words = {run.arm: " ".join(run.overrides) for run in study.record.runs}
    asked = tuple(f"{arm}: {text}" for arm, text in words.items() if text)
    if asked:
        summary = "The words that made them (of the last seed)"
        found.append(Details(summary, (Items(asked, named=True),)))
    return tuple(found)


def _pairs(judgement: Judgement) -> tuple[Block, ...]:
    if not judgement.differences:
        return ()
    wrong = tuple(
        f"{arm}: {'; '.join(found)}." for arm, found in judgement.differences.items() if found
    )
    if wrong:
        note = f"Runs of one seed that are not the pairs with {judgement.baseline} they should be:"
        return (Text(note), Items(wrong, named=True))
    return (
        Text(
            "Finished runs of one seed are pairs: the same initial weights and order of samples "
            "(hashes written by the ranks), code, data and threads."
        ),
    )


def _provenance(study: Study, judgement: Judgement) -> tuple[Block, ...]:
    every = Details(f"All {plural(len(study.runs), 'run')}", (tables.runs(study, judgement),))
    return (tables.provenance(study), every)


def _drawn(*drawings: Figure | None) -> tuple[Figure, ...]:
    return tuple(drawing for drawing in drawings if drawing is not None)
