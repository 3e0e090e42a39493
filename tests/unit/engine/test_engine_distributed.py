"""Starting and stopping the process group: quiet, without a port, as often as one likes."""

import os
import subprocess
import sys

import pytest

from dsv3.engine import distributed
from dsv3.errors import ConfigError
from patience import HANG_S

SCRIPT = """
import torch
from dsv3.engine import distributed
for _ in range(2):
    with distributed.process_group("cpu"):
        from dsv3.config.compose import compose
        from dsv3.engine.engine import TrainingEngine
        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.experts = torch.nn.Parameter(torch.ones(2, 3))
            def forward(self, x):
                return (self.experts * x).square().mean()
        for recipe in ("fp32", "bf16"):
            engine = TrainingEngine(
                Net(), compose([f"precision={recipe}"]).config, device="cpu",
                expert_parameter=lambda name: "experts" in name,
            )
            assert engine.train_step([(torch.ones(2, 3),)], lr=0.1).grad_norm > 0
            engine.close()
assert not torch.distributed.is_initialized()
"""


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in distributed.LAUNCHER_VARIABLES}
    kept.pop("DS_ACCELERATOR", None)
    return kept | {"OMP_NUM_THREADS": "1", "CXX": "/nonexistent", "CC": "/nonexistent"}


def test_two_processes_start_train_and_stop_at_once_without_a_word():
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(),
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=HANG_S)
        assert (process.returncode, output) == (0, "")


def test_half_a_launcher_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConfigError) as refused:
        distributed.start("cpu")
    text = str(refused.value)
    assert "MASTER_PORT is not set" in text
    assert "MASTER_ADDR is not set" in text


def test_a_second_stop_is_harmless():
    distributed.stop()
    distributed.stop()
    distributed.start("cpu")
