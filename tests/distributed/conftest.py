"""One launch per world size for all tests of this directory, whichever process runs them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from distributed.ranks import Report, launch, reports_in


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, list[Report]]]:
    """By world size: what every rank reports, by case."""
    home = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        home = home.parent  # of all workers
    found: dict[int, dict[str, list[Report]]] = {}

    def of_world(world: int) -> dict[str, list[Report]]:
        if world not in found:
            directory = home / f"world{world}"
            with FileLock(f"{directory}.lock"):
                _launch_once(world, directory)
            found[world] = reports_in(directory, world)
        return found[world]

    return of_world


def _launch_once(world: int, directory: Path) -> None:
    ended = directory.with_suffix(".ended")
    if not ended.exists():
        directory.mkdir()
        try:
            launch(world, directory)
        except Exception as error:
            ended.write_text(str(error).splitlines()[0])  # told once in full, not started again
            raise
        ended.touch()
    assert ended.read_text() == "", f"{world} ranks were started before: {ended.read_text()}"
