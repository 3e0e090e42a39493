"""Whether runs of one seed are the pairs that a comparison takes them for."""

from collections.abc import Callable, Mapping
from typing import Any

from dsv3.report.study import Study, StudyRun

Origin = Callable[[Mapping[str, Any]], Any]

_HASHES = {
    "weights.model": "initial weights",
    "weights.mtp": "initial weights of the MTP modules",
    "data_order": "order of the samples",
}
"""Key in start.json -> what it is the hash of. A part that only one of two arms has is no sign."""
_PARTS_OF_SOME = ("weights.mtp",)


def _code(record: Mapping[str, Any]) -> Any:
    git, versions = record.get("git") or {}, record.get("versions") or {}
    return [git.get("commit"), git.get("diff_file"), versions.get("dsv3")]


_ORIGINS: dict[str, Origin] = {
    "code version": _code,
    "numerics version": lambda record: record.get("numerics_version"),
    "data": lambda record: record.get("data_fingerprint"),
    "threads per rank": lambda record: record.get("threads_per_rank"),
}
"""What all starts of both runs have to have in common, off their provenance."""


def pair_differences(study: Study, arm: str) -> tuple[str, ...]:
    """What keeps finished runs of `arm` from being pairs with the baseline's; nothing is best.

    Sentences that name the seeds they hold for.
    """
    baseline = {run.seed: run for run in study.of_arm(study.record.baseline) if run.done}
    found: dict[str, list[int]] = {}
    for run in study.of_arm(arm):
        if run.done and run.seed in baseline:
            for what in _differences(run, baseline[run.seed]):
                found.setdefault(what, []).append(run.seed)
    return tuple(
        f"{what} (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})"
        for what, seeds in found.items()
    )


def _differences(run: StudyRun, baseline: StudyRun) -> list[str]:
    found = [*_of_starts(run, baseline)]
    for what, origin in _ORIGINS.items():
        both = [_all_of(origin, each) for each in (run, baseline)]
        if len(both[0]) != 1 or both[0] != both[1]:
            found.append(f"different {what}")
    # What is evaluated is no part of a run's name: a finished run keeps what it was asked for.
    if _evaluated_tokens(run) != _evaluated_tokens(baseline):
        found.append("different sizes of the evaluation set")
    return found


def _evaluated_tokens(run: StudyRun) -> Any:
    return None if run.result is None else run.result.get("evaluated_tokens")


def _of_starts(run: StudyRun, baseline: StudyRun) -> list[str]:
    if run.start is None or baseline.start is None:
        return ["initial weights and order of samples were not recorded"]
    ours, theirs = run.start, baseline.start
    found = []
    for key, what in _HASHES.items():
        in_one = (key in ours) != (key in theirs)
        if in_one and key in _PARTS_OF_SOME:
            continue
        if ours.get(key) != theirs.get(key):
            found.append(f"different {what}")
    return found


def _all_of(origin: Origin, run: StudyRun) -> list[Any]:
    """What each start of the ranks of a run says, without repetition."""
    values: list[Any] = []
    for record in run.attempts or (run.provenance,):
        value = origin(record)
        if value not in values:
            values.append(value)
    return values
