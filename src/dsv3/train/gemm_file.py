"""`gemms.json`: which products of a run ran in which formats, of all ranks."""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from dsv3.config.precision import PrecisionConfig
from dsv3.errors import Dsv3Error
from dsv3.ops.gemm_log import Gemm
from dsv3.runs.directory import RunDirectory
from dsv3.runs.files import read_json, write_json
from dsv3.train.gemm_check import asked_for

SCHEMA: Final = 1
FP8_TYPES: Final = ("e4m3", "e5m2")

Calls = Mapping[Gemm, int]


class Found(NamedTuple):
    """What all ranks together did in a step or in an evaluation.

    `promised` are the (layer, product) that were to be in FP8; `calls` are summed over ranks.
    """

    calls: Calls
    promised: frozenset[tuple[str, str]]
    broken: Mapping[str, list[str]]


def union(of_ranks: Iterable[Sequence[Sequence[Any]]]) -> Calls:
    """Calls as `listed` by each rank, together."""
    calls: Counter[Gemm] = Counter()
    for of_rank in of_ranks:
        for *fields, count in of_rank:
            calls[Gemm(*fields)] += count
    return calls


def listed(calls: Calls) -> list[list[Any]]:
    """As JSON, for `union`."""
    return [[*gemm, count] for gemm, count in calls.items()]


def summary(found: Found) -> dict[str, Any]:
    """How many of the promised products were in FP8, and who ran in other types; as text too."""
    in_fp8 = {(gemm.layer, gemm.kind) for gemm in found.calls if _type(gemm) == "fp8"}
    others: dict[str, set[str]] = defaultdict(set)
    for gemm in found.calls:
        if _type(gemm) != "fp8":
            others[_type(gemm)].add(_group(gemm.layer))
    figures: dict[str, Any] = {
        "fp8": len(in_fp8),
        "promised": len(found.promised),
        "others": {kind: sorted(groups) for kind, groups in sorted(others.items())},
    }
    return figures | {"text": _sentence(figures)}


def _sentence(figures: Mapping[str, Any]) -> str:
    """`FP8: 84 of 84 products of linear layers and experts; bf16: attention, head`."""
    parts = []
    if figures["promised"] > 0 or figures["fp8"] > 0:
        of = f"{figures['fp8']} of {figures['promised']}"
        parts.append(f"FP8: {of} products of linear layers and experts")
    parts += [f"{kind}: {', '.join(groups)}" for kind, groups in figures["others"].items()]
    return "; ".join(parts)


def section(found: Found, *, attempt: int, step: int, ranks: int) -> dict[str, Any]:
    """What the file says of a step or an evaluation."""
    products = [
        {
            "layer": gemm.layer,
            "product": gemm.kind,
            "recomputed": gemm.recomputed,
            "left": gemm.left,
            "right": gemm.right,
            "output": gemm.output,
            "calls": count,
        }
        for gemm, count in sorted(found.calls.items())
    ]
    return {
        "attempt": attempt,
        "step": step,
        "ranks": ranks,
        "summary": summary(found),
        "broken": dict(found.broken),
        "products": products,
    }


def write_section(
    run: RunDirectory,
    name: str,
    content: Mapping[str, Any],
    precision: PrecisionConfig,
    *,
    observed: bool,
) -> None:
    """Replace a section of the file, `training` or `evaluation`; the other stays.

    Raises CapacityError if the file system refuses.
    """
    asked = asked_for(precision)
    known: dict[str, Any] = {}
    with contextlib.suppress(Dsv3Error):  # not there yet, or damaged: written anew
        known = read_json(run.gemms_path)
    kept = {key: known.get(key) for key in ("training", "evaluation")}
    head = {
        "schema": SCHEMA,
        "recipe": precision.recipe,
        "asked": None if asked is None else {kind: list(pair) for kind, pair in asked.items()},
    }
    write_json(
        run.gemms_path, head | {"observed": observed} | kept | {name: content}, writer="training"
    )


def _type(gemm: Gemm) -> str:
    """`fp8` if both operands are; otherwise the type of the one that is not."""
    plain = [each for each in (gemm.left, gemm.right) if not each.startswith(FP8_TYPES)]
    return plain[0] if plain else "fp8"


def _group(layer: str) -> str:
    if layer == "lm_head":
        return "head"
    if layer.endswith(".mlp.gate"):
        return "router"
    if layer.endswith(".self_attn"):
        return "attention"
    return "experts" if ".mlp.experts." in layer else "linear layers"
