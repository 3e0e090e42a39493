"""Cases of `test_rules.py` for `precision`: rule, base, what breaks it, the message."""

from typing import Any

from dsv3.config import precision_rules

TE = {"precision.backend": "te", "precision.scales": "power_of_two"}
BLOCK = TE | {
    "precision.recipe": "fp8_block",
    "precision.dgrad_tiling": "tile",
    "precision.promote_every": 128,
}
EMULATED = BLOCK | {
    "precision.recipe": "fp8_block_emulated",
    "precision.backend": "emulated",
    "precision.accumulate_bits": 14,
}
MXFP8 = TE | {"precision.recipe": "mxfp8"}

CASES: list[tuple[Any, dict[str, Any], dict[str, Any], str]] = [
    (
        precision_rules.recipe_has_backend,
        {"precision.recipe": "bf16"},
        {"precision.backend": "emulated"},
        "precision.backend=emulated: precision.recipe=bf16 is computed by torch or te;"
        " leave precision.backend out, or choose the recipe with precision=",
    ),
    (
        precision_rules.only_fp8_has_scales,
        {},
        {"precision.scales": "fp32"},
        "precision.scales=fp32: precision.recipe=fp32 has no scales;"
        " choose precision=fp8_block or fp8_block_emulated, or leave precision.scales out",
    ),
    (
        precision_rules.only_fp8_has_scales,
        BLOCK,
        {"precision.scales": None},
        "precision.scales=null: precision.recipe=fp8_block has scales of some kind;"
        " use power_of_two, or fp32",
    ),
    (
        precision_rules.only_fp8_has_scales,
        MXFP8,
        {"precision.scales": "fp32"},
        "precision.scales=fp32: precision.recipe=mxfp8 stores the exponent of a scale and nothing"
        " else; use power_of_two, or precision=fp8_block",
    ),
    (
        precision_rules.only_tiled_fp8_has_tilings,
        {},
        {"precision.dgrad_tiling": "tile"},
        "precision.dgrad_tiling=tile: precision.recipe=fp32 has no tiles of gradients;"
        " choose precision=fp8_block or fp8_block_emulated, or leave precision.dgrad_tiling out",
    ),
    (
        precision_rules.only_tiled_fp8_has_tilings,
        BLOCK,
        {"precision.dgrad_tiling": None},
        "precision.dgrad_tiling=null: precision.recipe=fp8_block quantises gradients, with scales"
        " of some shape; use tile, the report's, or block",
    ),
    (
        precision_rules.only_emulation_sums_otherwise,
        BLOCK,
        {"precision.accumulate_bits": 14},
        "precision.accumulate_bits=14: precision.recipe=fp8_block keeps the bits that its hardware"
        " keeps; leave it out, or choose precision=fp8_block_emulated",
    ),
    (
        precision_rules.only_emulation_sums_otherwise,
        BLOCK,
        {"precision.promote_every": None},
        "precision.promote_every=null: precision.recipe=fp8_block promotes every 128 terms, which"
        " is not to be chosen; use 128, or precision=fp8_block_emulated",
    ),
    (
        precision_rules.only_emulation_sums_otherwise,
        MXFP8,
        {"precision.promote_every": 128},
        "precision.promote_every=128: precision.recipe=mxfp8 promotes as its kernels do, which"
        " is not to be chosen; use null, or precision=fp8_block_emulated",
    ),
    (
        precision_rules.only_emulation_sums_otherwise,
        EMULATED,
        {"precision.promote_every": 96},
        "precision.promote_every=96: sums are promoted at the edges of tiles of 128, or of whole"
        " parts of them; use 32, 64, 128 or a multiple of 128",
    ),
    (
        precision_rules.hardware_has_no_block_by_block_product,
        BLOCK,
        {"precision.dgrad_tiling": "block"},
        "precision.dgrad_tiling=block: precision.recipe=fp8_block has no product of two operands"
        " with 128 x 128 scales; use precision=fp8_block_emulated",
    ),
    (
        precision_rules.engine_is_not_compiled,
        BLOCK,
        {"launcher.compile": True},
        "launcher.compile=true: precision.backend=te has kernels of its own, which cannot be"
        " compiled; use launcher.compile=false",
    ),
]
