"""Cases about the proof of a precision: what two ranks find together, what one of them broke."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.distributed
from torch import Tensor, nn

from dsv3.errors import NumericHealthError
from dsv3.model.backends.emulated import EmulatedExperts, EmulatedLinear
from dsv3.train.loop import Trainer, train_step
from numerics.small_training import training

FAULTY = 1  # the rank
IDLE = "model.layers.1.mlp"  # its experts on this rank get no token
LAYOUTS = {"ep2": ["parallelism=ep2"], "pp2": ["parallelism=pp2"]}
MORE = [
    "precision=fp8_block_emulated",
    "balance=aux_free",
    "mtp=depth1",
    "schedule.micro_batch_size=1",
    "schedule.batch_size_quantum=4",
]


def proved(overrides: list[str]) -> tuple[Any, dict[str, Tensor]]:
    """The products of a step over both ranks, its ranges, and what a broken layer is called."""
    with training(*overrides, *MORE) as trainer:
        if overrides == LAYOUTS["ep2"]:
            leave_idle(trainer)
        idle: list[str] = []
        of_proof = trainer.proof._idle
        trainer.proof._idle = lambda: (idle.extend(of_proof()), of_proof())[1]
        found = kept(trainer)
        line = train_step(trainer)
        own = [name for name, _ in trainer.engine.module.named_parameters()]
        broken = last_linear(trainer)
        if torch.distributed.get_rank() == FAULTY:
            make_plain(trainer.engine.module, broken)
        trainer.proof._due = True
        text = ""
        try:
            train_step(trainer)
        except NumericHealthError as error:
            text = str(error)
        products = {f"{gemm.layer} {gemm.kind} {gemm.left}" for gemm in found[0].calls}
        values = {
            "products": sorted(products),
            "promised": sorted(map(list, found[0].promised)),
            "broken": found[0].broken,
            "ranges": line["fp8_ranges"],
            "own": own,
            "idle": idle,
            "text": text,
            "layer": broken,
        }
    return values, {}


def kept(trainer: Trainer) -> list[Any]:
    """What the proof finds, as it is found."""
    found: list[Any] = []
    judge = trainer.proof._judge
    trainer.proof._judge = lambda *arguments: (found.append(judge(*arguments)), found[-1])[1]
    return found


def leave_idle(trainer: Trainer) -> None:
    """Send the tokens of a layer to the other rank's experts, whose kernel is then not called."""
    moe = trainer.layers[IDLE]
    bias_E = moe.router.e_score_correction_bias
    bias_E[len(bias_E) // 2 :] = -9.0
    experts = moe.experts
    assert isinstance(experts, EmulatedExperts)
    in_fp8 = experts.forward

    def forward(rows_RD: Tensor, row_weights_R: Tensor, rows_per_expert_e: Tensor) -> Tensor:
        if int(rows_per_expert_e.sum()) > 0:
            return in_fp8(rows_RD, row_weights_R, rows_per_expert_e)
        return rows_RD * 0 + (experts.gate_up_proj.sum() + experts.down_proj.sum()) * 0

    experts.forward = forward


def last_linear(trainer: Trainer) -> str:
    """The last FP8 layer of this rank's part."""
    modules = trainer.engine.module.named_modules()
    return [name for name, module in modules if isinstance(module, EmulatedLinear)][-1]


def make_plain(model: nn.Module, name: str) -> None:
    """Put one of torch's layers in its place, with its weight."""
    parent, _, own = name.rpartition(".")
    linear = nn.Linear(1, 1, bias=False)
    linear.weight = model.get_submodule(name).weight
    setattr(model.get_submodule(parent), own, linear)


PROOF_CASES: dict[int, dict[str, Callable[[], Any]]] = {
    1: {},
    2: {f"proof {name}": partial(proved, layout) for name, layout in LAYOUTS.items()},
    4: {},
}
