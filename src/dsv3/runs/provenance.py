"""Where a result came from: code, versions, machine, layout, data; never a secret.

The environment is not written at all; arguments and the uncommitted diff go through `redaction`.
"""

import hashlib
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dsv3
from dsv3.config.root import RunConfig
from dsv3.machine import describe_host, installed_version
from dsv3.redaction import redact, redact_arguments, redact_data

MAX_DIFF_BYTES = 1 << 20
_GIT_TIMEOUT_S = 10

_DISTRIBUTIONS = (
    "torch",
    "deepspeed",
    "transformer-engine",
    "hydra-core",
    "omegaconf",
    "pydantic",
    "numpy",
    "tokenizers",
    "safetensors",
    "zstandard",
    "wandb",
    "tensorboard",
)


@dataclass(frozen=True)
class Provenance:
    """What is written to provenance.json (`record`), and the uncommitted changes beside it."""

    record: dict[str, Any]
    diff: str

    @property
    def diff_file(self) -> str | None:
        """Name of the file `diff` belongs in, by its content; None if nothing was changed."""
        return _diff_file(self.diff)


def collect(
    config: RunConfig, *, argv: Sequence[str], data_fingerprint: str, threads_per_rank: int
) -> Provenance:
    """Look at the code, the machine and the layout of `config`; takes some tens of ms."""
    git, diff = _git(Path(dsv3.__file__).resolve().parents[2])
    record = {
        "collected_at": datetime.now(UTC).isoformat(),
        "argv": redact_arguments(argv),
        "directory": str(Path.cwd()),
        "data_fingerprint": data_fingerprint,
        "numerics_version": dsv3.NUMERICS_VERSION,
        "git": git,
        "python": platform.python_version(),
        "versions": _versions(),
        "machine": describe_host(),
        "layout": _layout(config),
        "threads_per_rank": threads_per_rank,
    }
    return Provenance(redact_data(record), diff)


def _layout(config: RunConfig) -> dict[str, Any]:
    return {
        **config.parallelism.model_dump(mode="json"),
        "world_size": config.parallelism.world_size,
        "micro_batch_size": config.schedule.micro_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
    }


def _versions() -> dict[str, str]:
    found = {name: installed_version(name) for name in _DISTRIBUTIONS}
    there = {name: version for name, version in found.items() if version is not None}
    return {"dsv3": dsv3.__version__, **there}


def _git(checkout: Path) -> tuple[dict[str, Any], str]:
    """Commit and uncommitted changes of `checkout`; all null where dsv3 is an installed wheel."""
    top = _run_git(checkout, "rev-parse", "--show-toplevel")
    # A virtual environment inside somebody's repository is not a checkout of dsv3.
    if top is None or Path(top.strip()) != checkout:
        return {"commit": None, "dirty": None, "diff_file": None, "diff_truncated": False}, ""
    commit = _run_git(checkout, "rev-parse", "HEAD")
    # Neither external diff tools nor text conversions of the user's git configuration are run.
    changes = _run_git(checkout, "diff", "HEAD", "--no-ext-diff", "--no-textconv") or ""
    untracked = _run_git(checkout, "ls-files", "--others", "--exclude-standard") or ""
    diff = redact(changes)
    cut = diff.encode()[:MAX_DIFF_BYTES].decode(errors="ignore")
    record = {
        "commit": commit.strip() if commit is not None else None,
        "dirty": bool(changes or untracked),
        "diff_file": _diff_file(cut),
        "diff_truncated": len(cut) < len(diff),
    }
    return record, cut


def _diff_file(diff: str) -> str | None:
    return f"source-{hashlib.sha256(diff.encode()).hexdigest()[:10]}.diff" if diff else None


def _run_git(directory: Path, *arguments: str) -> str | None:
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(directory), *arguments]
    try:
        finished = subprocess.run(  # noqa: S603 - fixed words, no shell
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GIT_TIMEOUT_S,
            check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return finished.stdout.decode(errors="replace") if finished.returncode == 0 else None
