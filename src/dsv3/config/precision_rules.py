"""Rules of `precision`: what a recipe has, and what its hardware cannot do."""

from collections.abc import Iterator

from dsv3.config.precision import LayerBackend, PrecisionConfig, Recipe
from dsv3.config.root import RunConfig
from dsv3.errors import Problem

BACKENDS: dict[Recipe, tuple[LayerBackend, ...]] = {
    "fp32": ("torch",),
    "bf16": ("torch", "te"),
    "fp8_block": ("te",),
    "fp8_current": ("te",),
    "mxfp8": ("te",),
    "fp8_block_emulated": ("emulated",),
}


def recipe_has_backend(config: RunConfig) -> Iterator[Problem]:
    """Every recipe but bf16 is computed by one kind of layers."""
    precision = config.precision
    able = BACKENDS[precision.recipe]
    if precision.backend not in able:
        yield Problem(
            f"precision.backend={precision.backend}",
            f"precision.recipe={precision.recipe} is computed by {' or '.join(able)}",
            "leave precision.backend out, or choose the recipe with precision=",
        )


def only_fp8_has_scales(config: RunConfig) -> Iterator[Problem]:
    """A scale of what is not quantised would be believed to work; MXFP8's are powers of two."""
    precision = config.precision
    if precision.is_fp8 and precision.scales is None:
        yield Problem(
            "precision.scales=null",
            f"precision.recipe={precision.recipe} has scales of some kind",
            "use power_of_two, or fp32",
        )
    if not precision.is_fp8 and precision.scales is not None:
        yield _without_fp8("scales", precision, "has no scales")
    if precision.recipe == "mxfp8" and precision.scales == "fp32":
        yield Problem(
            "precision.scales=fp32",
            "precision.recipe=mxfp8 stores the exponent of a scale and nothing else",
            "use power_of_two, or precision=fp8_block",
        )


def only_tiled_fp8_has_tilings(config: RunConfig) -> Iterator[Problem]:
    """A tiling of what has no tiles would be believed to work."""
    precision = config.precision
    if precision.is_tiled_fp8 and precision.dgrad_tiling is None:
        yield Problem(
            "precision.dgrad_tiling=null",
            f"precision.recipe={precision.recipe} quantises gradients, with scales of some shape",
            "use tile, the report's, or block",
        )
    if not precision.is_tiled_fp8 and precision.dgrad_tiling is not None:
        yield _without_fp8("dgrad_tiling", precision, "has no tiles of gradients")


def only_emulation_sums_otherwise(config: RunConfig) -> Iterator[Problem]:
    """What a GPU's product does with its running sum is not ours to choose."""
    precision = config.precision
    if precision.recipe == "fp8_block_emulated":
        promoted = precision.promote_every
        if promoted is not None and 128 % promoted != 0 and promoted % 128 != 0:
            yield Problem(
                f"precision.promote_every={promoted}",
                "sums are promoted at the edges of tiles of 128, or of whole parts of them",
                "use 32, 64, 128 or a multiple of 128",
            )
        return
    if precision.accumulate_bits is not None:
        yield Problem(
            f"precision.accumulate_bits={precision.accumulate_bits}",
            f"precision.recipe={precision.recipe} keeps the bits that its hardware keeps",
            "leave it out, or choose precision=fp8_block_emulated",
        )
    fixed = 128 if precision.is_tiled_fp8 else None
    if precision.promote_every != fixed:
        yield Problem(
            f"precision.promote_every={_shown(precision.promote_every)}",
            f"precision.recipe={precision.recipe} promotes"
            f" {'every 128 terms' if fixed else 'as its kernels do'}, which is not to be chosen",
            f"use {_shown(fixed)}, or precision=fp8_block_emulated",
        )


def hardware_has_no_block_by_block_product(config: RunConfig) -> Iterator[Problem]:
    """Transformer Engine multiplies 1 x 128 by 128 x 128 scales, not two operands of 128 x 128."""
    precision = config.precision
    if precision.recipe == "fp8_block" and precision.dgrad_tiling == "block":
        yield Problem(
            "precision.dgrad_tiling=block",
            "precision.recipe=fp8_block has no product of two operands with 128 x 128 scales",
            "use precision=fp8_block_emulated",
        )


def engine_is_not_compiled(config: RunConfig) -> Iterator[Problem]:
    """A compiler sees neither Transformer Engine's kernels nor the weights they are lent."""
    if config.precision.backend == "te" and config.launcher.compile:
        yield Problem(
            "launcher.compile=true",
            "precision.backend=te has kernels of its own, which cannot be compiled",
            "use launcher.compile=false",
        )


def _without_fp8(key: str, precision: PrecisionConfig, has_none: str) -> Problem:
    return Problem(
        f"precision.{key}={_shown(getattr(precision, key))}",
        f"precision.recipe={precision.recipe} {has_none}",
        f"choose precision=fp8_block or fp8_block_emulated, or leave precision.{key} out",
    )


def _shown(value: object) -> str:
    return "null" if value is None else str(value)


RULES = (
    recipe_has_backend,
    only_fp8_has_scales,
    only_tiled_fp8_has_tilings,
    only_emulation_sums_otherwise,
    hardware_has_no_block_by_block_product,
    engine_is_not_compiled,
)
