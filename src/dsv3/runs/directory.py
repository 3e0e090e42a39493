"""A run on disk: made whole or not at all, frozen at its first start, its state read off its files.

config.yaml       the resolved configuration of the first start; never changed
overrides.yaml    what the user wrote
provenance.json   code, machine, layout and data of the first start
source-*.diff     uncommitted changes of the code, by content
configs/*.yaml    configurations of later starts (another layout, say), by content
start.json        hashes of initial weights and data order, written before the first step
attempts.jsonl    one line per start of the ranks: provenance, and what differs from config.yaml
metrics.jsonl     one line per step and evaluation
digests.jsonl     with run.digests: hashes of every step, and of the final state
events.jsonl      what happened
gemms.json        formats of every product, in an attempt's first step and in the last evaluation
timeline/         with run.timeline_step: what every rank did in that step
evaluations/step-N/ figures and expert load; with a suffix: of another set, or computed otherwise
checkpoints/ logs/
lock              held by who makes the directory, then by rank 0 while it lives
job.json          of a run handed in to a cluster: which array, and which number in it
DONE | FAILED     the result, or the failure, as JSON
"""

import contextlib
import hashlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

import dsv3
from dsv3.config.diff import differences
from dsv3.config.root import RunConfig
from dsv3.errors import ConfigError, DataError, Dsv3Error, Problem, StaleAttemptError
from dsv3.files import new_directory, probe_writable, storage_error, write_synced
from dsv3.redaction import redact_arguments, redact_data
from dsv3.runs.files import damaged, read_json, write_atomically, write_json
from dsv3.runs.identity import identity, run_id
from dsv3.runs.lock import RunLock, current_holder
from dsv3.runs.provenance import Provenance
from dsv3.runs.records import LineLog, read_lines

# Longer than a maker is without a lock that bears its name: a few calls to the file system.
_MAKING_S = 60
_AFRESH = "run.tag=<name> starts a run of its own"


class Status(StrEnum):
    """Where a run stands."""

    NEW = "new"
    RUNNING = "running"
    STOPPED = "stopped"
    DONE = "done"
    FAILED = "failed"


def check_run_root(run_root: str, *, key: str = "run_root") -> None:
    """Raise CapacityError if run directories cannot be made in `run_root`; make nothing.

    Only the last part of the path may be missing: a mistyped mount point is not created. `key` is
    the setting it comes from.
    """
    setting = f"{key}={run_root}"
    try:
        probe_writable(_nearest_directory(setting, Path(run_root).expanduser().absolute()))
    except (OSError, ValueError) as error:
        remedy = f"make it writable with some free space, or choose another {key}="
        raise storage_error(setting, error, remedy) from error


def _nearest_directory(setting: str, root: Path) -> Path:
    """`root` if it is there, else its parent, which has to be."""
    another = f"choose another {setting.partition('=')[0]}="
    try:
        mode = root.stat().st_mode
    except FileNotFoundError:
        if root.parent.is_dir():
            return root.parent
        missing = ValueError(f"its parent {root.parent} is not a directory")
        raise storage_error(setting, missing, f"mkdir -p '{root.parent}', or {another}") from None
    if not stat.S_ISDIR(mode):
        raise storage_error(setting, ValueError("it is not a directory"), another)
    return root


class RunDirectory:
    """The directory of one run; knows its files, not what is in the checkpoints."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name
        self.config_path = path / "config.yaml"
        self.overrides_path = path / "overrides.yaml"
        self.provenance_path = path / "provenance.json"
        self.configs = path / "configs"
        self.attempts_path = path / "attempts.jsonl"
        self.start_path = path / "start.json"
        self.metrics_path = path / "metrics.jsonl"
        self.digests_path = path / "digests.jsonl"
        self.events_path = path / "events.jsonl"
        self.gemms_path = path / "gemms.json"
        self.checkpoints = path / "checkpoints"
        self.evaluations = path / "evaluations"
        self.logs = path / "logs"
        self.lock_path = path / "lock"
        self.done_path = path / "DONE"
        self.failed_path = path / "FAILED"
        self._attempt: dict[str, Any] | None = None

    @classmethod
    def of(cls, config: RunConfig) -> "RunDirectory":
        """The directory `config` belongs in, whether it is there or not."""
        return cls(Path(config.run_root).expanduser() / run_id(config))

    @classmethod
    def create_or_open(
        cls, config: RunConfig, *, overrides: Sequence[str], provenance: Provenance
    ) -> "RunDirectory":
        """Make the directory of `config`, complete or not at all, or open and check it.

        Raises CapacityError if it cannot be made, DataError or ConfigError if the run began with
        other data or other numerics, CheckpointError if its files are damaged.
        """
        run = cls.of(config)
        if not run.exists():
            check_run_root(config.run_root)
            run._create(config, overrides, provenance)
        run._check_same_run(config)
        run.check_frozen(str(provenance.record["data_fingerprint"]))
        return run

    def exists(self) -> bool:
        """Whether the run was ever asked for, as far as one may look."""
        return os.path.isfile(self.config_path)  # noqa: PTH113 - the other one raises

    def config(self, file: str = "config.yaml") -> RunConfig:
        """The frozen configuration, or that of a later start by its name within the directory."""
        path = self.path / file
        try:
            return RunConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise damaged(path, str(error)) from error

    def config_file(self, config: RunConfig) -> str:
        """Name of the file that holds exactly `config`, written if it is not there.

        Ranks read a file that cannot change under them, also when two starts race.
        """
        text = _to_yaml(config)
        if self.config_path.read_text(encoding="utf-8") == text:
            return self.config_path.name
        name = f"{self.configs.name}/{hashlib.sha256(text.encode()).hexdigest()[:10]}.yaml"
        if not (self.path / name).exists():
            try:
                self.configs.mkdir(exist_ok=True)
            except OSError as error:
                raise storage_error(self.configs, error, "make it writable") from error
            write_atomically(self.path / name, text)
        return name

    def latest_config(self) -> RunConfig:
        """The configuration of the last start of the ranks, or the frozen one before any."""
        attempts = self.attempts()
        file = attempts[-1].get("config") if attempts else None
        return self.config() if file is None else self.config(str(file))

    def evaluation(self, step: int, sequences: int) -> Path:
        """Directory of the evaluation after `step` on `evaluation.sequences` = `sequences`.

        One on another set than config.yaml names lies apart: it never replaces the run's own.
        """
        own = self.config().evaluation.sequences
        apart = "" if sequences == own else f"-sequences-{sequences}"
        return self.evaluations / f"step-{step}{apart}"

    def provenance(self) -> dict[str, Any]:
        """What was written at the first start."""
        return read_json(self.provenance_path)

    def attempts(self) -> list[dict[str, Any]]:
        """One record per start of the ranks."""
        return list(read_lines(self.attempts_path))

    def status(self) -> Status:
        """Where the run stands, from the files alone."""
        if self.done_path.exists():
            return Status.DONE
        if current_holder(self.lock_path) is not None:
            return Status.RUNNING
        if self.failed_path.exists():
            return Status.FAILED
        has_steps = next(read_lines(self.metrics_path), None) is not None
        has_checkpoint = self.checkpoints.is_dir() and any(self.checkpoints.iterdir())
        return Status.STOPPED if has_steps or has_checkpoint else Status.NEW

    def result(self) -> dict[str, Any] | None:
        """What a finished run found, or None."""
        return read_json(self.done_path) if self.done_path.exists() else None

    def failure(self) -> dict[str, Any] | None:
        """How a failed run ended, or None."""
        return read_json(self.failed_path) if self.failed_path.exists() else None

    def begin_attempt(self, lock: RunLock, config: RunConfig, provenance: Provenance) -> int:
        """Record a start of the ranks under the run's lock and forget an earlier failure.

        Returns the number of the attempt, from 1. Raises as `check_frozen`.
        """
        assert lock.held, f"{lock.path=} is not held"
        self.check_frozen(str(provenance.record["data_fingerprint"]))
        with LineLog(self.attempts_path) as log:
            attempt = 1 + len(self.attempts())
            changed = _changed(self.config(), config)
            ran = {"config": self.config_file(config), "changed": changed}
            mark = {"attempt": attempt, "mark": uuid.uuid4().hex}
            log.append({**mark, **provenance.record, **ran})
            log.sync()
            self._attempt = mark
        if provenance.diff_file is not None:
            write_atomically(self.path / provenance.diff_file, provenance.diff)
        lock.set_attempt(attempt)
        self.failed_path.unlink(missing_ok=True)
        return attempt

    def is_stale(self) -> bool:
        """Whether a later attempt than the one this object began has begun.

        The lock keeps that from happening, where it holds: a file server may take the lock of a
        machine that it has lost sight of, and that works on. The last line of the file decides.
        """
        if self._attempt is None:
            return False
        last = self.attempts()[-1:]
        return bool(last) and last[0].get("mark") != self._attempt["mark"]

    def refuse_stale(self) -> None:
        """Raise StaleAttemptError if a later attempt has begun; before anything is kept."""
        if self.is_stale():
            assert self._attempt is not None
            rule = f"attempt {self._attempt['attempt']} has been overtaken by a later one"
            raise StaleAttemptError(Problem(str(self.path), f"{rule}: it keeps nothing more"))

    def mark_done(self, result: dict[str, Any]) -> None:
        """Write the result; from now on the run is finished. Raises StaleAttemptError."""
        self.refuse_stale()
        write_json(self.done_path, {"finished_at": datetime.now(UTC).isoformat(), **result})

    def mark_failed(self, error: Dsv3Error, **context: Any) -> None:
        """Write why the run ended; it can be tried again."""
        failed_at = datetime.now(UTC).isoformat()
        record = {"failed_at": failed_at, **error.record(), **redact_data(context)}
        write_json(self.failed_path, record)

    def check_frozen(self, data_fingerprint: str) -> None:
        """Raise DataError or ConfigError unless the run began with this data and these numerics."""
        frozen = self.provenance()
        if frozen.get("numerics_version") != dsv3.NUMERICS_VERSION:
            raise ConfigError(
                Problem(
                    str(self.path),
                    f"the run began with numerics version {frozen.get('numerics_version')} of"
                    f" dsv3, this is {dsv3.NUMERICS_VERSION}: it would compute something else",
                    f"go on with the dsv3 it began with ({_version(frozen)}), or {_AFRESH}",
                )
            )
        if frozen.get("data_fingerprint") != data_fingerprint:
            raise DataError(
                Problem(
                    str(self.path),
                    f"the run began with data {frozen.get('data_fingerprint')}, the data are now"
                    f" {data_fingerprint}",
                    f"restore the data, or {_AFRESH}",
                )
            )

    def _create(self, config: RunConfig, overrides: Sequence[str], provenance: Provenance) -> None:
        # Complete under a hidden name, then renamed: others see all of it or nothing. Of two at
        # once one rename fails, and its directory goes. Its lock tells others that its maker lives.
        temporary = self.path.with_name(f".{self.id}.{uuid.uuid4().hex}")
        half_made = RunDirectory(temporary)
        try:
            self.path.parent.mkdir(exist_ok=True)
            self._remove_half_made()
            with new_directory(self.path, temporary, mode=0o775), RunLock(half_made.lock_path):
                _fill(half_made, config, overrides, provenance)
        except OSError as error:
            if not self.exists():
                raise storage_error(self.path, error, self._why_not_made()) from error

    def _remove_half_made(self) -> None:
        """Remove what killed makers of this run left; that of a live one stays."""
        for path in self.path.parent.glob(f".{self.id}.*"):
            lock = path / self.lock_path.name
            with contextlib.suppress(OSError):
                # A maker that has not written its name yet, or has just taken it back, is let be.
                named = lock.exists() and lock.stat().st_size > 0
                in_doubt = not named and time.time() - path.stat().st_mtime < _MAKING_S
                if not in_doubt and current_holder(lock) is None:
                    shutil.rmtree(path)

    def _why_not_made(self) -> str:
        if self.path.exists():
            return "something else than a run is there: move it away"
        return "make run_root= writable with some free space"

    def _check_same_run(self, config: RunConfig) -> None:
        if identity(self.config()) != identity(config):
            raise ConfigError(
                Problem(
                    str(self.path),
                    "config.yaml there computes something else than its name says",
                    f"restore it, or {_AFRESH}",
                )
            )


def _fill(
    run: RunDirectory, config: RunConfig, overrides: Sequence[str], provenance: Provenance
) -> None:
    run.checkpoints.mkdir()
    run.logs.mkdir()
    write_synced(run.config_path, [_to_yaml(config).encode()])
    write_synced(
        run.overrides_path,
        [yaml.safe_dump(redact_arguments(overrides), allow_unicode=True).encode()],
    )
    if provenance.diff_file is not None:
        write_synced(run.path / provenance.diff_file, [provenance.diff.encode()])
    write_json(run.provenance_path, provenance.record)


def _to_yaml(config: RunConfig) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _changed(before: RunConfig, now: RunConfig) -> dict[str, Any]:
    both = differences([config.model_dump(mode="json") for config in (before, now)])
    return {key: value for key, (_, value) in both.items()}


def _version(frozen: dict[str, Any]) -> str:
    versions = frozen.get("versions")
    return str(versions.get("dsv3")) if isinstance(versions, dict) else "unknown"
