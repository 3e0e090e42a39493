"""Can Transformer Engine run here, in this precision recipe? Asked without importing it or torch.

What only a rank can find out, the CUDA version of torch and of cuBLAS, it refuses itself.
"""

from typing import NamedTuple

from dsv3.config.model import ModelConfig
from dsv3.config.precision import PrecisionConfig, Recipe
from dsv3.config.root import RunConfig
from dsv3.errors import CapacityError, Problem
from dsv3.machine import Gpu, Machine, installed_version

DISTRIBUTION = "transformer-engine"
INSTALL = "pip install 'dsv3[gpu]'"
EMULATION = "precision=fp8_block_emulated"


class Need(NamedTuple):
    """What a recipe needs of a GPU, read from Transformer Engine 2.20; `below` is excluded."""

    capability: tuple[int, int]
    below: tuple[int, int] | None
    hardware: str
    cuda: str

    def met_by(self, gpu: Gpu) -> bool:
        """Whether this GPU has it."""
        capability = gpu.compute_capability
        return self.capability <= capability and (self.below is None or capability < self.below)


NEEDS: dict[Recipe, Need] = {
    "bf16": Need((8, 0), None, "an Ampere GPU or a newer one", "12.1"),
    "fp8_block": Need((9, 0), None, "a Hopper GPU (H100, H200, H800) or a newer one", "12.9"),
    "fp8_current": Need((8, 9), None, "an Ada or Hopper GPU or a newer one", "12.1"),
    "mxfp8": Need((10, 0), (12, 0), "a Blackwell GPU (B200, B300)", "12.8"),
}
FIRST_WITHOUT_FP32_SCALES = (10, 0)


def check_transformer_engine(config: RunConfig, machine: Machine) -> None:
    """Raise CapacityError with everything that is missing for `precision.backend=te`."""
    if config.precision.backend != "te":
        return
    version = installed_version(DISTRIBUTION)
    problems = [
        *_device_problems(config),
        *missing(config.precision.recipe, machine, version),
        *_scale_problems(config.precision, machine),
        *odd_widths(config),
    ]
    if problems:
        raise CapacityError([*problems, Problem("to go on", _way_out(config.precision))])


def missing(recipe: Recipe, machine: Machine, version: str | None) -> list[Problem]:
    """What this machine lacks for a recipe; `version` is that of Transformer Engine here."""
    need, setting = NEEDS[recipe], f"precision.recipe={recipe}"
    problems = []
    if not machine.gpus:
        rule = f"needs {need.hardware}, and no CUDA GPU was found through NVML"
        problems.append(Problem(setting, rule))
    for gpu in dict.fromkeys(gpu for gpu in machine.gpus if not need.met_by(gpu)):
        rule = f"needs {need.hardware}, {_capability(need)}; {gpu.name} has {_dotted(gpu)}"
        problems.append(Problem(setting, rule))
    if version is None:
        problems.append(Problem(setting, f"{DISTRIBUTION} is not installed", INSTALL))
    return problems


def odd_widths(config: RunConfig) -> list[Problem]:
    """Widths of linear layers that FP8 products cannot have."""
    if not config.precision.is_fp8:
        return []
    multiple = 32 if config.precision.recipe == "mxfp8" else 16
    rule = f"FP8 products need widths that are multiples of {multiple}"
    return [
        Problem(f"model.{key}={value}", rule)
        for key, value in _widths(config.model).items()
        if value % multiple
    ]


def check_widths(config: RunConfig) -> None:
    """Raise CapacityError for widths that `precision.backend=te` cannot have, on any machine."""
    problems = odd_widths(config) if config.precision.backend == "te" else []
    if problems:
        raise CapacityError([*problems, Problem("to go on", _way_out(config.precision))])


def _widths(model: ModelConfig) -> dict[str, int]:
    """Widths in and out of every linear layer and expert, each under the keys it comes from."""
    heads = model.num_attention_heads
    widths = {
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "moe_intermediate_size": model.moe_intermediate_size,
        "kv_lora_rank": model.kv_lora_rank,
        "kv_lora_rank+qk_rope_head_dim": model.kv_lora_rank + model.qk_rope_head_dim,
        "num_attention_heads*qk_head_dim": heads * model.qk_head_dim,
        "num_attention_heads*(qk_nope_head_dim+v_head_dim)": heads
        * (model.qk_nope_head_dim + model.v_head_dim),
        "num_attention_heads*v_head_dim": heads * model.v_head_dim,
    }
    if model.q_lora_rank is not None:
        widths["q_lora_rank"] = model.q_lora_rank
    return widths


def _device_problems(config: RunConfig) -> list[Problem]:
    if config.launcher.device != "cpu":
        return []
    rule = "Transformer Engine (precision.backend=te) computes on GPUs"
    return [Problem("launcher.device=cpu", rule, "leave it out")]


def _scale_problems(precision: PrecisionConfig, machine: Machine) -> list[Problem]:
    """After Hopper, products of these tiles are made of MXFP8's."""
    newest = max((gpu.compute_capability for gpu in machine.gpus), default=(0, 0))
    if precision.recipe != "fp8_block" or precision.scales != "fp32":
        return []
    if newest < FIRST_WITHOUT_FP32_SCALES:
        return []
    rule = "GPUs after Hopper multiply these tiles with power-of-two scales only"
    return [Problem("precision.scales=fp32", rule, "use power_of_two")]


def _way_out(precision: PrecisionConfig) -> str:
    if precision.recipe == "bf16":
        return "leave precision.backend=te out"
    same = "the same values on any machine" if precision.recipe == "fp8_block" else "tiled FP8"
    return (
        f"{EMULATION} computes {same}, precision=bf16 trains on every GPU; `--dry-run` and `plan`"
        " show this run as it is"
    )


def _capability(need: Need) -> str:
    text = f"compute capability {need.capability[0]}.{need.capability[1]}"
    return f"{text} or higher" if need.below is None else f"{text} to below {need.below[0]}.0"


def _dotted(gpu: Gpu) -> str:
    return ".".join(map(str, gpu.compute_capability))
