"""Transformer Engine's own Python on a CPU: its compiled parts replaced by torch and our quantiser.

For a process of its own, where the package's files are: it patches torch and the package for good.
Whatever of linear.py, grouped_linear.py, rmsnorm.py, quantization.py and the tensor classes a
training step goes through is the package's; quantiser, products and norm are ours.
"""

import contextlib
import enum
import importlib.abc
import importlib.machinery
import os
import sys
import types
import warnings
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor

from dsv3.ops.fp8 import BLOCKS, COLUMNS, ROWS, Codes, Rounded, Shape, dequantise, quantise
from dsv3.ops.fp8_products import Sums, product

ABSENT = ("transformer_engine_torch", "triton", "onnxscript", "onnx", "nvdlfw_inspect", "einops")
TYPES = {"kByte": 0, "kInt32": 2, "kFloat32": 4, "kFloat16": 5, "kBFloat16": 6}
TYPES |= {"kFloat8E4M3": 7, "kFloat8E5M2": 8, "kFloat4E2M1": 10}


class _Absent(types.ModuleType):
    """A package of which anything can be imported; nothing of it is called."""

    __path__ = ()
    __version__ = "3.6.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, MagicMock(name=name))
        return getattr(self, name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".", maxsplit=1)[0] in ABSENT:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Absent(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def load() -> types.SimpleNamespace:
    """What `te.py` uses of `transformer_engine.pytorch`, its layers made on the CPU."""
    os.environ["NVTE_PROJECT_BUILDING"] = "1"  # load no libraries
    warnings.simplefilter("ignore")
    sys.meta_path.insert(0, _Finder())
    import transformer_engine_torch as tex

    slots = [f"GEMM{i}_{what}" for i in (1, 2, 3) for what in ("INPUT", "WEIGHT", "OUTPUT")]
    tex.FP8FwdTensors = enum.IntEnum("FP8FwdTensors", slots, start=0)
    slots = [f"GRAD_{what}{i}" for i in (1, 2, 3) for what in ("OUTPUT", "INPUT")]
    tex.FP8BwdTensors = enum.IntEnum("FP8BwdTensors", slots, start=0)
    tex.DType = enum.IntEnum("DType", TYPES)
    names = [f"NVTE_{name}" for name in ("No_Backend", "F16_arbitrary_seqlen", "FP8")]
    tex.NVTE_Fused_Attn_Backend = enum.IntEnum("NVTE_Fused_Attn_Backend", names, start=0)
    torch.cuda.is_available = lambda: True
    torch.cuda.is_current_stream_capturing = lambda: False
    torch.Tensor.cuda = lambda self, *_, **__: self
    torch.Tensor.is_cuda = property(lambda _: True)  # type: ignore[assignment]
    import transformer_engine.common

    transformer_engine.common.load_framework_extension = lambda _: None
    import transformer_engine.pytorch as te

    _without_a_gpu()
    tex.quantize = _quantise
    tex.split_quantize = lambda x, splits, quantizers, **_: [
        _quantise(part, quantizer)
        for part, quantizer in zip(x.split(splits), quantizers, strict=True)
    ]
    tex.generic_gemm, tex.te_general_grouped_gemm = _gemm, _grouped_gemm
    norm = sys.modules["transformer_engine.pytorch.ops.basic.rmsnorm"]
    norm.rmsnorm_fwd, norm.rmsnorm_bwd = _norm, _norm_backward

    def here(kind: Any) -> Any:
        return lambda *arguments, **named: kind(*arguments, **(named | {"device": "cpu"}))

    kinds = {name: here(getattr(te, name)) for name in ("Linear", "GroupedLinear", "RMSNorm")}
    return types.SimpleNamespace(**kinds, autocast=te.autocast)


def _without_a_gpu() -> None:
    """Answer for a Hopper what the package asks CUDA."""
    prefix = "transformer_engine.pytorch"
    quantization = sys.modules[f"{prefix}.quantization"]
    for what, able in (("FP8", True), ("FP8_BLOCK_SCALING", True), ("MXFP8", False)):
        setattr(quantization, f"_{what}_SUPPORT", (able, ""))
    gemm = sys.modules[f"{prefix}.cpp_extensions.gemm"]
    one = torch.empty(1)
    gemm.get_cublas_workspace = lambda _device, _ub, grouped: [one] if grouped else one
    gemm.get_sm_count = lambda: 0
    for name, module in list(sys.modules.items()):
        if not name.startswith(prefix):
            continue
        if hasattr(module, "get_device_compute_capability"):
            module.get_device_compute_capability = lambda: (9, 0)
        for push in ("nvtx_range_push", "nvtx_range_pop"):
            if hasattr(module, push):
                setattr(module, push, lambda *_, **__: None)
        if hasattr(module, "get_nvtx_range_context"):
            module.get_nvtx_range_context = lambda *_: contextlib.nullcontext()


def _quantise(x: Tensor, quantizer: Any, out: Any = None, noop: Any = None) -> Any:
    """Float8BlockQuantizer: by row, and by column with everything stored transposed."""
    from transformer_engine.pytorch import Float8BlockwiseQTensorStorage

    square = quantizer.block_scaling_dim == 2
    power_of_two = quantizer.force_pow_2_scales
    stored: list[Tensor | None] = []
    for wanted, tile, by_column in (
        (quantizer.rowwise_usage, ROWS, False),
        (quantizer.columnwise_usage, COLUMNS, True),
    ):
        if not wanted:
            stored += [None, None]
            continue
        made = quantise(x, BLOCKS if square else tile, power_of_two=power_of_two)
        codes, scales = (part.t() if by_column else part for part in made)
        stored += [codes.contiguous().view(torch.uint8), scales.contiguous()]
    return Float8BlockwiseQTensorStorage(
        *stored, quantizer.dtype, quantizer, square, fake_dtype=x.dtype
    )


def _operand(x: Any, by_row: bool) -> Rounded:
    """The copy of an operand that a product reads, as rows."""
    if isinstance(x, Tensor):
        return Rounded(x.float() if by_row else x.float().t(), None)
    copy = (x._rowwise_data, x._rowwise_scale_inv)
    if not by_row:
        copy = (x._columnwise_data, x._columnwise_scale_inv)
    codes = copy[0].view(torch.float8_e4m3fn)
    if not x._quantizer.force_pow_2_scales:
        return Rounded(codes.float(), copy[1])
    tile: Shape = BLOCKS if x._is_2D_scaled else ROWS
    return Rounded(dequantise(Codes(codes, copy[1]), tile, torch.float32), None)


def _product(a: Any, transa: bool, b: Any, transb: bool) -> Tensor:
    return product(_operand(b, not transb), _operand(a, transa), Sums())


def _gemm(*arguments: Any, **_named: Any) -> tuple[Tensor, None, None, None]:
    """A, transa, B, transb, out, quantizer, out_dtype, ..., accumulate at 14."""
    from transformer_engine.pytorch.constants import TE_DType

    out, accumulate = arguments[4], arguments[14]
    result = _product(*arguments[:4])
    if out is None:
        (dtype,) = (key for key, value in TE_DType.items() if value == arguments[6])
        return result.to(dtype), None, None, None
    out.copy_(out + result if accumulate else result)
    return out, None, None, None


def _grouped_gemm(*arguments: Any) -> Any:
    """A, transa, B, transb, out, out_dtype, m_splits, bias, _, single_output, ..., accumulate."""
    a_list, transa, b_list, transb, out, _, splits, bias, _, single = arguments[:10]
    accumulate = arguments[14]
    parts = out[0].split(splits) if single else out
    for a, b, part, rows in zip(a_list, b_list, parts, splits, strict=True):
        if rows == 0:
            if not accumulate:
                part.zero_()
            continue
        result = _product(a, transa, b, transb)
        part.copy_(part + result if accumulate else result)
    return bias


def _norm(x: Tensor, weight: Tensor, eps: float, *_: Any) -> tuple[Tensor, None, Tensor]:
    inverse = (x.float().square().mean(dim=-1) + eps).rsqrt()
    return (x.float() * inverse.unsqueeze(-1) * weight.float()).to(x.dtype), None, inverse


def _norm_backward(
    dy: Tensor, x: Tensor, inverse: Tensor, weight: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    unit = x.float() * inverse.unsqueeze(-1)
    scaled = dy.float() * weight.float()
    along = (scaled * unit).mean(dim=-1, keepdim=True)
    dx = (scaled - unit * along) * inverse.unsqueeze(-1)
    return dx.to(x.dtype), (dy.float() * unit).sum(dim=0).to(weight.dtype)


def main() -> None:
    """A step of a small model, over the package and by the emulation: the same bits."""
    from dsv3.model.backends import te
    from numerics.small_model import mtp
    from unit.model import test_te_backend as cases

    engine = load()
    te.load_engine = lambda _precision: engine  # type: ignore[assignment]

    class Emulation(cases.EmulatedBackend):
        """With the norm that stands in for the package's kernel."""

        def rms_norm(self, width: int, eps: float) -> torch.nn.Module:
            return te.EngineRmsNorm(engine, width, eps)

    settings = [("power_of_two", {"mtp": mtp(1)})]
    settings += [("fp32", {"recompute": p}) for p in ("full", "norm_and_up_projection")]
    for scales, parts in settings:
        values = cases.BLOCK | {"scales": scales}
        emulated = values | {"recipe": "fp8_block_emulated"}
        reference = Emulation(cases.precision(emulated, "emulated"))
        backend = te.TransformerEngineBackend(cases.precision(values))
        with cases.recording() as log:
            loss, gradients = cases.step(cases.small(backend, **parts))
        plain = {key: value for key, value in parts.items() if key != "recompute"}
        wanted_loss, wanted = cases.step(cases.small(reference, **plain))
        assert torch.equal(loss, wanted_loss), (scales, parts)
        assert set(gradients) == set(wanted)
        different = [n for n in wanted if not torch.equal(gradients[n], wanted[n])]
        assert not different, (scales, parts, different)
        assert {g.left.split()[0] for g in log.calls} == {"e4m3"}
        assert all(g.layer.startswith("model.") for g in log.calls)
        assert {g.output for g in log.calls if g.kind == "wgrad"} == {"fp32"}
    print("held")


if __name__ == "__main__":
    main()
