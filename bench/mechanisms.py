"""What every arm of balancing and MTP add to a training step, against a step without any of them.

Engines of one model take turns step by step, as in `throughput`; ratios of medians count.
"""

import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench.sides import LR, Side, Step
from bench.throughput import keep_memory, race, random_batches
from dsv3.config.compose import compose
from dsv3.config.options import catalogue
from dsv3.config.root import RunConfig
from dsv3.engine.distributed import process_group
from dsv3.train.balancing import update_biases
from dsv3.train.build import build_engine, build_model
from dsv3.train.load import take_load

MODELS = ("moe_nano", "moe_tiny")
PLAIN = "balance=none"


def measure(*, quick: bool) -> Iterator[dict[str, Any]]:
    """Each model in its turn, on its own batch."""
    keep_memory()
    arms = [f"balance={arm}" for arm in catalogue()["balance"] if f"balance={arm}" != PLAIN]
    choices = [PLAIN, *arms, f"{PLAIN} mtp=depth1"]
    with process_group("cpu"):
        for model in MODELS:
            yield compare(model, choices, rounds=3 if quick else 15)


def show(cost: dict[str, Any]) -> None:
    """Print the table of one model."""
    plain = next(iter(cost["choices"]))
    title = f"{cost['model']}: a step against one with {plain}, {cost['threads']} threads"
    table = Table(title=title, title_justify="left")
    for column in ("choice", "ms", "ratio"):
        table.add_column(column)
    for choice, row in cost["choices"].items():
        table.add_row(choice, f"{row['seconds'] * 1e3:.0f}", f"{row['ratio']:.2f}")
    Console().print(table)


def compare(model: str, choices: list[str], *, rounds: int) -> dict[str, Any]:
    """Median seconds of a step under each choice, and their ratios to the first; one group."""
    plain = choices[0]
    configs = {choice: compose([f"model={model}", *choice.split()]).config for choice in choices}
    with ExitStack() as stack:
        sides = [Side(choice, _step(config, stack)) for choice, config in configs.items()]
        taken = race(sides, random_batches(configs[plain], count=4), rounds=rounds)
    medians = {choice: statistics.median(times) for choice, times in taken.items()}
    return {
        "model": model,
        "threads": torch.get_num_threads(),
        "choices": {
            choice: {"seconds": median, "ratio": median / medians[plain]}
            for choice, median in medians.items()
        },
    }


def _step(config: RunConfig, stack: ExitStack) -> Step:
    """A step as `dsv3 train` makes it, counts and biases included."""
    device = torch.device("cpu")
    model = build_model(config, device)
    engine = build_engine(model, config, device)
    stack.callback(engine.close)
    layers, coeff = model.moe_layers(), torch.tensor(config.mtp.loss_coeff)

    def step(input_ids_BS: Tensor, labels_BS: Tensor) -> float:
        loss = engine.train_step([(input_ids_BS, labels_BS, coeff)], lr=LR).loss
        gamma = config.balance.bias_update_speed
        update_biases(layers, take_load(layers), config.balance, gamma=gamma)
        return loss

    return step
