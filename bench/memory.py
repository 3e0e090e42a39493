"""What each memory feature saves in a real training step, as torch's allocator counts it.

Every variant is a process of its own. It trains some steps for their time and for the largest
resident set of the whole process, then builds everything again under torch's profiler and counts
what the allocator gives out and takes back, to the byte:

state   between steps: weights, masters, moments, gradient buffers, averages
kept    at the end of a forward pass beside the state: what the backward pass needs
peak    the most at any moment of a step, the state included

The resident set has the interpreter, its libraries and the allocator's own losses in it. A larger
shape, whose steps take tens of seconds on two cores, is counted and not timed.
"""

import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from bench.sides import LR
from bench.throughput import random_batches
from dsv3.config.compose import compose
from dsv3.config.root import RunConfig
from dsv3.engine.distributed import process_group
from dsv3.engine.engine import TrainingEngine
from dsv3.model import transformer
from dsv3.model.transformer import Transformer
from dsv3.ops.cross_entropy import plain_linear_cross_entropy
from dsv3.train.build import build_engine, build_model

SHAPES = {
    "moe_tiny": ["model=moe_tiny"],
    "3 layers of moe_1b": [
        "model=moe_1b",
        "parallelism=single",
        "model.num_hidden_layers=3",
        "model.n_routed_experts=16",
        "schedule.sequence_length=1024",
        "schedule.global_batch_size=2",
        "schedule.batch_size_quantum=2",
        "schedule.micro_batch_size=2",
    ],
}
TIMED = ("moe_tiny",)
PRECISIONS = ("fp32", "bf16")
FULL_LOGITS, COPIES = "full logits", "copies for MTP"
MEASURED = "a measured step"
FORWARD = "a measured forward pass"


class Variant(NamedTuple):
    """One choice, and the one it is compared with."""

    name: str
    against: str
    words: tuple[str, ...] = ()  # overrides
    changes: str | None = None  # what no override does


PLAIN = "plain"
VARIANTS = (
    Variant(PLAIN, PLAIN),
    *(
        Variant(f"recompute={policy}", PLAIN, (f"recompute={policy}",))
        for policy in ("norm_and_up_projection", "moe", "full")
    ),
    Variant(FULL_LOGITS, PLAIN, (), FULL_LOGITS),
    Variant("BF16 moments", PLAIN, ("optimizer.moment_dtype=bf16",)),
    Variant("ema=on", PLAIN, ("ema=on",)),
    Variant("mtp=depth1", PLAIN, ("mtp=depth1",)),
    Variant(COPIES, "mtp=depth1", ("mtp=depth1",), COPIES),
)


def measure(*, quick: bool) -> Iterator[dict[str, Any]]:
    """Each shape in each precision."""
    for shape, words in SHAPES.items():
        steps = 0 if shape not in TIMED else 3 if quick else 9
        for precision in PRECISIONS:
            found = {}
            for variant in VARIANTS:
                overrides = [*words, f"precision={precision}", *variant.words]
                found[variant.name] = _in_a_process(overrides, variant.changes, steps)
            rows = {v.name: _compared(found[v.name], found[v.against]) for v in VARIANTS}
            against = {variant.name: variant.against for variant in VARIANTS}
            yield {"shape": shape, "precision": precision, "variants": rows, "against": against}


def show(result: dict[str, Any]) -> None:
    """Print the table of one shape and precision."""
    title = f"{result['shape']}, {result['precision']}: MB, and times what it is compared with"
    table = Table(title=title, title_justify="left")
    columns = {"state": 1e6, "kept": 1e6, "peak": 1e6, "resident": 1e6, "step_s": 1e-3}
    for column in ("variant", "against", *list(columns)[:-1], "step, ms"):
        table.add_column(column)
    for name, row in result["variants"].items():
        cells = (
            f"{row[key] / unit:.1f} ({row[f'{key}_ratio']:.2f})" if key in row else "-"
            for key, unit in columns.items()
        )
        table.add_row(name, result["against"][name], *cells)
    Console(width=max(120, Console().width)).print(table)


def _compared(found: dict[str, float], base: dict[str, float]) -> dict[str, float]:
    return found | {f"{key}_ratio": found[key] / base[key] for key in found}


def _in_a_process(overrides: list[str], changes: str | None, steps: int) -> dict[str, float]:
    asked = json.dumps({"overrides": overrides, "changes": changes, "steps": steps})
    done = subprocess.run(
        [sys.executable, "-m", "bench.memory", asked], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{overrides} exited {done.returncode}: {done.stderr}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _figures(overrides: list[str], changes: str | None, steps: int) -> dict[str, float]:
    config = compose(overrides).config
    if changes == FULL_LOGITS:
        transformer.linear_cross_entropy = plain_linear_cross_entropy  # type: ignore[attr-defined]
    batches = [
        (*batch, torch.tensor(config.mtp.loss_coeff)) for batch in random_batches(config, count=2)
    ]
    with process_group("cpu"):
        timed = _timed(config, batches, changes, steps) if steps else {}
        return timed | _counted(config, batches, changes)


def _timed(
    config: RunConfig, batches: list[tuple[Tensor, ...]], changes: str | None, steps: int
) -> dict[str, float]:
    with ExitStack() as stack:
        engine = _engine(config, changes, stack)
        taken = []
        for step in range(2 + steps):
            began_s = time.perf_counter()
            engine.train_step([batches[step % 2]], lr=LR)
            taken.append(time.perf_counter() - began_s)
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"step_s": statistics.median(taken[2:]), "resident": resident}


def _counted(
    config: RunConfig, batches: list[tuple[Tensor, ...]], changes: str | None
) -> dict[str, float]:
    gc.collect()
    with (
        ExitStack() as stack,
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen,
    ):
        engine = _engine(config, changes, stack)
        engine.train_step([batches[0]], lr=LR)
        gc.collect()
        for name, call in (
            (FORWARD, lambda: engine.module(*batches[1])),
            (MEASURED, lambda: engine.train_step([batches[1]], lr=LR)),
        ):
            with record_function(name):
                result = call()
                time.sleep(0.001)  # so that the end of the range is after its last event
            # What no backward pass has taken apart holds itself in a cycle.
            del result
            gc.collect()
    events = seen.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes_of = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    live = list(
        zip((at for at, _ in changes_of), accumulate(n for _, n in changes_of), strict=True)
    )
    ranges = {
        e.name(): (e.start_ns(), e.end_ns()) for e in events if e.name() in (FORWARD, MEASURED)
    }
    (forward, forward_end), (begin, end) = ranges[FORWARD], ranges[MEASURED]
    before = [size for at, size in live if at < forward][-1]
    return {
        "state": [size for at, size in live if at < begin][-1],
        "kept": [size for at, size in live if at < forward_end][-1] - before,
        "peak": max(size for at, size in live if begin <= at < end),
    }


def _engine(config: RunConfig, changes: str | None, stack: ExitStack) -> TrainingEngine:
    device = torch.device("cpu")
    model = build_model(config, device)
    if changes == COPIES:
        _give_copies(model)
    engine = build_engine(model, config, device)
    stack.callback(engine.close)
    return engine


def _give_copies(model: Transformer) -> None:
    """An embedding and a head of its own for each MTP module, with their gradients of zero."""
    own = [model.model.embed_tokens.weight, model.lm_head.weight] * len(model.mtp_range)
    model.copies = nn.ParameterList(weight.detach().clone() for weight in own)

    def use(_module: nn.Module, _arguments: Any, losses: Any) -> Any:
        nothing = sum(copy.sum() for copy in model.copies) * 0  # type: ignore[union-attr]
        return losses._replace(objective=losses.objective + nothing)

    model.register_forward_hook(use)


if __name__ == "__main__":
    print(json.dumps(_figures(**json.loads(sys.argv[1]))))
