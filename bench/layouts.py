"""Expert parallelism on this machine: two ranks against one process, and the number of experts.

One process has two threads, two ranks have one each: the same cores. Layouts take turns, one whole
measurement after the other; medians of those count.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

LAYOUTS = {"single": 1, "ep2": 2}
EXPERTS = (8, 16, 32, 64, 128, 256)
SMALL = ["model=moe_nano", "balance=aux_free", "schedule.micro_batch_size=8"]


def measure(*, quick: bool) -> Iterator[dict[str, Any]]:
    """`moe_tiny` in both layouts, then `moe_nano` with more and more experts of the same size."""
    turns, rounds = (1, 3) if quick else (3, 7)
    yield _rows("moe_tiny", {"moe_tiny": ["model=moe_tiny"]}, turns, rounds)
    counts = EXPERTS[::2] if quick else EXPERTS
    more = {f"{n} experts": [*SMALL, f"model.n_routed_experts={n}"] for n in counts}
    yield _rows("moe_nano, 2 experts a token", more, turns, rounds)


def show(found: dict[str, Any]) -> None:
    """Print one table."""
    table = Table(title=f"expert parallelism, {found['title']}", title_justify="left")
    for column in ("what", "layout", "ms", "tokens/s", "ratio", "all-to-all ms", "sent MB a step"):
        table.add_column(column)
    for what, layouts in found["rows"].items():
        for layout, row in layouts.items():
            figures = (row["seconds"] * 1e3, row["tokens_per_second"], row["ratio_to_single"])
            table.add_row(
                what,
                layout,
                f"{figures[0]:.0f}",
                f"{figures[1]:,.0f}",
                f"{figures[2]:.2f}",
                f"{row['all_to_all_seconds'] * 1e3:.0f}",
                f"{row['sent_bytes_per_step'] / 1e6:.1f}",
            )
    Console().print(table)


def _rows(title: str, cases: dict[str, list[str]], turns: int, rounds: int) -> dict[str, Any]:
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for what, overrides in cases.items():
        taken: dict[str, list[dict[str, float]]] = {layout: [] for layout in LAYOUTS}
        for _ in range(turns):
            for layout in LAYOUTS:
                taken[layout].append(_run(layout, overrides, rounds))
        rows[what] = {
            layout: {key: statistics.median(t[key] for t in each) for key in each[0]}
            for layout, each in taken.items()
        }
        for row in rows[what].values():
            row["ratio_to_single"] = rows[what]["single"]["seconds"] / row["seconds"]
    return {"title": title, "rows": rows}


def _run(layout: str, overrides: list[str], rounds: int) -> dict[str, float]:
    """One measurement, in processes of its own."""
    world = LAYOUTS[layout]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [*overrides, f"parallelism={layout}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(max(LAYOUTS.values()) // world)}
    if world > 1:
        environment |= {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
        environment |= {"MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.rank", str(rounds), *words],
            stdout=subprocess.PIPE,
            text=True,
            env=environment | ({"RANK": str(r), "LOCAL_RANK": str(r)} if world > 1 else {}),
        )
        for r in range(world)
    ]
    outputs = [process.communicate()[0] for process in processes]
    found: dict[str, float] = json.loads(outputs[0])
    return found
