"""The training state as named fragments: slices of global tensors, where ZeRO holds them.

A fragment is found by address: where a parameter's memory lies in its group's flat tensor, cut with
the partition this rank owns. DeepSpeed's own map of fragments is wrong under round-robin gradients
and knows the moments of the first group only.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from dsv3.engine.adamw import MOMENTS
from dsv3.engine.ema import HostAverage
from dsv3.engine.groups import is_expert
from dsv3.engine.vendor import groups as deepspeed_groups
from dsv3.engine.zero import FlatGroup, ZeroState


class Fragment(NamedTuple):
    """A contiguous slice of a global tensor and the memory of this rank that holds it."""

    key: str  # "master/<name>", "exp_avg/<name>", "exp_avg_sq/<name>", "ema/..." or "buffer/..."
    shape: tuple[int, ...]  # of the global tensor
    offset: int  # first element of the slice in the flattened global tensor
    data: torch.Tensor  # 1-D view: reading it saves, writing it loads
    saved_here: bool  # False where another rank saves the same elements; all ranks load theirs


class Slice(NamedTuple):
    """A parameter's elements in this rank's partition."""

    name: str
    shape: tuple[int, ...]
    offset: int  # in the flattened global tensor
    local: slice  # in the flattened parameter
    owned: slice  # in the flat partition


class FragmentedState:
    """The engine's state under canonical names: what a checkpoint saves and loads."""

    def __init__(
        self,
        model: nn.Module,
        zero: ZeroState,
        *,
        moment_dtype: torch.dtype = torch.float32,
        saves_buffers: bool = True,
        average: HostAverage | None = None,
    ) -> None:
        self._saves_buffers = saves_buffers  # one rank of those that hold the same layers
        self._model = model
        self._zero = zero
        self._average = average
        self._dtypes = {"master": torch.float32, "ema": torch.float32} | dict.fromkeys(
            MOMENTS, moment_dtype
        )
        self._names = {id(p): name for name, p in model.named_parameters()}

    def name(self, parameter: nn.Parameter) -> str:
        """Canonical name of a parameter of the model."""
        return self._names[id(parameter)]

    @property
    def optimizer_step(self) -> int:
        """Adam's count of updates, the same in every group."""
        states = (self._zero.base.state.get(g.master, {}) for g in self._zero.flat_groups())
        steps = {int(state["step"]) if "step" in state else 0 for state in states}
        assert len(steps) == 1, f"{steps=}"
        return steps.pop()

    def fragments(self) -> Iterator[Fragment]:
        """Yield at most one fragment per parameter and kind, then the buffers."""
        averages = None if self._average is None else self._average.averages
        for index, group in enumerate(self._zero.flat_groups()):
            state = self._zero.base.state.get(group.master, {})
            kinds = {"master": group.master} | {k: state[k] for k in MOMENTS if k in state}
            if averages is not None:
                kinds["ema"] = averages[index]
            for part in self._slices(group):
                for kind, flat in kinds.items():
                    data = flat.detach()[part.owned]
                    yield Fragment(f"{kind}/{part.name}", part.shape, part.offset, data, True)
        for name, buffer in self._persistent_buffers():
            data = buffer.detach().view(-1)
            yield Fragment(f"buffer/{name}", tuple(buffer.shape), 0, data, self._saves_buffers)

    def expected_tensors(
        self, optimizer_step: int
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Global shape and dtype by key after `optimizer_step` updates, of this rank's layers."""
        moments = MOMENTS if optimizer_step > 0 else ()
        kinds = ("master", *moments, *(() if self._average is None else ("ema",)))
        tensors = {
            f"{kind}/{self.name(p)}": (_global_extent(p)[0], self._dtypes[kind])
            for group in self._zero.flat_groups()
            for p in group.parameters
            for kind in kinds
        }
        buffers = {
            f"buffer/{name}": (tuple(buffer.shape), buffer.dtype)
            for name, buffer in self._persistent_buffers()
        }
        return tensors | buffers

    def set_masters(self, value: Callable[[str], torch.Tensor]) -> None:
        """Copy `value(name)`, FP32 of the local shape, into the masters; refresh the weights."""
        for group in self._zero.flat_groups():
            for part in self._slices(group):
                values = value(part.name)
                assert values.dtype == torch.float32, f"{part.name} {values.dtype=}"
                group.master.detach()[part.owned].copy_(values.reshape(-1)[part.local])
        self._zero.refresh_weights()

    def prepare_load(self, optimizer_step: int) -> None:
        """Create the moments Adam would create at its first step, or drop them for step 0."""
        base = self._zero.base
        base.state.clear()
        if optimizer_step > 0:
            for group in self._zero.flat_groups():
                base.state[group.master] = {
                    # Fused Adam reads its counter on the parameter's device.
                    "step": torch.tensor(float(optimizer_step), device=group.master.device),
                    **{
                        kind: torch.zeros_like(group.master.detach(), dtype=self._dtypes[kind])
                        for kind in MOMENTS
                    },
                }

    def _slices(self, group: FlatGroup) -> Iterator[Slice]:
        storage = group.weights.untyped_storage().data_ptr()
        end = group.begin + group.master.numel()
        for parameter in group.parameters:
            name = self.name(parameter)
            assert parameter.untyped_storage().data_ptr() == storage, f"{name} was replaced"
            distance = parameter.data_ptr() - group.weights.data_ptr()
            first = distance // parameter.element_size()
            low, high = max(first, group.begin), min(first + parameter.numel(), end)
            if low < high:
                shape, base = _global_extent(parameter)
                yield Slice(
                    name,
                    shape,
                    base + low - first,
                    slice(low - first, high - first),
                    slice(low - group.begin, high - group.begin),
                )

    def _persistent_buffers(self) -> Iterator[tuple[str, torch.Tensor]]:
        kept = self._model.state_dict(keep_vars=True)
        for name, buffer in self._model.named_buffers():
            if name in kept:
                yield name, buffer


def _global_extent(parameter: nn.Parameter) -> tuple[tuple[int, ...], int]:
    """Global shape and where the local tensor begins in it, flattened.

    Experts are cut along their first dimension, in the order of the ranks of their group.
    """
    if not is_expert(parameter):
        return tuple(parameter.shape), 0
    group = parameter.group_name  # type: ignore[attr-defined]
    size = deepspeed_groups._get_expert_parallel_world_size(group)
    rank = deepspeed_groups._get_expert_parallel_rank(group)
    return (parameter.shape[0] * size, *parameter.shape[1:]), rank * parameter.numel()
