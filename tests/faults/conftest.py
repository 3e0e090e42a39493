"""What several of these files begin with: a text, and ranks that run in this process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dsv3.commands import train as train_verb
from dsv3.train import worker
from faults.small_run import launch_here, write_text


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.jsonl")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for each other take minutes where others use the cores too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def ranks_here(one_thread: None) -> Iterator[None]:
    """`dsv3 train` runs its rank in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_verb, "launch", launch_here)
        patch.setattr(worker, "log_to_file", lambda run, name: None)  # it takes over logging
        yield
