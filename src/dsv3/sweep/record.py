"""`sweeps/<id>.json`: which runs a sweep consists of. The runs themselves are their directories."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dsv3.config.recipe import Recipe
from dsv3.config.suggest import did_you_mean, listed
from dsv3.errors import CheckpointError, ConfigError, Dsv3Error, Problem
from dsv3.files import storage_error
from dsv3.redaction import redact_arguments
from dsv3.runs.directory import RunDirectory
from dsv3.runs.files import write_atomically

FORMAT = 1
_MOST_NAMES = 8


class SweepRun(BaseModel):
    """One run of a sweep: an arm with a seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^\w[\w.-]*$")  # a name, not a path
    arm: str
    seed: int
    overrides: tuple[str, ...]


class SweepRecord(BaseModel):
    """A sweep as it is on disk; `recipe` is None for one that the command line spelled out.

    `model` names the configured model; `run_root` is absolute.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    id: str
    name: str
    model: str
    run_root: Path
    created_at: str
    command: tuple[str, ...]
    recipe: Recipe | None
    baseline: str
    runs: tuple[SweepRun, ...]

    @property
    def said(self) -> tuple[str, ...]:
        """The command as it was typed, wherever the program lies."""
        return ("dsv3", *self.command[1:])

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms, the baseline first, else as written."""
        return tuple(dict.fromkeys([self.baseline, *(run.arm for run in self.runs)]))

    def directory(self, run: SweepRun) -> RunDirectory:
        """Where a run of this sweep is, or will be."""
        return RunDirectory(self.run_root / run.id)


def sweep_id(name: str, recipe: Recipe | None, run_ids: list[str]) -> str:
    """`<name>-<hash of the recipe and the runs>`: the same sweep asked again is the same file."""
    content = [recipe.model_dump(mode="json") if recipe is not None else None, sorted(run_ids)]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return f"{name}-{hashlib.sha256(canonical.encode()).hexdigest()[:10]}"


def new_record(
    *,
    name: str,
    recipe: Recipe | None,
    baseline: str,
    model: str,
    run_root: Path,
    command: Sequence[str],
    runs: Iterable[SweepRun],
) -> SweepRecord:
    """The record of a sweep that is asked for now; secrets on the command line are left out."""
    runs = tuple(
        run.model_copy(update={"overrides": tuple(redact_arguments(run.overrides))}) for run in runs
    )
    return SweepRecord(
        id=sweep_id(name, recipe, [run.id for run in runs]),
        name=name,
        model=model,
        run_root=run_root.expanduser().absolute(),
        created_at=datetime.now(UTC).isoformat(),
        command=tuple(redact_arguments(command)),
        recipe=recipe,
        baseline=baseline,
        runs=runs,
    )


def record_path(root: Path, name: str) -> Path:
    """The file of the sweep with id `name`."""
    return root / f"{name}.json"


def lock_path(root: Path, name: str) -> Path:
    """The lock held by the process that runs the sweep with id `name`."""
    return root / f"{name}.lock"


def keep(record: SweepRecord, root: Path) -> SweepRecord:
    """Write `record` into `root` before its first run starts, or return the one that is there.

    Written once: it says when and how the sweep was asked for first. Only where the run directories
    of that time are gone, moved with everything else say, the new record replaces it. Raises
    CapacityError if it cannot be written, CheckpointError if the file there is damaged, ConfigError
    if that sweep keeps its runs elsewhere.
    """
    path = record_path(root, record.id)
    try:
        root.mkdir(exist_ok=True)
    except OSError as error:
        remedy = "make it writable with some free space, or choose another sweep_root="
        raise storage_error(f"sweep_root={root}", error, remedy) from error
    if path.exists():
        before = load(path)
        if before.run_root == record.run_root:
            return before
        if before.run_root.exists():
            rule = f"this sweep has its runs in {before.run_root}, not in {record.run_root}"
            remedy = f"write run_root={before.run_root}, or choose another sweep_root="
            raise ConfigError(Problem(str(path), rule, remedy))
    write_atomically(path, f"{record.model_dump_json(indent=2)}\n")
    return record


def load(path: Path) -> SweepRecord:
    """Read a record; raises CheckpointError if it is none, is damaged, or was changed."""
    try:
        record = SweepRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise _damaged(path, f"{place}: {first['msg']}" if place else first["msg"]) from error
    except OSError as error:
        raise storage_error(path, error, "make it readable") from error
    if record.format != FORMAT:
        raise _damaged(path, f"it has format {record.format}, this dsv3 reads {FORMAT}")
    wanted = sweep_id(record.name, record.recipe, [run.id for run in record.runs])
    if record.id != wanted:
        raise _damaged(path, f"it says it is {record.id}, its content is that of {wanted}")
    return record


def records(root: Path) -> Iterator[SweepRecord]:
    """The readable records in `root`, the newest first."""
    found = []
    for path in root.glob("*.json"):
        try:
            found.append(load(path))
        except Dsv3Error:
            continue  # who names it is told what is wrong with it
    yield from sorted(found, key=lambda record: record.created_at, reverse=True)


def find(word: str, root: Path) -> tuple[SweepRecord, Path] | None:
    """The sweep that `word` means, and the directory of its record; None if there is none.

    A path of a record; else, in `root`, an id, the name of a recipe (its newest sweep), or the
    beginning of one id. Raises ConfigError if several begin so, CheckpointError if the file of that
    path or id is damaged.
    """
    path = Path(word).expanduser()
    if path.suffix == ".json" and path.is_file():
        return load(path), path.parent
    if "/" not in word and (exact := record_path(root, word)).is_file():
        return load(exact), root
    known = list(records(root))
    named = [record for record in known if record.name == word]
    if named:
        return named[0], root
    begun = [record for record in known if word and record.id.startswith(word)]
    if len(begun) > 1:
        rule = f"several sweeps begin so: {_shown(record.id for record in begun)}"
        raise ConfigError(Problem(word, rule, "write more of the name"))
    return (begun[0], root) if begun else None


def find_or_refuse(word: str, root: Path) -> tuple[SweepRecord, Path]:
    """As `find`; raises ConfigError naming the sweeps there are if it is none of them."""
    found = find(word, root)
    if found is not None:
        return found
    known = list(records(root))
    names = dict.fromkeys(name for record in known for name in (record.id, record.name))
    ids = _shown(record.id for record in known)
    there = f"sweeps there: {ids}" if ids else "there are none; sweep_root=DIR looks elsewhere"
    rule = f"there is no such sweep in {root}"
    remedy = did_you_mean(word, names) or there
    raise ConfigError(Problem(word, rule, remedy))


def _shown(names: Iterable[str]) -> str:
    names = list(names)
    return f"{listed(names[:_MOST_NAMES])}{' ...' if len(names) > _MOST_NAMES else ''}"


def _damaged(path: Path, what: str) -> CheckpointError:
    what = what[:1].lower() + what[1:]
    remedy = "remove it and ask for the same sweep again: its runs are in their directories"
    return CheckpointError(Problem(str(path), f"this is no record of a sweep: {what}", remedy))
