"""Transformer Engine itself: is it here, with what a recipe needs, and the recipe in its words.

Written against version 2.20, whose insides `te.py` and `te_log.py` rely on; imported only where a
configuration asks for it.
"""

import os
from types import ModuleType
from typing import Any

import torch

from dsv3.config.precision import PrecisionConfig
from dsv3.errors import CapacityError, Problem
from dsv3.machine import installed_version

VERSION = "2.20"
REMEDY = (
    "install dsv3[gpu] beside a CUDA build of torch, or choose precision=bf16 or"
    " precision=fp8_block_emulated"
)


def load_engine(precision: PrecisionConfig) -> ModuleType:
    """`transformer_engine.pytorch`, able to run the recipe on this rank's GPU.

    Raises CapacityError, which names what is missing, if it is not.
    """
    setting = f"precision.recipe={precision.recipe}"
    if not torch.cuda.is_available():
        rule = f"Transformer Engine needs a GPU, and torch {torch.__version__} sees none"
        raise CapacityError(Problem(setting, rule, REMEDY))
    version = installed_version("transformer-engine")
    if version is None or not f"{version}.".startswith(f"{VERSION}."):
        found = "not installed" if version is None else f"here in version {version}"
        rule = f"transformer-engine {VERSION} is needed, and {found}"
        raise CapacityError(Problem(setting, rule, REMEDY))
    # Runs resume bit for bit. Without this its attention may add gradients in any order.
    os.environ.setdefault("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "0")
    try:
        import transformer_engine.pytorch as te
    except (ImportError, OSError, RuntimeError) as error:
        rule = f"transformer-engine {version} cannot be imported: {error}"
        raise CapacityError(Problem(setting, rule, REMEDY)) from error
    _refuse_without_kernels(te, precision, setting)
    module: ModuleType = te
    return module


def _refuse_without_kernels(te: ModuleType, precision: PrecisionConfig, setting: str) -> None:
    """Ask Transformer Engine: it knows the GPU and the CUDA version torch was built with."""
    available = {
        "fp8_block": "is_fp8_block_scaling_available",
        "fp8_current": "is_fp8_available",
        "mxfp8": "is_mxfp8_available",
    }.get(precision.recipe)
    if available is None:
        return
    able, why_not = getattr(te, available)(return_reason=True)
    if not able:
        raise CapacityError(Problem(setting, why_not, REMEDY))


def recipe_of(precision: PrecisionConfig) -> Any | None:
    """Transformer Engine's object for a recipe; None for bf16.

    Everything that its environment variables could change behind our back is passed: with
    NVTE_BACKWARD_OVERRIDE set, backward passes would silently be in BF16.
    """
    from transformer_engine.common import recipe as recipes

    match precision.recipe:
        case "fp8_block":
            block = recipes.Float8BlockScaling(
                fp8_format=recipes.Format.E4M3,
                x_block_scaling_dim=1,
                w_block_scaling_dim=2,
                grad_block_scaling_dim=1,
                backward_override=None,
            )
            return _with_scales(block, precision)
        case "fp8_current":
            current = recipes.Float8CurrentScaling(
                fp8_format=recipes.Format.HYBRID, backward_override=None
            )
            return _with_scales(current, precision)
        case "mxfp8":
            return recipes.MXFP8BlockScaling(fp8_format=recipes.Format.E4M3, backward_override=None)
        case _:
            return None


def _with_scales(recipe: Any, precision: PrecisionConfig) -> Any:
    """The recipe with the kind of scales that was asked for.

    NOTE footgun: `use_f32_scales=` and `use_power_2_scales=` of the constructors change nothing.
    The three attributes that quantisers read are made when the class is, from environment
    variables; an assignment to the object is what works.
    """
    from transformer_engine.common.recipe import QParams

    rounded = precision.scales == "power_of_two"
    for tensor in ("fwd_inp", "fwd_weight", "bwd_grad"):
        setattr(recipe, f"fp8_quant_{tensor}", QParams(power_2_scale=rounded, amax_epsilon=0.0))
    return recipe


def row_multiple_of(precision: PrecisionConfig) -> int:
    """What rows of a product, tokens, must come in: its FP8 kernels reduce over them in wgrad."""
    if not precision.is_fp8:
        return 1
    return 32 if precision.recipe == "mxfp8" else 16
