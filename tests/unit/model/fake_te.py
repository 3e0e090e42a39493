"""A CPU stand-in for Transformer Engine 2.20: what our adapter calls of it, and what that checks.

Signatures, defaults, the ways weights and gradients travel, the refusals of shapes and the traps of
the recipes are the package's, read from its source; arithmetic is plain torch, FP8 that of `ops`.
It says nothing about the package's kernels.
"""

import dataclasses
import enum
import math
import sys
import types
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsv3.ops.fp8 import BLOCKS, COLUMNS, ROWS, Rounded, round_to_fp8
from dsv3.ops.fp8_products import Sums, product, transposed
from dsv3.ops.norm import rms_norm


class DType(enum.IntEnum):
    kFloat8E4M3 = 7
    kFloat8E5M2 = 8


class Format(enum.Enum):
    E4M3 = (DType.kFloat8E4M3, DType.kFloat8E4M3)
    HYBRID = (DType.kFloat8E4M3, DType.kFloat8E5M2)


@dataclasses.dataclass(frozen=True)
class QParams:
    power_2_scale: bool = False
    amax_epsilon: float = 0.0


@dataclasses.dataclass(repr=False)
class Float8BlockScaling:
    use_f32_scales: bool = False
    fp8_format: Format = Format.E4M3
    # As in the package without annotations: made with the class, deaf to the constructor.
    fp8_quant_fwd_inp = QParams(power_2_scale=not use_f32_scales)
    fp8_quant_fwd_weight = QParams(power_2_scale=not use_f32_scales)
    fp8_quant_bwd_grad = QParams(power_2_scale=not use_f32_scales)
    x_block_scaling_dim: int = 1
    w_block_scaling_dim: int = 2
    grad_block_scaling_dim: int = 1
    backward_override: str | None = "high_precision"  # as its environment variable might have it


@dataclasses.dataclass(repr=False)
class Float8CurrentScaling:
    use_power_2_scales: bool = False
    fp8_format: Format = Format.HYBRID
    fp8_quant_fwd_inp = QParams(power_2_scale=use_power_2_scales)
    fp8_quant_fwd_weight = QParams(power_2_scale=use_power_2_scales)
    fp8_quant_bwd_grad = QParams(power_2_scale=use_power_2_scales)
    backward_override: str | None = "high_precision"


@dataclasses.dataclass(repr=False)
class MXFP8BlockScaling:
    margin: int = 0
    fp8_format: Format = Format.E4M3
    backward_override: str | None = "high_precision"


class Quantizer:
    """Makes both copies of a tensor; `tensor_type` as the package's slots are called."""

    def __init__(self, recipe: Any, tensor_type: str) -> None:
        backward = tensor_type == "grad_output"
        self.dtype = recipe.fp8_format.value[1 if backward else 0]
        names = {"input": "fwd_inp", "weight": "fwd_weight", "grad_output": "bwd_grad"}
        qparams = getattr(recipe, f"fp8_quant_{names[tensor_type]}", QParams(power_2_scale=True))
        self.force_pow_2_scales = qparams.power_2_scale
        self.is_weight = tensor_type == "weight"
        self.recipe = recipe

    def __call__(self, x: Tensor) -> "QuantizedTensorStorage":
        kinds = {
            Float8BlockScaling: Float8BlockwiseQTensorStorage,
            Float8CurrentScaling: Float8TensorStorage,
            MXFP8BlockScaling: MXFP8TensorStorage,
        }
        return kinds[type(self.recipe)](x.detach(), self)


class QuantizedTensorStorage:
    def __init__(self, x: Tensor, quantizer: Quantizer) -> None:
        assert x.ndim == 2
        self._quantizer, self._fp8_dtype = quantizer, quantizer.dtype
        self.by_row, self.by_column = self.copies(x, quantizer.force_pow_2_scales)

    def copies(self, x: Tensor, power_of_two: bool) -> tuple[Rounded, Rounded]:
        raise NotImplementedError


class Float8BlockwiseQTensorStorage(QuantizedTensorStorage):
    def copies(self, x: Tensor, power_of_two: bool) -> tuple[Rounded, Rounded]:
        self._is_2D_scaled = self._quantizer.is_weight
        tiles = (BLOCKS, BLOCKS) if self._is_2D_scaled else (ROWS, COLUMNS)
        return tuple(round_to_fp8(x, tile, power_of_two=power_of_two) for tile in tiles)  # type: ignore[return-value]


class Float8TensorStorage(QuantizedTensorStorage):
    def copies(self, x: Tensor, power_of_two: bool) -> tuple[Rounded, Rounded]:
        dtype = torch.float8_e4m3fn if "E4M3" in self._fp8_dtype.name else torch.float8_e5m2
        largest = torch.finfo(dtype).max
        amax = x.abs().amax().float() if x.numel() else torch.zeros(())
        scale = largest / amax if amax > 0 else torch.ones(())
        values = (x.float() * scale).clamp(-largest, largest).to(dtype).float() / scale
        return Rounded(values, None), Rounded(values, None)


class MXFP8TensorStorage(QuantizedTensorStorage):
    def copies(self, x: Tensor, power_of_two: bool) -> tuple[Rounded, Rounded]:
        if x.shape[0] % 32 or x.shape[1] % 32:
            raise RuntimeError(f"MXFP8 requires dims divisible by 32, got {tuple(x.shape)}")
        return tuple(round_to_fp8(x, tile, power_of_two=True) for tile in ((1, 32), (32, 1)))  # type: ignore[return-value]


def _operand(x: Any, by_row: bool) -> Rounded:
    if isinstance(x, QuantizedTensorStorage):
        return x.by_row if by_row else x.by_column
    return Rounded(x.float(), None)


def general_gemm(
    A: Any,
    B: Any,
    out_dtype: torch.dtype | None = None,
    quantization_params: Any = None,
    gelu: bool = False,
    gelu_in: Any = None,
    alpha: float = 1.0,
    beta: float | None = None,
    accumulate: bool = False,
    layout: str = "TN",
    out: Tensor | None = None,
    bias: Tensor | None = None,
    use_split_accumulator: bool = False,
    grad: bool = False,
    ub: Any = None,
    ub_type: Any = None,
    extra_output: Any = None,
    bulk_overlap: bool = False,
) -> tuple[Tensor, None, None, None]:
    """D = op(B) op(A), as cuBLAS multiplies."""
    right, left = _operand(A, layout[0] == "T"), _operand(B, layout[1] == "N")
    if layout != "TN":
        right = transposed(right)
    if layout == "NT":
        left = transposed(left)
    result = product(left, right, Sums())
    if out is None:
        assert out_dtype is not None
        return result.to(out_dtype), None, None, None
    out.copy_(out + result if accumulate else result)
    return out, None, None, None


def general_grouped_gemm(
    A: list[Any],
    B: list[Any],
    out: list[Tensor],
    quantization_params: list[Any],
    out_dtype: torch.dtype,
    layout: str = "TN",
    m_splits: list[int] | None = None,
    gelu: bool = False,
    grad: bool = False,
    accumulate: bool = False,
    bias: Any = None,
    use_bias: bool = False,
    use_split_accumulator: bool = False,
    D_dtype: Any = None,
    single_output: bool = False,
) -> tuple[list[Tensor], Any, Any]:
    parts = out[0].split(m_splits) if single_output else out
    for a, b, part in zip(A, B, parts, strict=True):
        if part.numel() == 0:
            continue
        general_gemm(a, b, layout=layout, out=part, accumulate=accumulate)
    return out, bias, None


class _State:
    enabled, recipe = False, None


class autocast:
    def __init__(
        self,
        enabled: bool = True,
        calibrating: bool = False,
        recipe: Any = None,
        amax_reduction_group: Any = None,
        _graph: bool = False,
    ) -> None:
        self.now = (enabled, recipe)

    def __enter__(self) -> None:
        self.before = (_State.enabled, _State.recipe)
        _State.enabled, _State.recipe = self.now

    def __exit__(self, *_: object) -> None:
        _State.enabled, _State.recipe = self.before


def _fp8() -> Any | None:
    return _State.recipe if _State.enabled else None


def _check_dims(*tensors: Tensor) -> None:
    for x in tensors:
        if math.prod(x.shape[:-1]) % 8 != 0 or x.shape[-1] % 16 != 0:
            raise ValueError(f"FP8 execution requires dims / 8 and / 16, got {list(x.shape)}")


def _check_wgrad(rows: int) -> None:
    if rows % 16:
        raise RuntimeError(f"cuBLAS: leading dimension {rows} is no multiple of 16")


class _Function(torch.autograd.Function):
    """A linear or a grouped layer: `splits` of one run for the former."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, splits: list[int] | None, *weights: Tensor) -> Tensor:
        recipe = _fp8()
        if recipe is not None and recipe.backward_override is not None:
            raise AssertionError("the backward pass would be in high precision")
        ctx.recipe, ctx.splits, ctx.shape = recipe, splits, x.shape
        ctx.weight_refs = [weakref.ref(w) for w in weights]
        ctx.main_grads = lambda: [w.main_grad for w in weights]  # type: ignore[attr-defined]
        rows = x.reshape(-1, x.shape[-1])
        parts = list(rows.split(splits)) if splits is not None else [rows]
        kept, lent = parts, list(weights)
        if recipe is not None:
            for part in parts if splits is not None else [x]:
                if part.numel():
                    _check_dims(part)
            _check_dims(*weights)
            kept = [Quantizer(recipe, "input")(part) for part in parts]
            lent = [Quantizer(recipe, "weight")(w) for w in weights]
        out = x.new_empty(rows.shape[0], weights[0].shape[0])
        if splits is None:
            out = _gemm(lent[0], kept[0], x.dtype)
        else:
            _grouped(lent, kept, [out], [], x.dtype, m_splits=splits, single_output=True)
        ctx.save_for_backward(x)
        ctx.kept, ctx.lent, ctx.needs = kept, lent, x.requires_grad
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        (x,) = ctx.saved_tensors
        assert all(ref() is not None for ref in ctx.weight_refs), "weight was removed"
        main_grads, splits = ctx.main_grads(), ctx.splits
        rows = dy.contiguous().view(-1, dy.shape[-1])
        parts = list(rows.split(splits)) if splits is not None else [rows]
        if ctx.recipe is not None:
            for part in parts:
                _check_wgrad(part.shape[0])
            parts = [Quantizer(ctx.recipe, "grad_output")(part) for part in parts]
        dx = None
        if splits is None:
            if ctx.needs:
                dx = _gemm(ctx.lent[0], parts[0], x.dtype, layout="NN", grad=True)
            wgrad = {"layout": "NT", "out": main_grads[0], "accumulate": True, "grad": True}
            _gemm(ctx.kept[0], parts[0], main_grads[0].dtype, **wgrad)
        else:
            if ctx.needs:
                dx = x.new_empty(rows.shape[0], x.shape[-1])
                dgrad = {"layout": "NN", "m_splits": splits, "single_output": True, "grad": True}
                _grouped(ctx.lent, parts, [dx], [], x.dtype, **dgrad)
            wgrad = {"layout": "NT", "m_splits": splits, "accumulate": True, "grad": True}
            _grouped(ctx.kept, parts, main_grads, [], x.dtype, **wgrad)
        dx = None if dx is None else dx.view(ctx.shape)
        return dx, None, *(None for _ in main_grads)


def _gemm(a: Any, b: Any, dtype: torch.dtype, **named: Any) -> Tensor:
    """As the modules call it: by the name in their own file."""
    module: Any = sys.modules["transformer_engine.pytorch.module.linear"]
    result: Tensor = module.general_gemm(a, b, out_dtype=dtype, **named)[0]
    return result


def _grouped(*operands: Any, **named: Any) -> None:
    module: Any = sys.modules["transformer_engine.pytorch.module.grouped_linear"]
    module.general_grouped_gemm(*operands, **named)


class _Base(nn.Module):
    """What the base class does that matters: extra state, and types that must agree."""

    def get_extra_state(self) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        pass

    def _run(self, x: Tensor, splits: list[int] | None, weights: list[Tensor]) -> Tensor:
        assert all(weight.dtype == x.dtype for weight in weights)
        assert self.fuse_wgrad_accumulation
        if torch.is_grad_enabled():
            out: Tensor = _Function.apply(x.contiguous(), splits, *weights)
            return out
        return _Function.forward(types.SimpleNamespace(save_for_backward=len), x, splits, *weights)


class Linear(_Base):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        sequence_parallel: bool = False,
        fuse_wgrad_accumulation: bool = False,
        tp_group: Any = None,
        tp_size: int = 1,
        get_rng_state_tracker: Any = None,
        rng_tracker_name: str | None = None,
        init_method: Any = None,
        bias: bool = True,
        return_bias: bool = False,
        params_dtype: torch.dtype | None = None,
        parallel_mode: str | None = None,
        parameters_split: Any = None,
        device: Any = "cuda",
        ub_overlap_ag: bool = False,
        ub_overlap_rs: bool = False,
        ub_overlap_rs_dgrad: bool = False,
        ub_bulk_dgrad: bool = False,
        ub_bulk_wgrad: bool = False,
        ub_name: str | None = None,
        delay_wgrad_compute: bool = False,
        symmetric_ar_type: str | None = None,
        save_original_input: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__()
        assert not bias and init_method is not None and params_dtype is not None
        self.fuse_wgrad_accumulation = fuse_wgrad_accumulation
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=params_dtype))

    def forward(
        self,
        inp: Tensor,
        is_first_microbatch: bool | None = None,
        fp8_output: bool | None = False,
        fp8_grad: bool | None = False,
    ) -> Tensor:
        return self._run(inp, None, [self.weight])


class GroupedLinear(_Base):
    def __init__(
        self,
        num_gemms: int,
        in_features: int,
        out_features: int,
        sequence_parallel: bool = False,
        fuse_wgrad_accumulation: bool = False,
        tp_group: Any = None,
        tp_size: int = 1,
        get_rng_state_tracker: Any = None,
        rng_tracker_name: str | None = None,
        init_method: Any = None,
        bias: bool = True,
        return_bias: bool = False,
        params_dtype: torch.dtype | None = None,
        parallel_mode: str | None = None,
        device: Any = "cuda",
        ub_overlap_rs: bool = False,
        ub_overlap_ag: bool = False,
        ub_name: str | None = None,
        delay_wgrad_compute: bool = False,
        save_original_input: bool = False,
        single_grouped_weight: bool = False,
        single_grouped_bias: bool = False,
        name: str | None = None,
        use_grouped_tensor: bool | None = None,
    ) -> None:
        super().__init__()
        assert not bias and init_method is not None and params_dtype is not None
        assert use_grouped_tensor is False, "an environment variable would decide"
        self.num_gemms, self.fuse_wgrad_accumulation = num_gemms, fuse_wgrad_accumulation
        for index in range(num_gemms):
            weight = torch.empty(out_features, in_features, dtype=params_dtype)
            self.register_parameter(f"weight{index}", nn.Parameter(weight))

    def forward(
        self,
        inp: Tensor,
        m_splits: Any,
        is_first_microbatch: bool | None = None,
        out: Tensor | None = None,
        dgrad_out: Tensor | None = None,
    ) -> Tensor:
        if m_splits.size() != (self.num_gemms,):
            raise ValueError(f"{m_splits.size()} does not match {self.num_gemms} GEMMs")
        weights = [getattr(self, f"weight{index}") for index in range(self.num_gemms)]
        return self._run(inp, m_splits.tolist(), weights)


class RMSNorm(nn.Module):
    def __init__(
        self,
        normalized_shape: Any = None,
        eps: float = 1e-5,
        sequence_parallel: bool | None = None,
        params_dtype: torch.dtype | None = None,
        zero_centered_gamma: bool = False,
        hidden_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        assert set(kwargs) <= {"device", "dtype", "sm_margin"}
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(normalized_shape, dtype=kwargs["dtype"]))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class DotProductAttention(_Base):
    def __init__(
        self,
        num_attention_heads: int,
        kv_channels: int | tuple[int, int],
        num_gqa_groups: int | None = None,
        attention_dropout: float = 0.0,
        qkv_format: str = "sbhd",
        attn_mask_type: str = "causal",
        window_size: tuple[int, int] | None = None,
        bottom_right_diagonal: bool | None = None,
        softcap: float = 0.0,
        sequence_parallel: bool = False,
        tp_size: int = 1,
        get_rng_state_tracker: Any = None,
        tp_group: Any = None,
        layer_number: int | None = None,
        attention_type: str = "self",
        cp_group: Any = None,
        cp_global_ranks: Any = None,
        cp_stream: Any = None,
        cp_comm_type: str = "p2p",
        softmax_scale: float | None = None,
        softmax_type: str = "vanilla",
        return_max_logit: bool | None = False,
        name: str | None = None,
    ) -> None:
        super().__init__()
        assert qkv_format == "bshd" and attn_mask_type == "causal" and attention_dropout == 0
        self.heads, self.widths, self.scale = num_attention_heads, kv_channels, softmax_scale

    def forward(self, query_layer: Tensor, key_layer: Tensor, value_layer: Tensor) -> Tensor:
        assert (query_layer.shape[-1], value_layer.shape[-1]) == self.widths
        assert query_layer.shape[2] == self.heads and not _State.enabled
        qkv = (x.transpose(1, 2) for x in (query_layer, key_layer, value_layer))
        out = F.scaled_dot_product_attention(*qkv, is_causal=True, scale=self.scale)
        return out.transpose(1, 2).flatten(2)


def _available(return_reason: bool = False) -> Any:
    return (True, "") if return_reason else True


def install(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Put it where Transformer Engine would be, and give the backend what it would import."""
    names = ("", ".common", ".common.recipe", ".pytorch", ".pytorch.module")
    files = (".pytorch.module.linear", ".pytorch.module.grouped_linear")
    modules: dict[str, Any] = {}
    for name in (*names, *files):
        modules[name] = types.ModuleType(f"transformer_engine{name}")
        monkeypatch.setitem(sys.modules, f"transformer_engine{name}", modules[name])
        parent, _, leaf = name.rpartition(".")
        if leaf:
            setattr(modules[parent], leaf, modules[name])
    for found in (Format, QParams, Float8BlockScaling, Float8CurrentScaling, MXFP8BlockScaling):
        setattr(modules[".common.recipe"], found.__name__, found)
    te = modules[".pytorch"]
    for each in (Linear, GroupedLinear, RMSNorm, DotProductAttention, autocast):
        setattr(te, each.__name__, each)
    for each in (Float8BlockwiseQTensorStorage, Float8TensorStorage, MXFP8TensorStorage):
        setattr(te, each.__name__, each)
    te.QuantizedTensorStorage = QuantizedTensorStorage
    for check in ("fp8_block_scaling", "fp8", "mxfp8"):
        setattr(te, f"is_{check}_available", _available)
    modules[files[0]].general_gemm = general_gemm
    modules[files[1]].general_grouped_gemm = general_grouped_gemm
    monkeypatch.setattr("dsv3.model.backends.te.load_engine", lambda _precision: te)
    result: types.ModuleType = te
    return result
