"""A Transformer Engine layer computing with a weight that is not its own.

Our modules hold the weights, under the canonical names and with the experts stacked; Transformer
Engine's are given views of them for the length of a call and are registered nowhere. So there are
no `_extra_state` entries, no second copy of a weight and nothing to rename.

The gradient of a weight comes in FP32, straight out of its product: Transformer Engine adds it to
`main_grad` of the view it was given, a buffer made right before, and autograd hands that on as the
parameter's gradient, for ZeRO to add to its FP32 sums.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from dsv3.config.precision import PrecisionConfig
from dsv3.model.backends.te_log import label_backward, note_ranges, running
from dsv3.model.backends.te_recipes import row_multiple_of


class Product:
    """y = x W^T of one layer, or of a run of rows for each of several experts."""

    def __init__(self, engine: Any, precision: PrecisionConfig, recipe: Any | None) -> None:
        self.layer = ""
        self.precision = precision
        self.row_multiple = row_multiple_of(precision)
        self._recipe = recipe
        self._autocast = engine.autocast

    def adopt(self, module: Any, names: Sequence[str]) -> None:
        """Compute with `module`, whose parameters `names` are replaced by views in every call."""
        self._module, self._names = module, tuple(names)
        for name in self._names:
            delattr(module, name)

    def __call__(self, x: Tensor, weight: Tensor, rows_of_each: list[int] | None = None) -> Tensor:
        """[R, I] -> [R, O]; `weight` [O, I], or [e, O, I] with the rows of each expert.

        Rows come in multiples of `row_multiple`, for each expert.
        """
        lent = _Lent(weight, of_experts=rows_of_each is not None)
        lent.views = views = _Lend.apply(weight, lent)  # type: ignore[no-untyped-call]
        note_ranges(
            self.precision,
            self.layer,
            {"input": _parts(x, rows_of_each), "weight": views},
        )
        for name, view in zip(self._names, views, strict=True):
            setattr(self._module, name, view)
        splits = () if rows_of_each is None else (torch.tensor(rows_of_each, dtype=torch.int64),)
        try:
            # Entered here and not around the model: what a backward pass makes again is made of
            # the same call, and so in the same precision.
            with running(self.layer), self._autocast(**self._how()):
                out: Tensor = self._module(x, *splits)
        finally:
            for name in self._names:
                delattr(self._module, name)
        if out.grad_fn is not None:
            out.grad_fn.register_prehook(self._before_backward(lent, rows_of_each))
            label_backward(out.grad_fn, self.layer)
        return out

    def _how(self) -> dict[str, Any]:
        return {"enabled": self._recipe is not None, "recipe": self._recipe}

    def _before_backward(
        self, lent: "_Lent", rows_of_each: list[int] | None
    ) -> Callable[[Sequence[Tensor]], None]:
        def prepare(gradients: Sequence[Tensor]) -> None:
            lent.make_room()
            parts = _parts(gradients[0], rows_of_each)
            note_ranges(
                self.precision, self.layer, {"gradient": parts, "gradient for weights": parts}
            )

        return prepare


class _Lent:
    """The views of a weight that a layer computes with, and room for their gradients."""

    def __init__(self, weight: Tensor, *, of_experts: bool) -> None:
        self.of_experts = of_experts
        self.views: tuple[Tensor, ...] = ()
        self._weight = weight
        self._sums: Tensor | None = None

    def make_room(self) -> None:
        """Zeros that the layer's backward pass adds to: an expert without rows leaves them."""
        if not self._weight.requires_grad:
            return
        self._sums = torch.zeros_like(self._weight, dtype=torch.float32)
        for view, part in zip(self.views, self.split(self._sums), strict=True):
            view.main_grad = part  # type: ignore[attr-defined]

    def take(self) -> Tensor:
        """The gradient, FP32 in the shape of the weight."""
        sums, self._sums = self._sums, None
        assert sums is not None, "the layer's backward pass has not run"
        for view in self.views:
            del view.main_grad  # type: ignore[attr-defined]
        return sums

    def split(self, whole: Tensor) -> tuple[Tensor, ...]:
        """A tensor like the weight as one view, or one for each expert."""
        return whole.unbind(0) if self.of_experts else (whole.view_as(whole),)


class _Lend(Function):
    """The weight as views; its gradient is what has been added to theirs."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, lent: _Lent) -> tuple[Tensor, ...]:
        ctx.lent = lent
        ctx.set_materialize_grads(False)  # Transformer Engine returns None for such weights
        return lent.split(weight)

    @staticmethod
    def backward(ctx: Any, *_nothing: None) -> tuple[Tensor, None]:
        return ctx.lent.take(), None


def fill_up(x: Tensor, row_multiple: int) -> Tensor:
    """[R, I] with rows of zeros after it, up to a multiple: they change no scale and no sum."""
    missing = -x.shape[0] % row_multiple
    return F.pad(x, (0, 0, 0, missing)) if missing else x


def _parts(x: Tensor, rows_of_each: list[int] | None) -> Sequence[Tensor]:
    return (x,) if rows_of_each is None else x.split(rows_of_each)
