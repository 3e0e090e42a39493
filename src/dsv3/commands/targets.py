"""What the words of `status`, `logs`, `resume` and `cancel` mean: sweeps and runs, and where."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from dsv3.config.locations import shipped
from dsv3.config.suggest import did_you_mean, listed
from dsv3.errors import ConfigError, Problem
from dsv3.runs.directory import RunDirectory
from dsv3.sweep.progress import Gauge, gauges
from dsv3.sweep.record import SweepRecord, find, lock_path, records

MOST_NAMES = 8
KEYS = ("run_root", "sweep_root")


@dataclass(frozen=True)
class Roots:
    """Where runs and records of sweeps are looked for."""

    run_root: Path
    sweep_root: Path


@dataclass(frozen=True)
class FoundSweep:
    """A sweep, and the directory its record is in."""

    record: SweepRecord
    root: Path

    @property
    def name(self) -> str:
        """Its id."""
        return self.record.id

    @property
    def lock_path(self) -> Path:
        """Held by the process that runs it."""
        return lock_path(self.root, self.record.id)

    def gauges(self) -> list[Gauge]:
        """One for each of its runs."""
        return gauges(self.record)


@dataclass(frozen=True)
class FoundRun:
    """A run by itself."""

    directory: RunDirectory

    @property
    def name(self) -> str:
        """Its id."""
        return self.directory.id

    def gauges(self) -> list[Gauge]:
        """One."""
        return [Gauge(self.directory)]


Target = FoundSweep | FoundRun


def understood(words: Sequence[str]) -> tuple[list[str], Roots]:
    """The names among `words`, and the directories that `run_root=` and `sweep_root=` name.

    Raises ConfigError for other settings: nothing is composed here.
    """
    roots, names, problems = _default_roots(), [], []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in KEYS and value:
            roots = replace(roots, **{key: Path(value).expanduser()})
        elif equals and not Path(word).exists():
            rule = f"only {listed(f'{k}=' for k in KEYS)} can be given here"
            problems.append(Problem(word, rule, "name a sweep or a run"))
        else:
            names.append(word)
    if problems:
        raise ConfigError(problems)
    return names, roots


def targets(words: Sequence[str], *, verb: str) -> list[Target]:
    """The sweeps and runs that `words` name; raises ConfigError if they name none."""
    names, roots = understood(words)
    if not names:
        remedy = f"dsv3 {verb} SWEEP or dsv3 {verb} RUN; `dsv3 status` shows the newest sweeps"
        raise ConfigError(Problem(f"dsv3 {verb}", "a sweep or a run is missing", remedy))
    return [_target(name, roots) for name in names]


def newest_sweeps(words: Sequence[str], most: int) -> list[Target]:
    """The newest sweeps in sweep_root; `words` holds settings only."""
    _, roots = understood(words)
    return [FoundSweep(each, roots.sweep_root) for each in list(records(roots.sweep_root))[:most]]


def _default_roots() -> Roots:
    base = yaml.safe_load((shipped("conf") / "base.yaml").read_text(encoding="utf-8"))
    return Roots(*(Path(str(base[key])) for key in KEYS))


def _target(name: str, roots: Roots) -> Target:
    """A path of a run or record; else the sweep, then the run, of this id or its beginning."""
    directory = RunDirectory(Path(name).expanduser().resolve())
    if directory.exists():
        return FoundRun(directory)
    sweep = find(name, roots.sweep_root)
    if sweep is not None:
        return FoundSweep(*sweep)
    ids = sorted(path.parent.name for path in roots.run_root.glob("*/config.yaml"))
    begun = [name] if name in ids else [each for each in ids if name and each.startswith(name)]
    if len(begun) == 1:
        return FoundRun(RunDirectory((roots.run_root / begun[0]).resolve()))
    if begun:
        raise ConfigError(Problem(name, f"several runs begin so: {_shown(begun)}", "write more"))
    raise ConfigError(Problem(name, *_none(name, ids, roots)))


def _none(name: str, ids: Sequence[str], roots: Roots) -> tuple[str, str]:
    """Rule and remedy for a name of nothing."""
    sweeps = [each.id for each in records(roots.sweep_root)]
    rule = f"there is no such sweep in {roots.sweep_root}, nor such a run in {roots.run_root}"
    there = [f"sweeps: {_shown(sweeps)}"] if sweeps else []
    there += [f"runs: {_shown(ids)}"] if ids else []
    elsewhere = "sweep_root=DIR run_root=DIR look elsewhere"
    remedy = did_you_mean(name, [*sweeps, *ids]) or "; ".join([*there, elsewhere])
    return rule, remedy


def _shown(names: Sequence[str]) -> str:
    return f"{listed(names[:MOST_NAMES])}{' ...' if len(names) > MOST_NAMES else ''}"
