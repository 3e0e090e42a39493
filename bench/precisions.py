"""What a training step costs in every precision that a CPU has, emulated FP8 among them.

The emulation is for studies on a CPU, where FP8 saves nothing: its bar is three times the step in
FP32.
"""

from collections.abc import Iterator
from typing import Any

from bench.mechanisms import compare, show
from bench.throughput import keep_memory
from dsv3.engine.distributed import process_group

FP8 = "precision=fp8_block_emulated"
CHOICES = [
    "precision=fp32",
    "precision=bf16",
    FP8,
    f"{FP8} precision.dgrad_tiling=block",
    f"{FP8} precision.scales=fp32",
    f"{FP8} precision.accumulate_bits=14",
]

__all__ = ["measure", "show"]


def measure(*, quick: bool) -> Iterator[dict[str, Any]]:
    """Each model in its turn."""
    keep_memory()
    with process_group("cpu"):
        for model in ("moe_nano", "moe_tiny"):
            yield compare(model, CHOICES, rounds=3 if quick else 11)
