"""Cases about the loop: whole training steps of every arm in every layout.

A row is (layout, accumulation, ZeRO stage, arm, MTP, precision); together they meet every pair of
values of two of these at least once where a layout allows it. The rows of one process are the
references, one for each arm, MTP and precision that occurs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from dsv3.train.loop import train_step
from numerics.small_training import training

STEPS, SEQUENCES = 10, 16
CLOCKED = ("tokens_per_second", "checkpoint_stall_s")


class Row(NamedTuple):
    """One way to train; the layout of a pipeline is followed by its schedule."""

    layout: str
    accumulation: int
    zero_stage: int
    arm: str
    mtp: str
    precision: str

    @property
    def name(self) -> str:
        """The row in one word."""
        return f"trainer {self.layout} acc{self.accumulation} zero{self.zero_stage} {self.what}"

    @property
    def what(self) -> str:
        """What is trained, however it is laid out."""
        return f"{self.arm} {self.mtp} {self.precision}"

    @property
    def world(self) -> int:
        """Ranks."""
        return {"single": 1, "ep2": 2, "dp2": 2, "pp2": 2}.get(self.parallelism, 4)

    @property
    def parallelism(self) -> str:
        """The layout without its schedule."""
        return self.layout.partition(":")[0]

    @property
    def overrides(self) -> list[str]:
        """The row as a user would type it."""
        arm, _, counts = self.arm.partition(":")
        schedule = self.layout.partition(":")[2]
        stages = int(self.layout[2]) if schedule else 1
        return [
            f"parallelism={self.parallelism}",
            f"parallelism.zero_stage={self.zero_stage}",
            *([f"parallelism.pipeline_schedule={schedule}"] if schedule else []),
            "model.num_hidden_layers=4",  # one for each part of a pipeline, the first one dense
            f"schedule.global_batch_size={SEQUENCES}",
            f"schedule.batch_size_quantum={SEQUENCES}",
            f"schedule.micro_batch_size={SEQUENCES * stages // self.world // self.accumulation}",
            f"schedule.total_tokens={STEPS * SEQUENCES * 12}",
            # Rounding grows through large weights, and with the way that weights have come.
            "model.initializer_range=0.08",
            "schedule.lr=1e-4",
            f"balance={arm}",
            *([f"balance.batch_counts={counts}"] if counts else []),
            f"mtp={self.mtp}",
            f"precision={self.precision}",
        ]


ROWS = (
    Row("ep2", 1, 1, "none", "off", "fp32"),
    Row("ep2", 4, 2, "aux_batch", "depth1", "fp32"),
    Row("dp2", 4, 1, "aux_loss", "depth1", "fp32"),
    Row("dp2", 1, 2, "aux_free_seq", "off", "bf16"),
    Row("ep2", 1, 2, "aux_free", "depth1", "bf16"),
    Row("dp2", 1, 1, "aux_loss_v2", "off", "fp32"),
    Row("ep4", 1, 2, "aux_loss", "depth1", "fp32"),
    Row("ep4", 4, 1, "aux_free", "off", "fp32"),
    Row("ep2_dp2", 1, 1, "aux_batch", "off", "fp32"),
    Row("ep2_dp2", 4, 2, "aux_loss_v2", "depth1", "fp32"),
    Row("ep2_dp2", 1, 2, "none", "depth1", "fp32"),
    Row("ep2_dp2", 4, 1, "aux_free_seq", "depth1", "fp32"),
    Row("ep4", 4, 2, "aux_batch:previous_step", "off", "bf16"),
    Row("ep2_dp2", 1, 1, "aux_free", "off", "bf16"),
    Row("pp2:1f1b", 1, 1, "none", "off", "fp32"),
    Row("pp2:1f1b", 4, 1, "aux_batch", "depth1", "fp32"),
    Row("pp2:dualpipev", 4, 1, "aux_loss", "depth1", "fp32"),
    Row("pp2:dualpipev", 8, 1, "aux_free", "off", "fp32"),
    Row("pp2:1f1b", 8, 1, "aux_free", "depth1", "bf16"),
    Row("pp4:1f1b", 8, 1, "aux_free_seq", "depth1", "fp32"),
    Row("pp2_ep2:1f1b", 2, 1, "aux_loss_v2", "depth1", "fp32"),
    Row("pp2_ep2:1f1b", 8, 1, "aux_free", "off", "fp32"),
    Row("pp2_ep2:dualpipev", 4, 1, "aux_batch", "depth1", "fp32"),
    Row("pp2_ep2:dualpipev", 8, 1, "none", "depth1", "fp32"),
    Row("pp2_ep2:dualpipev", 4, 1, "aux_free", "off", "bf16"),
    Row("pp2_dp2:dualpipev", 4, 1, "aux_batch:previous_step", "off", "bf16"),
)


def reference_of(row: Row) -> Row:
    """The same training in one process."""
    return row._replace(layout="single", accumulation=1, zero_stage=1)


def train(row: Row) -> tuple[Any, dict[str, Tensor]]:
    """The lines of all steps, and the biases after them."""
    with training(*row.overrides) as trainer:
        lines = [train_step(trainer) for _ in range(STEPS)]
        biases = dict(zip(trainer.layers.names, trainer.layers.biases().unbind(), strict=True))
        biases = {name: bias_E.clone() for name, bias_E in biases.items()}
    return [{k: v for k, v in line.items() if k not in CLOCKED} for line in lines], biases


def _cases() -> dict[int, dict[str, Callable[[], Any]]]:
    rows = [*dict.fromkeys(map(reference_of, ROWS)), *ROWS]
    return {
        world: {row.name: partial(train, row) for row in rows if row.world == world}
        for world in (1, 2, 4)
    }


TRAINER_CASES = _cases()
