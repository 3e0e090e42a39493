"""W&B as a mirror: one run of W&B for a run of dsv3, however often it is resumed."""

import contextlib
import hashlib
import json
import netrc
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dsv3.train.mirrored import MirroredRun

_PROBE_S = 5.0
_WANDB_URL = "https://api.wandb.ai"
_LONGEST_NAME, _LONGEST_TAG = 128, 64  # of W&B
_ROWS_AHEAD = 1000


class WandbBackend:
    """W&B under the run's id, online where a key and the server are; else offline, to sync later.

    Steps are an ordinary value: W&B's own row number must never go back, or it drops lines. Rows
    count on through all attempts; of rows with the same `step` the one of the highest `part` holds,
    a part being an attempt or what follows a roll-back.
    """

    def __init__(self, run: MirroredRun) -> None:
        mode = wandb_mode(os.environ, run.mode)
        if run.mode == "online" and mode != "online":
            self.warning = "tracking.mode=online: no key, or no answer; written offline instead"
        if "offline" in (mode, os.environ.get("WANDB_MODE")):
            os.environ.pop("WANDB_API_KEY", None)
        home = Path(run.directory) / "wandb"
        self._rows = _Rows(home)
        _set_wandb_environment(home)
        import wandb

        settings = wandb.Settings(
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(
            project=_fitting(run.project, _LONGEST_NAME),
            id=run.id,
            group=_fitting(run.group, _LONGEST_NAME),
            name=_fitting(run.name, _LONGEST_NAME),
            tags=list(dict.fromkeys(_fitting(tag, _LONGEST_TAG) for tag in run.tags)),
            dir=run.directory,
            mode=mode,
            resume="allow",
            config=dict(run.config),
            settings=settings,
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    warning: str | None = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers as one row of history."""
        row = {**values, "step": step, "part": self._rows.part}
        self._run.log(row, step=self._rows.take(), commit=True)

    def roll_back(self, to_step: int) -> None:
        """Begin a part; rows of W&B cannot be taken back."""
        del to_step
        self._rows.begin_part()

    def close(self) -> None:
        """Finish the W&B run; the dsv3 run may well go on later."""
        self._run.finish()


class _Rows:
    """Numbers of rows and parts, over all attempts; a killed one only leaves a gap in the rows."""

    def __init__(self, home: Path) -> None:
        home.mkdir(exist_ok=True)
        self._path = home / "rows.json"
        self._next, self._reserved, self.part = 0, 0, 0
        with contextlib.suppress(FileNotFoundError):
            kept = json.loads(self._path.read_text())
            self._next = self._reserved = int(kept["rows"])
            self.part = int(kept["part"])
        self.begin_part()

    def take(self) -> int:
        """The number of the next row."""
        if self._next == self._reserved:
            self._reserved += _ROWS_AHEAD
            self._keep()
        self._next += 1
        return self._next - 1

    def begin_part(self) -> None:
        """Count a part, from 1."""
        self.part += 1
        self._keep()

    def _keep(self) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps({"rows": self._reserved, "part": self.part}))
        new.replace(self._path)


def wandb_mode(environment: Mapping[str, str], asked: str = "auto") -> Any:
    """`online` where a key and the server are, else `offline`: nothing prompts, nothing is lost.

    `asked` is `tracking.mode`. None: the user's WANDB_MODE decides, which only `auto` lets it.
    """
    if asked == "offline":
        return "offline"
    if asked == "auto" and environment.get("WANDB_MODE"):
        return None
    return "online" if has_wandb_key(environment) and _answers(_url(environment)) else "offline"


def has_wandb_key(environment: Mapping[str, str]) -> bool:
    """Whether there is a key for W&B's server, in the environment or in the user's netrc file."""
    return bool(environment.get("WANDB_API_KEY")) or _in_netrc(_url(environment), environment)


def _url(environment: Mapping[str, str]) -> str:
    return environment.get("WANDB_BASE_URL") or _WANDB_URL


def _in_netrc(url: str, environment: Mapping[str, str]) -> bool:
    with contextlib.suppress(OSError, netrc.NetrcParseError, RuntimeError):
        file = environment.get("NETRC") or str(Path.home() / ".netrc")
        return netrc.netrc(file).authenticators(urlsplit(url).hostname or "") is not None
    return False


def _answers(url: str) -> bool:
    """Whether anything at all comes back; otherwise W&B would try for minutes and keep nothing."""
    if urlsplit(url).scheme not in {"http", "https"}:
        return False
    try:
        urllib.request.urlopen(url, timeout=_PROBE_S).close()  # noqa: S310 - scheme checked above
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _fitting(text: str, longest: int) -> str:
    """`text`, cut to what W&B takes; what was cut off still tells two texts apart."""
    if len(text) <= longest:
        return text
    return f"{text[: longest - 9]}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _set_wandb_environment(home: Path) -> None:
    variables = {
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_CACHE_DIR": str(home / "cache"),
        "WANDB_DATA_DIR": str(home / "data"),
        "WANDB_ARTIFACT_DIR": str(home / "artifacts"),
    }
    for name, value in variables.items():
        os.environ.setdefault(name, value)
