"""Cases about tokens: the all-to-all dispatcher against one process that has all of them.

Every rank builds the tokens of all ranks and runs the local dispatcher over them, ranks in a row;
its own part of the results must be the same to the last bit.
"""

from functools import partial
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from distributed.group_cases import layout
from dsv3.ops.experts import grouped_mlp
from dsv3.parallel.dispatch import AllToAllDispatcher, LocalDispatcher

EXPERTS, D, F, K = 8, 132, 6, 2  # D is not a multiple of the FP8 tile


def tokens_of(scenario: str, rank: int, world: int) -> list[tuple[int, ...]]:
    """The experts of each token that starts on `rank`."""
    generator = torch.Generator().manual_seed(17 * rank + len(scenario))
    half = EXPERTS // world if world > 1 else EXPERTS // 2
    allowed = {
        "any": range(EXPERTS),
        "one_empty": [e for e in range(EXPERTS) if e != 2],
        "last_empty": range(EXPERTS - 1),
        "rank_empty": [e for e in range(EXPERTS) if not half <= e < 2 * half],
        "one_rank": range(half) if half > 1 else range(2),
        "nothing_to_send": range(EXPERTS),
        "nobody": range(EXPERTS),
    }[scenario]
    count = 7 + 3 * rank  # another number on every rank
    if scenario == "nobody" or (scenario == "nothing_to_send" and rank == world - 1):
        count = 0
    chosen = []
    for _ in range(count):
        order = torch.randperm(len(allowed), generator=generator).tolist()
        chosen.append(tuple(allowed[i] for i in order[:K]))
    return chosen


SCENARIOS = (
    "any",
    "one_empty",
    "last_empty",
    "rank_empty",
    "one_rank",
    "nothing_to_send",
    "nobody",
)


def run(
    dispatcher: Any,
    experts: range,
    inputs: list[Tensor],
    probe: Tensor,
    *,
    row_multiple: int,
    recompute: bool = False,
) -> list[Tensor]:
    """Output and gradients (tokens, gate values, both projections) of one layer of experts."""
    x, ids, scores, gate_up, down = inputs
    leaves = [
        tensor.detach().clone().requires_grad_()
        for tensor in (
            x,
            scores,
            gate_up[experts.start : experts.stop],
            down[experts.start : experts.stop],
        )
    ]

    def layer(x: Tensor, scores: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        rows, weights, counts, handle = dispatcher.dispatch(
            x, ids, scores, row_multiple=row_multiple
        )
        return dispatcher.combine(grouped_mlp(rows, weights, counts, gate_up, down), handle)

    out = checkpoint(layer, *leaves, use_reentrant=False) if recompute else layer(*leaves)
    (out.float() * probe).sum().backward()
    return [out, *[leaf.grad for leaf in leaves]]


def compare(
    scenario: str, dtype: torch.dtype, row_multiple: int, fp8: bool, recompute: bool
) -> Any:
    """The tensors that differ, and the traffic beside what it should be."""
    from dsv3.engine.groups import expert_group

    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    chosen = [tokens_of(scenario, r, world) for r in range(world)]
    generator = torch.Generator().manual_seed(3)
    total = sum(map(len, chosen))
    draw = partial(torch.randn, generator=generator)
    ids = torch.tensor([c for of_rank in chosen for c in of_rank], dtype=torch.int64).view(total, K)
    x, scores, probe = draw(total, D).to(dtype), draw(total, K), draw(total, D)
    weights = [draw(EXPERTS, 2 * F, D).to(dtype) / 9, draw(EXPERTS, D, F).to(dtype) / 3]

    alone = LocalDispatcher(EXPERTS, fp8=fp8)
    everything = [x, ids, scores, *weights]
    filled = row_multiple if total > 0 else 1  # nothing to fill up with
    expected = run(alone, range(EXPERTS), everything, probe, row_multiple=filled)
    first = sum(map(len, chosen[:rank]))
    own = slice(first, first + len(chosen[rank]))
    each = EXPERTS // world
    held = range(rank * each, (rank + 1) * each)
    local = slice(held.start, held.stop)
    expected = [t[part] for t, part in zip(expected, (own, own, own, local, local), strict=True)]

    dispatcher = AllToAllDispatcher(EXPERTS, expert_group(layout(world, world)), fp8=fp8)
    mine = [x[own], ids[own], scores[own], *weights]
    found = run(dispatcher, held, mine, probe[own], row_multiple=row_multiple, recompute=recompute)
    names = ("out", "x", "scores", "gate_up_proj", "down_proj")
    zipped = zip(names, found, expected, strict=True)
    different = [name for name, one, other in zipped if not torch.equal(one, other)]

    leaving = [e for experts in chosen[rank] for e in experts if e not in held]
    arriving = [
        e for r in range(world) if r != rank for experts in chosen[r] for e in experts if e in held
    ]
    plain = D * dtype.itemsize
    coded = D + 4 * 2 if fp8 else plain  # one byte an element, one FP32 scale for each of two tiles
    counts = 8 * each * (world - 1)
    passes = 2 if recompute else 1
    theory = {
        "counts": counts * passes,
        "dispatch": len(leaving) * (coded + 4) * passes,  # and an FP32 gate value
        "combine": len(arriving) * plain * passes,
        "combine_backward": len(leaving) * coded,
        "dispatch_backward": len(arriving) * (plain + 4),
    }
    traffic = dispatcher.take_traffic()
    emptied = sum(dispatcher.take_traffic().sent_bytes.values()) == 0
    return {
        "different": different,
        "sent": traffic.sent_bytes,
        "theory": theory,
        "calls": traffic.calls,
        "emptied": emptied,
        "finite": all(bool(t.isfinite().all()) for t in found),
        "rows_from_home": len(leaving),
    }


def tokens() -> Any:
    """All scenarios in FP32; the first and the emptiest in BF16, FP8, padded and recomputed."""
    fp32, bf16 = torch.float32, torch.bfloat16
    rows = {f"{s} fp32": (s, fp32, 1, False, False) for s in SCENARIOS}
    rows |= {f"{s} bf16 padded": (s, bf16, 16, False, False) for s in SCENARIOS}
    rows |= {f"{s} fp8": (s, bf16, 4, True, False) for s in ("any", "rank_empty")}
    rows |= {"any fp8 of fp32": ("any", fp32, 1, True, False)}
    rows |= {"any recomputed": ("any", fp32, 1, False, True)}
    return {name: compare(*row) for name, row in rows.items()}, {}


TOKEN_CASES = {"tokens": tokens}
