"""At most one process trains a run: flock on a file that says who holds it.

The kernel drops the lock when its holder dies, however it dies, so a stale holder needs no lease
and no clean-up. On NFS (Linux >= 2.6.12) flock becomes a byte-range lock of the server and holds
across hosts; a mount with `nolock` or `local_lock=flock` only excludes processes of one host.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from dsv3.errors import CapacityError, LockHeldError, Problem
from dsv3.files import storage_error

# A winner needs a moment to write its name, and a reader of the holder blocks the lock for a
# moment: within this time a refusal is asked again.
LOCK_GRACE_S = 0.3
_POLL_S = 0.03


@dataclass(frozen=True)
class Holder:
    """Who holds a lock."""

    host: str
    pid: int
    started_at: str
    attempt: int | None = None


class RunLock:
    """The lock of a run directory; held from `acquire` (or `with`) until `release` or death.

    Who holds it already is waited for, `patience_s` at most.
    """

    def __init__(self, path: Path, *, patience_s: float = LOCK_GRACE_S) -> None:
        self.path = path
        self._patience_s = patience_s
        self._descriptor: int | None = None
        self._holder = Holder("", 0, "")

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def acquire(self) -> None:
        """Take the lock.

        Raises LockHeldError naming host and pid if another process has it and keeps it,
        CapacityError if the file system cannot lock.
        """
        assert not self.held, f"{self.path=} is already held by this object"
        descriptor = _open(self.path)
        try:
            _take(descriptor, self.path, self._patience_s)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        # A forked child must not keep the lock alive after this process has died.
        os.register_at_fork(after_in_child=self._forget)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._holder = Holder(socket.gethostname(), os.getpid(), now)
        self._write_holder()

    def set_attempt(self, attempt: int) -> None:
        """Add the number of the attempt to what others read about the holder."""
        self._holder = Holder(self._holder.host, self._holder.pid, self._holder.started_at, attempt)
        self._write_holder()

    def release(self) -> None:
        """Give the lock back; the file stays, because removing it would race with the next."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            self._forget()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _forget(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write_holder(self) -> None:
        assert self._descriptor is not None, f"{self.path=} is not held"
        text = json.dumps(asdict(self._holder)).encode()
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text, 0)
        except OSError as error:
            self._forget()
            raise storage_error(self.path, error, "free some space there") from error


def current_holder(path: Path) -> Holder | None:
    """Who holds the lock at `path`; None if nobody does or there is no such file.

    A holder that has not written its name yet is given as host "unknown", pid 0.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error(path, error, "make it readable") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_holder(descriptor) or Holder("unknown", 0, "")
    except OSError as error:
        raise _cannot_lock(path, error) from error
    else:
        return None
    finally:
        os.close(descriptor)


def refuse_held(path: Path) -> None:
    """Raise LockHeldError if another process holds the lock at `path`."""
    holder = current_holder(path)
    if holder is not None:
        raise _held_error(path, holder)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise storage_error(path, error, "make the run directory writable") from error


def _take(descriptor: int, path: Path, patience_s: float) -> None:
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                holder = _read_holder(descriptor) or Holder("unknown", 0, "")
                raise _held_error(path, holder) from None
            time.sleep(_POLL_S)
        except OSError as error:
            raise _cannot_lock(path, error) from error
        else:
            return


def _read_holder(descriptor: int) -> Holder | None:
    try:
        return Holder(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError):
        return None


def _held_error(path: Path, holder: Holder) -> LockHeldError:
    since = f" since {holder.started_at}" if holder.started_at else ""
    return LockHeldError(
        Problem(
            str(path.parent),
            f"process {holder.pid} on host {holder.host} is training this run{since}",
            "wait for it, or stop it and ask again; run.tag=<name> starts a run of its own",
        )
    )


def _cannot_lock(path: Path, error: OSError) -> CapacityError:
    return storage_error(
        path, error, "its file system has no locks: choose a run_root= that has (Lustre: -o flock)"
    )
