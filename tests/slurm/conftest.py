"""A real Slurm for the tests marked `slurm`, started once; an error, not a skip, where it cannot.

`DSV3_SLURM_TESTS=skip` is the one way to leave these tests out, and pytest says that it was taken.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.cluster import Cluster
from slurm.configuration import Shape
from slurm.lying_scheduler import LyingScheduler
from slurm.small_disk import SmallDisk

# Read before any fixture clears the project's variables.
SKIP = os.environ.get("DSV3_SLURM_TESTS", "")
SMALL_DISK_MB = 16


@pytest.fixture(scope="session")
def started_cluster(_isolated: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes; use `cluster`, which leaves them as they were."""
    if SKIP not in {"", "skip"}:
        pytest.fail(f"DSV3_SLURM_TESTS={SKIP}: `skip` or not set")
    if SKIP:
        pytest.skip("DSV3_SLURM_TESTS=skip: nothing was tried on a real Slurm")
    base = tmp_path_factory.mktemp("slurm")
    for directory in (base, *base.parents[:2]):
        directory.chmod(0o755)  # munged refuses a socket that others cannot reach
    cluster = Cluster(base, Shape())
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


@pytest.fixture
def cluster(started_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster: idle and whole before the test, and again after it."""
    yield started_cluster
    started_cluster.restore()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A file system of 16 MiB that can be filled."""
    disk = SmallDisk(tmp_path / "small", SMALL_DISK_MB)
    yield disk
    disk.close()


@pytest.fixture
def liar(tmp_path: Path) -> Iterator[LyingScheduler]:
    """A scheduler that tells the truth until its `lies` or `will` say otherwise."""
    directory = tmp_path / "liar"
    directory.mkdir()
    started = LyingScheduler(directory).start()
    yield started
    started.close()
