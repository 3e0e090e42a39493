"""What a precision recipe promises of every product, and what of it did not come true."""

from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple

from dsv3.config.precision import PrecisionConfig
from dsv3.model.names import in_recipe
from dsv3.ops.gemm_log import Gemm, GemmKind

LARGEST_NUMBER_OF_LAYERS = 8
"""Layers that an error names; gemms.json has them all."""

Formats = tuple[str, str]
TRAINING: Final[tuple[GemmKind, ...]] = ("fprop", "dgrad", "wgrad")
EVALUATION: Final[tuple[GemmKind, ...]] = ("fprop",)


class Layers(NamedTuple):
    """Layers of a rank, by canonical name, whose products a recipe decides.

    `idle` are those among them that were given no rows: experts to whom no token went.
    """

    all: Collection[str]
    idle: Collection[str] = ()


def recipe_layers(parameters: Iterable[str]) -> list[str]:
    """The layers with these parameters whose products `precision.recipe` decides."""
    return [name.removesuffix(".weight") for name in parameters if in_recipe(name)]


def asked_for(precision: PrecisionConfig) -> Mapping[GemmKind, Formats] | None:
    """Formats of the left and right operand of each product; None without FP8.

    Left and right are x and W in fprop, dy and W in dgrad, dy and x in wgrad.
    """
    scales = precision.scales
    match precision.recipe:
        case "fp8_block" | "fp8_block_emulated":
            row, column = f"e4m3 1x128 {scales}", f"e4m3 128x1 {scales}"
            block = f"e4m3 128x128 {scales}"
            gradient = block if precision.dgrad_tiling == "block" else row
            return {"fprop": (row, block), "dgrad": (gradient, block), "wgrad": (column, column)}
        case "fp8_current":
            e4m3, e5m2 = f"e4m3 tensor {scales}", f"e5m2 tensor {scales}"
            return {"fprop": (e4m3, e4m3), "dgrad": (e5m2, e4m3), "wgrad": (e5m2, e4m3)}
        case "mxfp8":
            row, column = f"e4m3 1x32 {scales}", f"e4m3 32x1 {scales}"
            return {"fprop": (row, row), "dgrad": (row, column), "wgrad": (column, column)}
        case _:
            return None


def broken_promises(
    products: Collection[Gemm],
    layers: Layers,
    asked: Mapping[GemmKind, Formats],
    kinds: Iterable[GemmKind],
) -> dict[str, list[str]]:
    """By layer: products that ran in other formats, again in a backward pass too, or not at all.

    A layer that was given no rows may have had nothing to multiply.
    """
    wrong: dict[str, list[str]] = {}
    for gemm in products:
        if gemm.layer in layers.all and asked.get(gemm.kind) != (gemm.left, gemm.right):
            again = " in recomputation" if gemm.recomputed else ""
            said = f"{gemm.kind}{again} ran in {gemm.left} x {gemm.right}"
            wrong.setdefault(gemm.layer, []).append(said)
    ran = {(gemm.layer, gemm.kind) for gemm in products if not gemm.recomputed}
    for kind in kinds:
        for layer in layers.all:
            if (layer, kind) not in ran and layer not in layers.idle:
                wrong.setdefault(layer, []).append(f"{kind} was not seen")
    return {layer: list(dict.fromkeys(said)) for layer, said in wrong.items()}


def in_words(broken: Mapping[str, list[str]]) -> list[str]:
    """A line for each of the first layers, and how many more there are."""
    lines = [f"{layer}: {', '.join(said)}" for layer, said in broken.items()]
    more = len(lines) - LARGEST_NUMBER_OF_LAYERS
    return lines[:LARGEST_NUMBER_OF_LAYERS] + ([f"{more} more layers"] if more > 0 else [])
