"""What the load metrics cost: their parts as shares of the training step they belong to.

Counting happens inside the model's forward pass; it is measured alone, between steps, on scores and
expert ids of the step's shapes. The rest is measured where `dsv3 train` does it.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table

from bench.sides import LR
from bench.throughput import random_batches
from dsv3.config.compose import compose
from dsv3.config.root import RunConfig
from dsv3.engine.distributed import process_group
from dsv3.model.moe import MoE, PassLoad
from dsv3.model.router import Routing
from dsv3.ops.balance import count_per_sequence
from dsv3.ops.routing import count_saturated
from dsv3.train.alarms import Alarms
from dsv3.train.balancing import update_biases
from dsv3.train.build import build_engine, build_model
from dsv3.train.load import load_record, take_load

MODELS = ("moe_nano", "moe_tiny")
WARM_UP = 3

Result = TypeVar("Result")


class Stopwatch:
    """Seconds of named parts, one entry a step."""

    def __init__(self) -> None:
        self.taken: dict[str, list[float]] = {}

    def time(self, part: str, call: Callable[..., Result], *arguments: Any) -> Result:
        """What `call` returns."""
        begin_s = time.perf_counter()
        result = call(*arguments)
        self.taken.setdefault(part, []).append(time.perf_counter() - begin_s)
        return result

    def medians(self) -> dict[str, float]:
        """Median seconds of every part, without the warm-up."""
        return {part: statistics.median(taken[WARM_UP:]) for part, taken in self.taken.items()}


def measure(*, quick: bool) -> Iterator[dict[str, Any]]:
    """Each model in its turn, on its own batch, with the expert bias."""
    with process_group("cpu"):
        for model in MODELS:
            config = compose([f"model={model}", "balance=aux_free"]).config
            yield _measure(config, rounds=5 if quick else 21)


def _measure(config: RunConfig, *, rounds: int) -> dict[str, Any]:
    device, watch = torch.device("cpu"), Stopwatch()
    model = build_model(config, device)
    engine = build_engine(model, config, device)
    train, layers = partial(engine.train_step, lr=LR), model.moe_layers()
    routings = _routings(config, list(layers.values()))
    every_step = config.health.model_copy(update={"window_steps": 1})
    windows, judge = Alarms(config.health, layers), Alarms(every_step, layers)
    batches = random_batches(config, count=4)
    for step in range(1, WARM_UP + rounds + 1):
        watch.time("step", train, [batches[step % len(batches)]])
        load = watch.time("taking", take_load, layers)
        update_biases(layers, load, config.balance, gamma=config.balance.bias_update_speed)
        watch.time("figures", load_record, load, layers)
        watch.time("windows", windows.after_step, step, load)
        watch.time("judging", judge.after_step, step, load)
        watch.time("counting", _count, config, list(layers.values()), routings)
        take_load(layers)  # what `_count` counted is no step's
    engine.close()
    return {
        "model": config.model.name,
        "threads": torch.get_num_threads(),
        **_shares(config, watch),
    }


def _shares(config: RunConfig, watch: Stopwatch) -> dict[str, Any]:
    medians = watch.medians()
    step_s = medians.pop("step")
    alarms_s = medians.pop("windows") + medians.pop("judging") / config.health.window_steps
    parts_s = medians | {"alarms": alarms_s}
    # Counting is in the step already.
    whole_s = step_s + sum(parts_s.values()) - parts_s["counting"]
    return {
        "step_s": whole_s,
        "parts": {part: {"s": s, "share": s / whole_s} for part, s in parts_s.items()},
        "share": sum(parts_s.values()) / whole_s,
    }


@torch.no_grad()
def _routings(config: RunConfig, moes: Sequence[MoE]) -> list[Routing]:
    """What the routers make of random tokens."""
    tokens = config.schedule.micro_batch_size * config.schedule.sequence_length
    return [moe.router(torch.randn(tokens, config.model.hidden_size)) for moe in moes]


@torch.no_grad()
def _count(config: RunConfig, moes: Sequence[MoE], routings: Sequence[Routing]) -> None:
    """All that a forward pass does for the load: what the bias rule needs is a part of it."""
    for moe, routing in zip(moes, routings, strict=True):
        ids_BA = routing.expert_ids_TK.view(config.schedule.micro_batch_size, -1)
        counts_BE = count_per_sequence(ids_BA, config.model.n_routed_experts)
        saturated = count_saturated(routing.scores_TE, config.model.scoring_func)
        moe.record(PassLoad(counts_BE, saturated))


def show(result: dict[str, Any]) -> None:
    """Print one model."""
    console, table = Console(), Table()
    console.print(
        f"load metrics, {result['model']}, {result['threads']} threads:"
        f" {result['share']:.2%} of a step of {1e3 * result['step_s']:.1f} ms"
    )
    for column in ("", "us a step", "share"):
        table.add_column(column, justify="left" if column == "" else "right")
    for part, cost in result["parts"].items():
        table.add_row(part, f"{1e6 * cost['s']:.0f}", f"{cost['share']:.2%}")
    console.print(table)
