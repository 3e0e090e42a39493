"""Products that nobody notes: what torch really multiplies while a pass is recorded, and for whom.

A dispatch mode sees every operator below autograd, with the operands that it is given. It changes
none of them, nor the order of anything: a recorded step has the bits of another.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import dsv3.ops.attention
import dsv3.ops.experts  # noqa: F401 - both register operators
from dsv3.model.names import is_expert
from dsv3.ops.gemm_log import Gemm, GemmKind, in_backward, note

_aten, _ours = torch.ops.aten, torch.ops.dsv3

# Where the left operand is among the arguments; the right one follows.
_LEFT_OPERAND: Final = {
    **dict.fromkeys((_aten.mm.default, _aten.mm.out, _aten.bmm.default, _aten.bmm.out), 0),
    **dict.fromkeys((_aten.addmm.default, _aten.addmm.out, _aten.addmm_.default), 1),
    **dict.fromkeys((_aten.baddbmm.default, _aten.baddbmm.out, _aten.baddbmm_.default), 1),
    **dict.fromkeys((_aten._grouped_mm.default, _aten._scaled_mm.default), 0),
}
_ATTENTION: Final = {
    _ours.kept_attention.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
}
_ATTENTION_BACKWARD: Final = {
    _ours.kept_attention_backward.default,
    _aten._scaled_dot_product_flash_attention_backward.default,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
    _aten._scaled_dot_product_efficient_attention_backward.default,
    _aten._scaled_dot_product_cudnn_attention_backward.default,
}
_SHORT: Final = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
NOBODY: Final = "model"
"""Whose products those are that no layer can be told of."""


class Weight(NamedTuple):
    """A parameter as operands of products show it."""

    layer: str
    shape: torch.Size
    inputs_stride: int  # of its last dimension, that of a layer's input


@contextmanager
def observing(model: nn.Module) -> Iterator[Counter[str]]:
    """Note the products of all operators inside, and count the rows that experts are given.

    The rows go by the experts' canonical name, as of `model.layers.3.mlp.experts`.
    """
    observer = _Observer(model)
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.callback(module.register_forward_pre_hook(observer.entering(name)).remove)
            leaving = module.register_forward_hook(observer.leave, always_call=True)
            hooks.callback(leaving.remove)
        with observer:
            yield observer.rows


class _Observer(TorchDispatchMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows: Counter[str] = Counter()
        weights = [_weight(name, parameter) for name, parameter in model.named_parameters()]
        addresses = (parameter.data_ptr() for parameter in model.parameters())
        self._by_address = dict(zip(addresses, weights, strict=True))
        self._by_layer = {weight.layer: weight for weight in weights}
        self._modules: list[str] = []
        # Autograd numbers its nodes: whose product one belongs to is known when it is made.
        self._layer_of_node: dict[int, str] = {}
        self._last: Weight | None = None

    def entering(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        """A hook for the beginning of a module's forward pass."""
        takes_rows = f"{name}.gate_up_proj" in self._by_layer

        def enter(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            self._modules.append(name)
            if takes_rows:
                self.rows[name] += int(arguments[2].sum())

        return enter

    def leave(self, _module: nn.Module, _arguments: Any, _result: Any) -> None:
        """The hook for the end, also of one that recomputation breaks off."""
        self._modules.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _LEFT_OPERAND:
            first = _LEFT_OPERAND[func]
            left, right = args[first : first + 2]
            self._note(*self._whose(left, right, result), (left, right, result))
        elif func in _ATTENTION:
            self._note(self._attention(), "fprop", (args[0], args[1], result[0]))
        elif func in _ATTENTION_BACKWARD:
            self._note(self._attention(), "backward", (args[0], args[2], result[0]))
        elif func is _ours.grouped_mlp.default:
            rows, _, _, *projections = args
            for weight in projections:
                self._note(self._experts(weight), "fprop", (rows, weight, result[0]))
        elif func is _ours.grouped_mlp_backward.default:
            grad, rows, _, _, *projections, _ = args
            for weight, grad_weight in zip(projections, result[2:], strict=True):
                layer = self._experts(weight)
                self._note(layer, "dgrad", (grad, weight, result[0]))
                self._note(layer, "wgrad", (grad, rows, grad_weight))
        return result

    def _note(self, layer: str, kind: GemmKind, tensors: tuple[Tensor, Tensor, Tensor]) -> None:
        if not in_backward():
            # Without a graph the newest node is another's, and has its layer if it needs one.
            self._layer_of_node.setdefault(torch._C._autograd._get_sequence_nr() - 1, layer)
        left, right, output = (_format(tensor) for tensor in tensors)
        note(Gemm(layer, kind, left, right, output))

    def _whose(self, left: Tensor, right: Tensor, output: Tensor) -> tuple[str, GemmKind]:
        """The layer of a product of matrices, and which of its three it is."""
        for operand, summed in ((left, -1), (right, -2)):
            weight = self._by_address.get(operand.data_ptr())
            if weight is not None and operand.numel() == weight.shape.numel():
                self._last = weight
                # fprop sums over the inputs of a layer, dgrad over its outputs.
                over_inputs = operand.stride(summed) == weight.inputs_stride
                return weight.layer, "fprop" if over_inputs else "dgrad"
        layer = self._place()
        if in_backward() and not self._modules:
            return layer, self._gradient_kind(layer, left, right, output)
        # The head makes its gradients in its forward pass.
        last = self._last
        if layer not in self._by_layer and last is not None and output.shape == last.shape:
            return last.layer, "wgrad"
        return layer, "fprop"

    def _gradient_kind(self, layer: str, left: Tensor, right: Tensor, output: Tensor) -> GemmKind:
        """Which product of a layer whose weight is read as a copy of another type, by shapes."""
        weight = self._by_layer.get(layer)
        if weight is None:
            return "backward"
        either = {tuple(weight.shape), tuple(weight.shape[::-1])}
        makes_weight = tuple(output.shape) in either
        reads_weight = tuple(left.shape) in either or tuple(right.shape) in either
        if makes_weight == reads_weight:
            return "backward"
        return "wgrad" if makes_weight else "dgrad"

    def _place(self) -> str:
        """The innermost module of a forward pass, or the layer that the gradient is of."""
        if self._modules:
            return self._modules[-1] or NOBODY
        if not in_backward():
            return NOBODY
        number = torch._C._current_autograd_node()._sequence_nr()
        return self._layer_of_node.get(number, NOBODY)

    def _attention(self) -> str:
        # Recomputation calls a part of the module, past its hooks.
        block = ".".join(self._place().split(".")[:3])
        return block if block == NOBODY else f"{block}.self_attn"

    def _experts(self, weight: Tensor) -> str:
        known = self._by_address.get(weight.data_ptr())
        return self._place() if known is None else known.layer


def _weight(name: str, parameter: Tensor) -> Weight:
    layer = name if is_expert(name) else name.removesuffix(".weight")
    return Weight(layer, parameter.shape, parameter.stride(-1))


def _format(tensor: Tensor) -> str:
    return _SHORT.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
