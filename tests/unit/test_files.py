"""What is written is on the disk in full, or not there at all, whichever call fails."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dsv3.errors import CapacityError
from dsv3.files import (
    new_directory,
    probe_writable,
    reason,
    storage_error,
    write_atomically,
    write_synced,
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the file system, in order: syncs by the kind of what is synced."""
    asked: list[str] = []

    def noted(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(first: int | str | Path, *rest: object) -> object:
            kind = os.fstat(first).st_mode & 0o170000 if isinstance(first, int) else 0
            what = {0o040000: " directory", 0o100000: " file"}.get(kind, "")
            asked.append(f"{name}{what}")
            return real(first, *rest)

        return call

    for name in ("fsync", "rename", "replace"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    return asked


def fill(directory: Path) -> None:
    write_synced(directory / "a", [b"one"])


def test_a_new_file_is_synced_and_an_old_one_stays(tmp_path: Path, calls: list[str]) -> None:
    path = tmp_path / "file"
    write_synced(path, [b"one", memoryview(b"two"), b""])
    assert path.read_bytes() == b"onetwo"
    assert calls == ["fsync file"]
    with pytest.raises(FileExistsError):
        write_synced(path, [b"three"])
    assert path.read_bytes() == b"onetwo"


def test_a_file_is_synced_before_it_takes_its_name(tmp_path: Path, calls: list[str]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert calls == ["fsync file", "replace", "fsync directory"]


def test_a_directory_is_synced_before_it_takes_its_name(tmp_path: Path, calls: list[str]) -> None:
    final = tmp_path / "final"
    with new_directory(final, tmp_path / "temporary", mode=0o700):
        fill(tmp_path / "temporary")
        assert not final.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert (final / "a").read_bytes() == b"one"
    assert final.stat().st_mode & 0o777 == 0o700
    assert calls == ["fsync file", "fsync directory", "rename", "fsync directory"]


@pytest.mark.parametrize("function", ["fsync", "replace", "write"])
def test_a_refused_file_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    if function == "write":
        monkeypatch.setattr("dsv3.files.memoryview", refuse, raising=False)
    else:
        monkeypatch.setattr(os, function, refuse)
    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(path, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_a_directory_that_cannot_be_filled_or_named_is_gone(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    fill_taken = taken / "theirs"
    taken.mkdir()
    fill_taken.touch()
    with pytest.raises(OSError, match="not empty"), new_directory(taken, tmp_path / "temporary"):
        fill(tmp_path / "temporary")
    with pytest.raises(KeyError), new_directory(tmp_path / "b", tmp_path / "temporary"):
        raise KeyError("while it is filled")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert [path.name for path in taken.iterdir()] == ["theirs"]


def test_probing_leaves_nothing_and_says_why_not(tmp_path: Path) -> None:
    probe_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match=r"/proc"):
        probe_writable(Path("/proc"))


def test_the_reason_is_said_without_number_and_path_and_is_never_none() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some/path")
    assert reason(full) == "No space left on device"
    assert reason(OSError("not a regular file")) == "not a regular file"
    assert reason(ValueError("embedded null byte")) == "embedded null byte"
    error = storage_error("run_root=x", full, "free some", what="cannot be written")
    assert isinstance(error, CapacityError)
    assert str(error) == "run_root=x: cannot be written: no space left on device; free some"
    plain = storage_error(Path("x"), full, "free some")
    assert str(plain) == "x: no space left on device; free some"


def test_a_writer_replaces_what_it_left_when_it_was_killed(tmp_path: Path) -> None:
    (tmp_path / ".figures.json.training").write_text("half of i")
    write_atomically(tmp_path / "figures.json", b"all of it", writer="training")
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
    assert (tmp_path / "figures.json").read_bytes() == b"all of it"
