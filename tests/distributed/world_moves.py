"""Runs phases of different world sizes in one process tree: imported once, forked for each rank.

`python world_moves.py DIRECTORY`: every source saves a checkpoint there and trains on; then every
target of another world size loads each of them and trains as many steps. DeepSpeed keeps its groups
for the life of a process, so a rank is a process of its own in every phase.
"""

import json
import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from distributed.trainer_cases import CLOCKED
from distributed.trainer_cases import Row as TrainerRow
from distributed.training_cases import state
from dsv3.checkpoint.manifest import Identity
from dsv3.checkpoint.store import CheckpointStore
from dsv3.checkpoint.tensors import entries
from dsv3.checkpoint.writer import Header, write_checkpoint
from dsv3.engine import distributed
from dsv3.train.loop import Trainer, train_step
from dsv3.train.position import Position
from numerics.small_training import training

SAVED_AFTER, FURTHER_STEPS = 3, 3
IDENTITY = Identity(run_id="worlds", config_sha256="e" * 64)


class Layout(NamedTuple):
    """A layout of the command line, and what of it is free besides."""

    parallelism: str
    zero_stage: int = 1
    accumulation: int = 1

    @property
    def row(self) -> TrainerRow:
        """How it trains: with biases that move and with an MTP module, in FP32."""
        return TrainerRow(
            self.parallelism, self.accumulation, self.zero_stage, "aux_free", "depth1", "fp32"
        )

    @property
    def name(self) -> str:
        """In one word."""
        return f"{self.parallelism}-zero{self.zero_stage}"


SOURCES = (
    Layout("single"),
    Layout("ep2", accumulation=2),
    Layout("ep2_dp2", 2),
    Layout("pp2_ep2:1f1b", accumulation=4),
)
TARGETS = (
    Layout("single"),
    Layout("ep2", 2),
    Layout("dp2"),
    Layout("ep4"),
    Layout("ep2_dp2"),
    Layout("ep2_dp2", 2),
    Layout("pp2:dualpipev", accumulation=4),
    Layout("pp2_ep2:dualpipev", accumulation=4),
)
MOVES = [(source, to) for source in SOURCES for to in TARGETS if source.row.world != to.row.world]


def go_on(trainer: Trainer) -> list[dict[str, Any]]:
    """The lines of the next steps."""
    lines = [train_step(trainer) for _ in range(FURTHER_STEPS)]
    return [{key: value for key, value in line.items() if key not in CLOCKED} for line in lines]


def saves(layout: Layout, home: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """Train, save, and train on."""
    with training(*layout.row.overrides) as trainer:
        for _ in range(SAVED_AFTER):
            train_step(trainer)
        write_checkpoint(
            home / layout.name,
            Header(IDENTITY, SAVED_AFTER, trainer.engine.optimizer_step, 1, {}),
            entries(trainer.engine.fragments()),
            state=trainer.position.state(),
            rank_state={},
            collective=trainer.ranks,
        )
        tensors = dict(state("saved", trainer.engine))
        return report(trainer), tensors


def loads(source: Layout, layout: Layout, home: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """Load what another layout saved, and train on."""
    with training(*layout.row.overrides) as trainer:
        store = CheckpointStore(home / source.name, IDENTITY, collective=trainer.ranks)
        checkpoint = store.find_newest().checkpoint
        assert checkpoint is not None
        optimizer_step = checkpoint.root.optimizer_step
        store.require(checkpoint, trainer.engine.expected_tensors(optimizer_step))
        trainer.engine.prepare_load(optimizer_step)
        store.load(checkpoint, trainer.engine.fragments())
        trainer.engine.finish_load()
        trainer.position = Position(**checkpoint.state)
        assert trainer.engine.optimizer_step == SAVED_AFTER
        tensors = dict(state("loaded", trainer.engine))
        return report(trainer), tensors


def report(trainer: Trainer) -> dict[str, Any]:
    """Shapes of all tensors, and the steps that follow."""
    shapes = {fragment.key: list(fragment.shape) for fragment in trainer.engine.fragments()}
    return {"shapes": shapes, "lines": go_on(trainer)}


def rank_of(world: int, rank: int, port: int, cases: dict[str, Any], home: Path) -> None:
    """Run the cases of a phase as one of its ranks."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with distributed.process_group("cpu"):
        for name, case in cases.items():
            values, tensors = case()
            (home / f"{name}.rank-{rank}.json").write_text(json.dumps(values))
            save_file(tensors, home / f"{name}.rank-{rank}.safetensors")


def phase(world: int, cases: dict[str, Any], home: Path) -> None:
    """Fork the ranks, wait for all of them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                rank_of(world, rank, port, cases, home)
                code = 0
            except BaseException:  # noqa: BLE001 - a forked process must not return
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert not any(codes), f"{world} ranks ended with {codes}"


def main(home: Path) -> None:
    """First everything is saved, then everything is loaded."""
    for world in (1, 2, 4):
        sources = [layout for layout in SOURCES if layout.row.world == world]
        cases = {f"{s.name}.saved": lambda s=s: saves(s, home) for s in sources}
        phase(world, cases, home)
    for world in (1, 2, 4):
        moves = [(source, to) for source, to in MOVES if to.row.world == world]
        cases = {f"{s.name}.{t.name}": lambda s=s, t=t: loads(s, t, home) for s, t in moves}
        phase(world, cases, home)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
