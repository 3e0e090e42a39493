"""Tokens per second of our training step against Hugging Face's DeepseekV3, in one run.

Sides take turns step by step, so that a busy machine slows all of them; ratios of medians count.
Ours is the step as `dsv3 train` makes it, engine included; the peer's is a plain loop.
"""

import ctypes
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench.breakdown import products_seconds, profile_groups
from bench.sides import EXPERTS, Side, our_side, peer_side
from dsv3.config.compose import compose
from dsv3.config.root import RunConfig
from dsv3.engine.distributed import process_group
from dsv3.train.build import WEIGHT_DTYPES

PRECISIONS = ("fp32", "bf16")


def keep_memory() -> None:
    """Let glibc keep freed memory for both sides; page faults would cost more than arithmetic."""
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)
        libc.mallopt(top_pad, 64 << 20)


def race(
    sides: Sequence[Side], batches: Sequence[tuple[Tensor, Tensor]], *, rounds: int
) -> dict[str, list[float]]:
    """Seconds of every step of every side, the sides taking turns; the warm-up is not counted."""
    taken: dict[str, list[float]] = {side.name: [] for side in sides}
    for side in sides:
        for batch in batches[:3]:
            side.step(*batch)
    for turn in range(rounds):
        batch = batches[turn % len(batches)]
        for side in sides:
            start = time.perf_counter()
            side.step(*batch)
            taken[side.name].append(time.perf_counter() - start)
    return taken


def measure(*, quick: bool, model: str = "moe_tiny") -> Iterator[dict[str, Any]]:
    """All sides, one precision after the other, on the configuration's own batch."""
    keep_memory()
    rounds = 3 if quick else 11
    with process_group("cpu"):
        for precision in PRECISIONS:
            minutes = "a minute" if quick else "some minutes, most of them compiling"
            sys.stderr.write(f"{precision}: {minutes}\n")
            overrides = [f"model={model}", f"precision={precision}"]
            yield _measure(compose(overrides).config, rounds, quick)


def _measure(config: RunConfig, rounds: int, quick: bool) -> dict[str, Any]:
    load = os.getloadavg()[0]  # threads of others, in the minute before
    schedule = config.schedule
    tokens_per_step = schedule.micro_batch_size * schedule.sequence_length
    batches = random_batches(config, count=4)
    experts = _fastest_experts(config, batches)
    modes = (False,) if quick else (False, True)
    sides = [peer_side(config, experts, compiled=compiled) for compiled in modes]
    with _engines(config, modes) as ours:
        sides += ours
        taken = race(sides, batches, rounds=rounds)
        profiles = {
            side.name: profile_groups(lambda side=side: side.step(*batches[0]), steps=2)
            for side in sides
        }
    medians = {name: statistics.median(times) for name, times in taken.items()}
    peers = {name: median for name, median in medians.items() if name.startswith("transformers")}
    dtype = WEIGHT_DTYPES[config.precision.recipe]
    products_s, flops = products_seconds(config.model, tokens_per_step, dtype, rounds=rounds)
    return {
        "precision": config.precision.recipe,
        "threads": torch.get_num_threads(),
        "load_before": load,
        "tokens_per_step": tokens_per_step,
        "peer_experts": experts,
        "sides": {
            name: {
                "seconds": medians[name],
                "seconds_min": min(taken[name]),
                "seconds_max": max(taken[name]),
                "tokens_per_second": tokens_per_step / medians[name],
                "ratio_to_eager_peer": peers["transformers"] / medians[name],
                "ratio_to_best_peer": min(peers.values()) / medians[name],
                "share_of_product_rate": products_s / medians[name],
            }
            for name in medians
        },
        "products": {"seconds": products_s, "gflops_per_second": flops / products_s / 1e9},
        "profile": profiles,
    }


def random_batches(config: RunConfig, *, count: int) -> list[tuple[Tensor, Tensor]]:
    """Micro batches of random tokens: input ids and labels."""
    generator = torch.Generator().manual_seed(0)
    shape = (config.schedule.micro_batch_size, config.schedule.sequence_length + 1)
    vocab_size = config.model.vocab_size
    drawn = [torch.randint(vocab_size, shape, generator=generator) for _ in range(count)]
    return [(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()) for ids in drawn]


def _fastest_experts(config: RunConfig, batches: Sequence[tuple[Tensor, Tensor]]) -> str:
    """The peer's fastest implementation of the experts here and in this precision."""
    sides = [peer_side(config, experts, compiled=False) for experts in EXPERTS]
    for side, experts in zip(sides, EXPERTS, strict=True):
        side.name = experts
    taken = race(sides, batches, rounds=3)
    return min(EXPERTS, key=lambda experts: statistics.median(taken[experts]))


@contextmanager
def _engines(config: RunConfig, modes: Sequence[bool]) -> Iterator[list[Side]]:
    """Our sides, each with an engine that is let go of at the end."""
    built = [our_side(config, compiled=compiled) for compiled in modes]
    try:
        yield [side for side, _ in built]
    finally:
        for _, engine in built:
            engine.close()


def show(result: dict[str, Any]) -> None:
    """Print one precision."""
    console = Console(width=max(100, Console().width))
    rate = result["products"]["gflops_per_second"]
    if result["load_before"] > 0.5:
        console.print(
            f"[yellow]busy machine: {result['load_before']:.1f} other threads wanted to run"
        )
    table = Table(
        title=f"{result['precision']}, {result['threads']} threads, "
        f"{result['tokens_per_step']} tokens a step; experts of the peer: {result['peer_experts']}",
        caption=f"products alone: {1e3 * result['products']['seconds']:.0f} ms at {rate:.0f} "
        "GFLOP/s, measured on the same shapes; their share of the step is the last column",
    )
    columns = ("", "ms a step", "min..max", "tokens/s", "x best peer", "x eager peer", "GEMM")
    for column in columns:
        table.add_column(column, justify="left" if column == "" else "right", no_wrap=True)
    for name, side in result["sides"].items():
        table.add_row(
            name,
            f"{1e3 * side['seconds']:.0f}",
            f"{1e3 * side['seconds_min']:.0f}..{1e3 * side['seconds_max']:.0f}",
            f"{side['tokens_per_second']:,.0f}",
            f"{side['ratio_to_best_peer']:.2f}",
            f"{side['ratio_to_eager_peer']:.2f}",
            f"{side['share_of_product_rate']:.0%}",
        )
    console.print(table)
    groups = Table(title="where the time goes")
    groups.add_column("", no_wrap=True)
    names = list(result["profile"])
    for name in names:
        groups.add_column(name, justify="right")
    for group in result["profile"][names[-1]]:
        shares = (result["profile"][name][group] for name in names)
        groups.add_row(group, *(f"{share:.0%}" for share in shares))
    console.print(groups)
