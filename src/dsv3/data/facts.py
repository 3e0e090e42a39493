"""What is known of files without reading them again: digests and sizes, by path and stat."""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from dsv3.files import write_atomically

# A file changed twice within one tick of the filesystem's clock keeps its times; what was read so
# soon after a change is therefore read once more next time (git calls such entries racy).
RACY_NS = 2_000_000_000


class FileFacts:
    """Facts about files, trusted while size, inode, modification and change time stay.

    Only the facts asked for in this process are saved, so the file does not grow for ever.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _read(path)
        self._used: dict[str, dict[str, Any]] = {}
        self._changed = False

    def get(self, path: str, kind: str, stat: os.stat_result) -> dict[str, Any] | None:
        """What was put for this file as `kind`, if the file is still the same."""
        entry = self._known.get(f"{kind}:{path}")
        if entry is None or entry.get("stat") != _identity(stat):
            return None
        if max(stat.st_mtime_ns, stat.st_ctime_ns) + RACY_NS > entry["read_at_ns"]:
            return None
        self._used[f"{kind}:{path}"] = entry
        return dict(entry["facts"])

    def put(
        self, path: str, kind: str, stat: os.stat_result, facts: dict[str, Any], *, read_at_ns: int
    ) -> None:
        """Keep `facts` of a file that was read after `read_at_ns` and had `stat` before."""
        entry = {"stat": _identity(stat), "read_at_ns": read_at_ns, "facts": facts}
        self._used[f"{kind}:{path}"] = entry
        self._changed = True

    def save(self) -> None:
        """Write what was used; a cache that cannot be written only costs time."""
        if not self._changed:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(self._used).encode())
        self._changed = False


def now_ns() -> int:
    """Wall clock, comparable to the times of files."""
    return time.time_ns()


def _identity(stat: os.stat_result) -> list[int]:
    return [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
