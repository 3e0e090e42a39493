"""Tokens per second of our model against Hugging Face's DeepseekV3, alternating in one run.

    python bench/throughput.py [--quick] [--json] [--model moe_tiny] [--precision fp32 bf16]

Sides take turns step by step, so that a busy machine slows all of them; ratios of medians count.
"""

import argparse
import ctypes
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from breakdown import products_seconds, profile_groups
from rich.console import Console
from rich.table import Table
from sides import Side, our_side, peer_side
from torch import Tensor

from dsv3.config.compose import compose

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


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


def measure(options: argparse.Namespace, precision: str) -> dict[str, Any]:
    """All sides in one precision."""
    config = compose([f"model={options.model}"]).config
    tokens_per_step = config.schedule.micro_batch_size * config.schedule.sequence_length
    dtype = DTYPES[precision]
    modes = (False, True) if options.compile else (False,)
    sides = [
        make(config.model, config.optimizer, dtype, compiled=compiled)
        for make in (peer_side, our_side)
        for compiled in modes
    ]
    generator = torch.Generator().manual_seed(0)
    shape = (config.schedule.micro_batch_size, config.schedule.sequence_length + 1)
    drawn = [torch.randint(config.model.vocab_size, shape, generator=generator) for _ in range(4)]
    batches = [(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()) for ids in drawn]

    taken = race(sides, batches, rounds=options.rounds)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    best_peer = min(medians[name] for name in medians if name.startswith("transformers"))
    products, flops = products_seconds(config.model, tokens_per_step, dtype, rounds=options.rounds)
    return {
        "precision": precision,
        "threads": torch.get_num_threads(),
        "load": options.load,
        "tokens_per_step": tokens_per_step,
        "sides": {
            name: {
                "seconds": medians[name],
                "seconds_min": min(taken[name]),
                "seconds_max": max(taken[name]),
                "tokens_per_second": tokens_per_step / medians[name],
                "ratio_to_best_peer": best_peer / medians[name],
                "ratio_to_eager_peer": medians["transformers"] / medians[name],
                "share_of_product_rate": products / medians[name],
            }
            for name in medians
        },
        "products": {"seconds": products, "gflops_per_second": flops / products / 1e9},
        "profile": {
            side.name: profile_groups(lambda side=side: side.step(*batches[0]), steps=2)
            for side in sides
        },
    }


def show(console: Console, result: dict[str, Any]) -> None:
    """Print one precision."""
    rate = result["products"]["gflops_per_second"]
    if result["load"] > 0.5:
        console.print(f"[yellow]busy machine: {result['load']:.1f} other threads wanted to run")
    table = Table(
        title=f"{result['precision']}, {result['threads']} threads, "
        f"{result['tokens_per_step']} tokens a step",
        caption=f"products alone: {1e3 * result['products']['seconds']:.0f} ms at {rate:.0f} "
        "GFLOP/s, measured on the same shapes; their share of the step is the last column",
    )
    columns = ("", "ms a step", "min..max", "tokens/s", "x best peer", "x eager peer", "products")
    for column in columns:
        table.add_column(column, justify="left" if column == "" else "right", no_wrap=column == "")
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


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", default="moe_tiny")
    parser.add_argument("--precision", nargs="+", choices=sorted(DTYPES), default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=11, help="counted steps per side")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's choice")
    parser.add_argument("--quick", action="store_true", help="three rounds, nothing compiled")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    options = parser.parse_args()
    options.compile = not options.quick
    options.rounds = 3 if options.quick else options.rounds
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    keep_memory()
    options.load = os.getloadavg()[0]  # threads of others, in the minute before
    results = [measure(options, precision) for precision in options.precision]
    if options.json:
        json.dump({"model": options.model, "results": results}, sys.stdout, indent=2)
        return
    for result in results:
        show(Console(), result)


if __name__ == "__main__":
    main()
