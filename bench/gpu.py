"""`python -m bench.gpu`: our training step in BF16 and FP8 against Hugging Face's, on one GPU.

Sides take turns step by step in one process, so that clocks and heat are the same for all; medians
of many steps count. Ours is the step of `dsv3 train`, engine, clipping and FP32 masters included;
the peer is a plain loop with AdamW on BF16 weights. Peak memory is measured side by side with
nothing of another on the GPU. Exits 3 where there is no GPU.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench.sides import Step, peer_side
from dsv3.config.compose import compose
from dsv3.config.root import RunConfig
from dsv3.engine.distributed import process_group
from dsv3.errors import CapacityError
from dsv3.plan.flops import training_flops_per_token
from dsv3.train.build import build_engine, build_model

LR = 1e-4
DEVICE = torch.device("cuda")
MODELS = ("moe_1b", "moe_3b")
WARM_UP = 5
# Dense BF16 FLOP/s by part of the GPU's name, from its data sheet; utilisation is of these for FP8
# too, so that one figure compares with another.
PEAK_BF16 = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "H800": 989e12, "B200": 2250e12}
OURS = {
    "dsv3, torch bf16": ["precision=bf16"],
    "dsv3, te bf16": ["precision=bf16", "precision.backend=te"],
    "dsv3, te fp8_block": ["precision=fp8_block"],
    "dsv3, te fp8_current": ["precision=fp8_current"],
}
PEER = "transformers, bf16"
NO_GPU = (
    "error[capacity]: bench-gpu: no CUDA device here; nothing was measured, and docs/results/gpu.md"
    " says so; run it beside a Hopper GPU"
)


def main() -> int:
    """Measure and print; 3 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--rounds", type=int, default=25, help="steps of each side that count")
    parser.add_argument("--sequences", type=int, default=4, help="sequences in a step")
    parser.add_argument("--length", type=int, default=2048, help="tokens in a sequence")
    parser.add_argument("--model", choices=MODELS, help="one model instead of both")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write(f"{NO_GPU}\n")
        return CapacityError.exit_code
    found = []
    with process_group(DEVICE):
        for model in MODELS if options.model is None else (options.model,):
            found.append(measure(model, options.rounds, options.sequences, options.length))
            if not options.json:
                show(found[-1])
    if options.json:
        json.dump(found, sys.stdout, indent=2)
    return 0


def measure(model: str, rounds: int, sequences: int, length: int) -> dict[str, Any]:
    """All sides of one model: memory one after the other, times in turn."""
    shape = [
        f"model={model}",
        "parallelism=single",
        f"schedule.micro_batch_size={sequences}",
        f"schedule.sequence_length={length}",
    ]
    batches = random_batches(compose(shape).config, sequences, length)
    sides: dict[str, Any] = {}
    refused = {}
    for name, overrides in {PEER: ["precision=bf16"], **OURS}.items():
        config = compose([*shape, *overrides]).config
        try:
            sides[name] = {"peak_bytes": peak_memory(name, config, batches), "config": config}
        except CapacityError as error:
            refused[name] = str(error)
    seconds = race({name: side["config"] for name, side in sides.items()}, batches, rounds)
    tokens = sequences * length
    flops = training_flops_per_token(compose(shape).config.model, sequence_length=length)
    peak = peak_flops(torch.cuda.get_device_name())
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "model": model,
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "tokens_per_step": tokens,
        "rounds": rounds,
        "refused": refused,
        "sides": {
            name: {
                "seconds": median,
                "seconds_min": min(seconds[name]),
                "seconds_max": max(seconds[name]),
                "tokens_per_second": tokens / median,
                "mfu": None if peak is None else flops * tokens / median / peak,
                "peak_bytes": sides[name]["peak_bytes"],
                "ratio_to_peer": medians[PEER] / median,
            }
            for name, median in medians.items()
        },
    }


def random_batches(config: RunConfig, sequences: int, length: int) -> list[tuple[Tensor, Tensor]]:
    """Micro batches on the GPU, the same for every side."""
    generator = torch.Generator().manual_seed(0)
    shape = (sequences, length + 1)
    drawn = [
        torch.randint(config.model.vocab_size, shape, generator=generator).to(DEVICE)
        for _ in range(4)
    ]
    return [(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()) for ids in drawn]


@contextmanager
def side(name: str, config: RunConfig) -> Iterator[Step]:
    """A training step that is on the GPU while the block lasts."""
    close: Callable[[], None] = gc.collect
    if name == PEER:
        step = peer_side(config, "grouped_mm", compiled=False, device=DEVICE).step
    else:
        engine = build_engine(build_model(config, DEVICE), config, DEVICE)
        close = engine.close

        def step(input_ids_BS: Tensor, labels_BS: Tensor) -> float:
            return engine.train_step([(input_ids_BS, labels_BS)], lr=LR).loss

    try:
        yield step
    finally:
        close()
        del step
        gc.collect()
        torch.cuda.empty_cache()


def peak_memory(name: str, config: RunConfig, batches: list[tuple[Tensor, Tensor]]) -> int:
    """Largest memory that tensors took in steps after the first, alone on the GPU."""
    with side(name, config) as step:
        step(*batches[0])
        torch.cuda.reset_peak_memory_stats()
        for batch in batches[:2]:
            step(*batch)
        return torch.cuda.max_memory_allocated()


def race(
    configs: dict[str, RunConfig], batches: list[tuple[Tensor, Tensor]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of every step of every side.

    Sides that do not fit beside each other would be measured with another's memory gone: each pair
    of ours and the peer is on the GPU by itself, and the peer's times are those of all pairs.
    """
    taken: dict[str, list[float]] = {name: [] for name in configs}
    others = [name for name in configs if name != PEER]
    for other in others:
        with side(PEER, configs[PEER]) as peer, side(other, configs[other]) as ours:
            for turn in range(WARM_UP + rounds):
                for name, step in ((PEER, peer), (other, ours)):
                    seconds = timed(step, batches[turn % len(batches)])
                    if turn >= WARM_UP:
                        taken[name].append(seconds)
    return taken


def timed(step: Step, batch: tuple[Tensor, Tensor]) -> float:
    """Seconds of one step, the GPU idle before and after it."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    step(*batch)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_flops(name: str) -> float | None:
    """Dense BF16 FLOP/s of a GPU; None if it is not in the table."""
    return next((peak for part, peak in PEAK_BF16.items() if part in name), None)


def show(found: dict[str, Any]) -> None:
    """Print one model."""
    table = Table(
        title=f"{found['model']} on {found['gpu']}, torch {found['torch']}, CUDA {found['cuda']}:"
        f" {found['tokens_per_step']} tokens a step, medians of {found['rounds']}",
        title_justify="left",
    )
    columns = ("", "ms a step", "min..max", "tokens/s", "MFU of BF16", "peak GiB", "x peer")
    for column in columns:
        table.add_column(column, justify="left" if column == "" else "right", no_wrap=True)
    for name, row in found["sides"].items():
        table.add_row(
            name,
            f"{1e3 * row['seconds']:.1f}",
            f"{1e3 * row['seconds_min']:.1f}..{1e3 * row['seconds_max']:.1f}",
            f"{row['tokens_per_second']:,.0f}",
            "unknown GPU" if row["mfu"] is None else f"{row['mfu']:.1%}",
            f"{row['peak_bytes'] / 2**30:.1f}",
            f"{row['ratio_to_peer']:.2f}",
        )
    console = Console(width=max(110, Console().width))
    console.print(table)
    for name, why in found["refused"].items():
        console.print(f"{name}: not measured: {why}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
