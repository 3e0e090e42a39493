"""Cases about faults on one rank of two: what is not finite, and bits that flip."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from dsv3.errors import NumericHealthError
from dsv3.train.loop import Trainer, train_step
from numerics.poison import SITES, differing, everything, holds, poisoned
from numerics.small_training import training

FAULTY = 1  # the rank
FLIPS = 64
DENSE, EXPERT = "model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.experts.down_proj"
LAYOUTS = {
    "ep2 zero1": ["parallelism=ep2", "parallelism.zero_stage=1"],
    "dp2 zero2": ["parallelism=dp2", "parallelism.zero_stage=2"],
    "ep2 zero2 bf16": ["parallelism=ep2", "parallelism.zero_stage=2", "precision=bf16"],
    "dp2 zero1 bf16": ["parallelism=dp2", "parallelism.zero_stage=1", "precision=bf16"],
}
PIPELINES = {
    "pp2 1f1b": ["parallelism=pp2"],
    "pp2 dualpipev bf16": [
        "parallelism=pp2",
        "parallelism.pipeline_schedule=dualpipev",
        "model.num_hidden_layers=4",
        "precision=bf16",
    ],
}
# Each is on one of the stages; the loss of a pipeline is no output of the whole model.
PIPELINE_SITES = tuple(site for site in SITES if site != "loss")
MORE = [
    "balance=aux_free_seq",
    "mtp=depth1",
    "schedule.micro_batch_size=1",
    "schedule.batch_size_quantum=4",
]
WORDS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
EXPONENT = {torch.float32: range(23, 31), torch.bfloat16: range(7, 15)}
MANTISSA = {torch.float32: range(23), torch.bfloat16: range(7)}


def flip(flat: Tensor, element: int, bit: int) -> None:
    """Flip one bit in place; not the sign's."""
    flat.detach().view(WORDS[flat.dtype])[element] ^= 1 << bit


def untimed(line: dict[str, Any]) -> list[str]:
    """A line to compare, NaN equal to itself."""
    return [f"{key} {value}" for key, value in line.items() if key != "tokens_per_second"]


def non_finite(overrides: list[str]) -> tuple[Any, dict[str, Tensor]]:
    """At every site on one rank: was it skipped, did anything change, is the next step the same."""
    rank, found = torch.distributed.get_rank(), {}
    in_pipeline = any("=pp" in override for override in overrides)
    skipping = [*overrides, *MORE, "health.on_non_finite=skip"]
    with training(*skipping) as trainer, training(*skipping) as twin:
        train_step(trainer), train_step(twin)
        module = trainer.engine.module
        for site in PIPELINE_SITES if in_pipeline else SITES:
            faulty = holds(module, site) if in_pipeline else rank == FAULTY
            before = everything(trainer)
            told: list[Any] = []
            trainer.reporter.event = lambda name, told=told, **fields: told.append([name, fields])
            with poisoned(module, site, math.nan) if faulty else nullcontext() as poison:
                line = train_step(trainer)
            fired = 0 if poison is None else poison.fired
            changed = differing(everything(trainer), before)
            twin.position = trainer.position
            after, expected = untimed(train_step(trainer)), untimed(train_step(twin))
            found[site] = {
                "fired": fired,
                "line": untimed(line),
                "events": told,
                "changed": changed,
                "next": after == expected and not differing(everything(trainer), everything(twin)),
            }
    return found, {}


def flips(overrides: list[str]) -> tuple[Any, dict[str, Tensor]]:
    """Flip bits on one rank; what all ranks find, in the order of the flips, and what was done."""
    rank, done, found = torch.distributed.get_rank(), [], []
    with training(*overrides, *MORE) as trainer:
        train_step(trainer)
        dtype = trainer.model.get_parameter(DENSE).dtype
        clean = trainer.engine.differing_weights()
        draw = torch.Generator().manual_seed(1)
        for name in (DENSE, EXPERT):
            weights = trainer.model.get_parameter(name).detach().view(-1)
            for bits in (EXPONENT[dtype], MANTISSA[dtype]):
                for trial in range(FLIPS):
                    element = int(torch.randint(len(weights), (1,), generator=draw))
                    for undo in (False, True):
                        if rank == FAULTY:
                            flip(weights, element, bits[trial % len(bits)])
                        if not undo:
                            found.append(trainer.engine.differing_weights())
                    done.append([FAULTY, "weights", name, element, 1])
        if rank == FAULTY:  # its partition of a group that every rank has
            flip(trainer.engine._zero.flat_groups()[0].master, 3, 22)
        masters = trainer.engine.differing_weights()
    return {"clean": clean, "done": done, "found": found, "masters": masters}, {}


def stopped(overrides: list[str], every: int) -> tuple[Any, dict[str, Tensor]]:
    """A weight of one rank that is wrong in every forward pass from step 2 on ends the run."""
    rank = torch.distributed.get_rank()
    with training(*overrides, *MORE, f"health.replica_check_steps={every}") as trainer:
        train_step(trainer)
        if rank == FAULTY:
            weights = trainer.model.get_parameter(DENSE).detach().view(-1)
            trainer.model.register_forward_pre_hook(lambda _m, _i: (weights[5].mul_(1.5), None)[1])
        return {"text": _stopped_at(trainer), "step": trainer.position.step}, {}


def _stopped_at(trainer: Trainer) -> str:
    try:
        for _ in range(6):
            train_step(trainer)
    except NumericHealthError as error:
        return f"{error.exit_code} {error}"
    return ""


def _cases() -> dict[str, Callable[[], Any]]:
    cases: dict[str, Callable[[], Any]] = {}
    for name, overrides in LAYOUTS.items():
        cases[f"health non-finite {name}"] = partial(non_finite, overrides)
        cases[f"health flips {name}"] = partial(flips, overrides)
    for name, overrides in PIPELINES.items():
        cases[f"health non-finite {name}"] = partial(non_finite, overrides)
    for every in (1, 3):
        cases[f"health stopped {every}"] = partial(stopped, LAYOUTS["dp2 zero2"], every)
    return cases


HEALTH_CASES: dict[int, dict[str, Callable[[], Any]]] = {1: {}, 2: _cases(), 4: {}}
