"""Cases about start.json: what a run starts from, hashed in every layout."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from dsv3.train.loop import Trainer
from dsv3.train.start_hashes import data_order_hash, weight_hashes
from numerics.small_training import training

WHAT = ["mtp=depth1", "balance=aux_free"]
SEQUENCES = 16
LAYOUTS = (
    ("single", 1, ""),
    ("ep2", 1, ""),
    ("ep2", 2, ""),
    ("dp2", 1, ""),
    ("dp2", 2, ""),
    ("pp2", 1, "1f1b"),
    ("pp2", 1, "dualpipev"),
    ("ep2_dp2", 1, ""),
    ("pp2_ep2", 1, "1f1b"),
)
PLANTED = "start planted"


def overrides_of(layout: str, zero_stage: int, schedule: str) -> list[str]:
    """A layout as a user would type it."""
    stages = 2 if schedule else 1
    world = _world(layout)
    return [
        f"parallelism={layout}",
        f"parallelism.zero_stage={zero_stage}",
        *([f"parallelism.pipeline_schedule={schedule}"] if schedule else []),
        "model.num_hidden_layers=4",
        f"schedule.global_batch_size={SEQUENCES}",
        f"schedule.batch_size_quantum={SEQUENCES}",
        f"schedule.micro_batch_size={SEQUENCES * stages // world // 4}",
        f"schedule.total_tokens={8 * SEQUENCES * 12}",
    ]


def hashes(trainer: Trainer, samples: Any = None, fingerprint: str = "text") -> dict[str, str]:
    """Everything start.json holds, of a trainer at its first step."""
    config, ranks = trainer.config, trainer.ranks
    samples = trainer.samples if samples is None else samples
    order = data_order_hash(config, samples, ranks, data_fingerprint=fingerprint)
    return weight_hashes(config, trainer.engine, ranks) | {"data_order": order}


class Swapped:
    """Two of the samples in each other's place."""

    def __init__(self, samples: Any, a: int, b: int) -> None:
        self._samples, self._places = samples, {a: b, b: a}

    def __getitem__(self, n: int) -> Any:
        return self._samples[self._places.get(n, n)]


def start(*words: str) -> tuple[Any, dict[str, Any]]:
    """The hashes of a run."""
    with training(*words) as trainer:
        return hashes(trainer), {}


def planted(*words: str) -> tuple[Any, dict[str, Any]]:
    """The hashes of a run, and what they are after each of several faults, undone in between."""
    with training(*words) as trainer:
        found = {"sound": hashes(trainer)}
        last = trainer.ranks.rank == trainer.ranks.size - 1
        for part, layer in (("model", "layers.2."), ("mtp", "layers.4.")):
            masters = [
                fragment.data.view(torch.int32)
                for fragment in trainer.engine.fragments()
                if fragment.key.startswith(f"master/model.{layer}")
            ]
            # On one rank alone, in the last bit of one element.
            if last:
                masters[0][-1] ^= 1
            found[f"bit of {part}"] = hashes(trainer)
            if last:
                masters[0][-1] ^= 1
        a, b = 3, 37  # of different steps, and of different ranks
        found["two samples"] = hashes(trainer, Swapped(trainer.samples, a, b))
        found["text"] = hashes(trainer, fingerprint="another text")
        found["undone"] = hashes(trainer)
    return found, {}


def name_of(layout: str, zero_stage: int, schedule: str) -> str:
    """A case in one word."""
    return f"start {layout} zero{zero_stage} {schedule}".rstrip()


def _world(layout: str) -> int:
    return {"single": 1, "ep2": 2, "dp2": 2, "pp2": 2}.get(layout, 4)


def _cases(world: int) -> dict[str, Callable[[], Any]]:
    cases: dict[str, Callable[[], Any]] = {
        name_of(*row): partial(start, *WHAT, *overrides_of(*row))
        for row in LAYOUTS
        if _world(row[0]) == world
    }
    base = overrides_of("single", 1, "")
    if world == 1:
        cases["start mtp off"] = partial(start, "balance=aux_free", "mtp=off", *base)
        cases["start aux_batch"] = partial(start, "mtp=depth1", "balance=aux_batch", *base)
        cases["start bf16"] = partial(start, *WHAT, *base, "precision=bf16")
        cases["start seed 2"] = partial(start, *WHAT, *base, "seed=2")
        steps = ["schedule.global_batch_size=32", "schedule.micro_batch_size=2"]
        cases["start other batch"] = partial(start, *WHAT, *base, *steps)
        cases[PLANTED] = partial(planted, *WHAT, *base)
    if world == 2:
        cases[PLANTED] = partial(planted, *WHAT, *overrides_of("dp2", 1, ""))
    return cases


START_CASES = {world: _cases(world) for world in (1, 2, 4)}
