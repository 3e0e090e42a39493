"""Rules of `precision`: what FP8 has, and what its hardware cannot do."""

from collections.abc import Iterator

from dsv3.config.root import RunConfig
from dsv3.errors import Problem


def only_fp8_has_tilings(config: RunConfig) -> Iterator[Problem]:
    """A tiling of what is not quantised would be believed to work."""
    precision = config.precision
    if precision.is_fp8 and precision.dgrad_tiling is None:
        yield Problem(
            "precision.dgrad_tiling=null",
            f"precision.recipe={precision.recipe} quantises gradients, with scales of some shape",
            "use tile, the report's, or block",
        )
    if not precision.is_fp8 and precision.dgrad_tiling is not None:
        yield Problem(
            f"precision.dgrad_tiling={precision.dgrad_tiling}",
            f"precision.recipe={precision.recipe} quantises no gradients",
            "choose precision=fp8_block or fp8_block_emulated, or leave the tiling out",
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


RULES = (only_fp8_has_tilings, hardware_has_no_block_by_block_product)
