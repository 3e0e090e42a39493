"""The cache directory: where it is, one preparer at a time, and nothing half done in it."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from dsv3.data.documents import expanded
from dsv3.errors import CapacityError, Problem
from dsv3.files import new_directory, reason


def cache_root(configured: str | None) -> Path:
    """`data.cache_dir`, else $XDG_CACHE_HOME/dsv3, else ~/.cache/dsv3, else a private /tmp one."""
    if configured is not None:
        return expanded(configured).absolute()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):  # noqa: PTH117 - the XDG rule: relative values are ignored
        return Path(xdg) / "dsv3"
    try:
        home = Path.home()
    except RuntimeError:  # no $HOME and no entry in the password file, as in some containers
        home = Path("/")
    if home != Path("/"):
        return home / ".cache" / "dsv3"
    return Path(tempfile.gettempdir()) / f"dsv3-cache-{os.getuid()}"


def refuse_foreign(cache: Path) -> None:
    """Raise CapacityError if someone else made this directory where everybody may."""
    if _shared(cache) and cache.exists() and cache.stat().st_uid != os.getuid():
        rule, remedy = "it belongs to another user", "set data.cache_dir=DIRECTORY"
        raise CapacityError(Problem(f"data.cache_dir={cache}", rule, remedy))


def _shared(cache: Path) -> bool:
    return cache.parent == Path(tempfile.gettempdir())


class PreparedCache:
    """Prepared texts, each in a directory named by the key of what it was made from."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self.root = cache / "prepared"

    def directory(self, key: str) -> Path:
        """Where the text with this key is, once it is prepared."""
        return self.root / key

    def ensure(self, key: str, build: Callable[[Path], None], waiting: Callable[[], None]) -> Path:
        """The directory of `key`, made by `build` in a temporary one if it is not there.

        Of several processes one builds and the others wait. A killed builder leaves a directory
        that nobody reads and the next builder removes. Raises CapacityError if the cache cannot
        be written.
        """
        directory = self.directory(key)
        try:
            if directory.is_dir():
                return directory
            self._make_root()
            with _locked(self.root / f".{key}.lock", waiting):
                if not directory.is_dir():
                    self._sweep()
                    self._publish(directory, build)
        except OSError as error:
            raise CapacityError(
                Problem(
                    f"data.cache_dir={self._cache}",
                    f"prepared text cannot be written: {reason(error)}",
                    "free some space, or set data.cache_dir=DIRECTORY",
                )
            ) from error
        return directory

    def _make_root(self) -> None:
        self._cache.mkdir(
            parents=True, exist_ok=True, mode=0o700 if _shared(self._cache) else 0o777
        )
        self.root.mkdir(exist_ok=True)

    def _publish(self, directory: Path, build: Callable[[Path], None]) -> None:
        temporary = self.root / f".{directory.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        with new_directory(directory, temporary):
            build(temporary)

    def _sweep(self) -> None:
        """Remove what killed builders of other keys left; the lock of a dead one is free."""
        for temporary in self.root.glob(".*.tmp"):
            lock = self.root / f"{temporary.stem}.lock"
            with contextlib.suppress(BlockingIOError), _locked(lock, waiting=None):
                shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, waiting: Callable[[], None] | None) -> Iterator[None]:
    """Hold a lock file, gone afterwards; without `waiting`, raise BlockingIOError if it is held."""
    while True:
        with path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is None:
                    raise
                waiting()
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_at(lock.fileno(), path):
                continue  # its last holder removed it; a newer one may be there
            try:
                yield
            finally:
                path.unlink()
            return


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
