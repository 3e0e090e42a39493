"""Peak memory of real steps against what `dsv3 plan` and its trace say, and what a trace costs.

Ranks train on this machine's CPU in processes of their own. What torch's allocator gives out in
them is counted to the byte (allocations.c): two steps, of which the second counts, from its first
micro batch to the end of its update. The rows that reached a rank's experts in that step are what
the predictions are told as their imbalance; all else they take from the configuration.
"""

import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import allocations
from dsv3.config.compose import compose
from dsv3.plan.peak import peak_memory
from dsv3.train.trace import trace

_WIDER = "hidden_size=512 num_hidden_layers=3 intermediate_size=2048 vocab_size=512"
_SMALL_V3 = """hidden_size=512 num_hidden_layers=4 first_k_dense_replace=1 intermediate_size=1408
 moe_intermediate_size=192 n_routed_experts=32 n_group=4 topk_group=2 num_experts_per_tok=4
 num_attention_heads=8 q_lora_rank=192 kv_lora_rank=128 vocab_size=16384"""

SIZES = {
    "moe_nano": ["model=moe_nano", "schedule.global_batch_size=8", "schedule.batch_size_quantum=8"],
    "moe_tiny": ["model=moe_tiny"],
    "wider moe_nano": [
        "model=moe_nano",
        *(f"model.{word}" for word in _WIDER.split()),
        "schedule.global_batch_size=8",
        "schedule.batch_size_quantum=8",
    ],
    "a small V3": [
        "model=moe_671b",
        *(f"model.{word}" for word in _SMALL_V3.split()),
        "mtp=depth1",
        "recompute=norm_and_up_projection",
        "schedule.sequence_length=1024",
        "schedule/lr_curve=constant",
        "schedule.global_batch_size=4",
        "schedule.batch_size_quantum=4",
    ],
    "3 layers of moe_1b": [
        "model=moe_1b",
        "model.num_hidden_layers=3",
        "model.n_routed_experts=16",
        "schedule.sequence_length=1024",
        "schedule.global_batch_size=2",
        "schedule.batch_size_quantum=2",
    ],
}
LAYOUTS = {"single": 1, "ep2": 2, "pp2": 2}
PRECISIONS = ("fp32", "bf16")
EMULATED = ("moe_nano", "wider moe_nano", "moe_tiny")
"""Counted in emulated FP8 too; of the wider one the fullest moment is in a product."""
TRACED = ("moe_228b", "moe_671b")


def measure(*, quick: bool) -> Iterator[dict[str, Any]]:
    """Every size in every layout and precision; then the time of a trace of the largest models."""
    with tempfile.TemporaryDirectory() as directory:
        library = allocations.build(Path(directory))
        for size, words in list(SIZES.items())[: 2 if quick else None]:
            rows = []
            precisions = (*PRECISIONS, "fp8_block_emulated") if size in EMULATED else PRECISIONS
            for layout, ranks in LAYOUTS.items():
                for precision in precisions:
                    overrides = [*words, f"parallelism={layout}", f"precision={precision}"]
                    rows += compared(overrides, ranks, library)
            yield {"size": size, "rows": rows}
    yield {"traced": {model: _trace_seconds(model) for model in TRACED}}


def compared(overrides: list[str], ranks: int, library: Path) -> list[dict[str, Any]]:
    """The peak of each rank, counted, traced and planned, in bytes."""
    config, rows = compose(overrides).config, []
    for found in count_ranks(overrides, ranks, library):
        load = {"max_violation": found["load"] - 1.0, "device": "cpu"}
        stage = found["rank"] // config.parallelism.data_parallel_size
        traced, planned = trace(config, **load).stages[stage], peak_memory(config, **load)
        rows.append(
            {
                "layout": _word(overrides, "parallelism"),
                "precision": _word(overrides, "precision"),
                **found,
                "traced_state": traced.state_bytes,
                "traced": traced.peak_bytes,
                "planned": planned.stages[stage].peak_bytes,
            }
        )
    return rows


def count_ranks(overrides: list[str], ranks: int, library: Path) -> list[dict[str, Any]]:
    """State and peak of every rank in bytes, and the load of its experts, in a run of this size."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = allocations.environment(library) | {"OMP_NUM_THREADS": str(2 // ranks)}
    if ranks > 1:
        environment |= {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
        environment |= {"MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.counted_rank", *overrides],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | ({"RANK": str(r), "LOCAL_RANK": str(r)} if ranks > 1 else {}),
        )
        for r in range(ranks)
    ]
    outputs = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        if process.returncode != 0:
            raise RuntimeError(f"{overrides} exited {process.returncode}: {errors}")
    return [json.loads(lines.splitlines()[-1]) for lines, _ in outputs]


def show(result: dict[str, Any]) -> None:
    """Print one size, or the times."""
    if "traced" in result:
        table = Table(title="a trace, in a process of its own", title_justify="left")
        for column in ("model", "s", "s of processors"):
            table.add_column(column)
        for model, seconds in result["traced"].items():
            table.add_row(model, *(f"{each:.1f}" for each in seconds))
        Console().print(table)
        return
    title = f"{result['size']}: peak of a step in MB, and what was said over what was counted"
    table = Table(title=title, title_justify="left")
    for column in ("layout", "precision", "rank", "load", "state", "peak", "traced", "planned"):
        table.add_column(column)
    for row in result["rows"]:
        table.add_row(
            row["layout"],
            row["precision"],
            str(row["rank"]),
            f"{row['load']:.3f}",
            f"{row['state'] / 1e6:.1f}",
            f"{row['peak'] / 1e6:.1f}",
            *(f"{row[by] / 1e6:.1f} ({row[by] / row['peak']:.3f})" for by in ("traced", "planned")),
        )
    Console(width=max(110, Console().width)).print(table)


def _word(overrides: list[str], key: str) -> str:
    return next(word.split("=")[1] for word in reversed(overrides) if word.startswith(f"{key}="))


def _trace_seconds(model: str) -> tuple[float, float]:
    """Seconds of `dsv3 plan --trace` from start to end, and those that processors worked."""
    began_s, worked_s = time.perf_counter(), _children_s()
    command = [sys.executable, "-m", "dsv3", "plan", "--trace", f"model={model}", "--json"]
    subprocess.run(command, check=True, capture_output=True, env=os.environ)
    return time.perf_counter() - began_s, _children_s() - worked_s


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
