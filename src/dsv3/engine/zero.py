"""The two ZeRO optimizers of DeepSpeed 0.19.8 behind one face.

FP32 and ZeRO-2 runs get `DeepSpeedZeroOptimizer`, bf16 under ZeRO-1 with FP32 accumulation gets
`BF16_Optimizer`: the same flat layout under different attribute names. Reads internals, which the
pinned version and the tests of this package hold still.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import nn

REDUCED_ELEMENTS = 500_000_000  # at once, of those of BF16_Optimizer
NORM_CHUNK = 4096  # elements whose squares are added in FP32, before FP64 takes over


class FlatGroup(NamedTuple):
    """One parameter group: its weights in one flat tensor, of which this rank owns a partition."""

    parameters: list[nn.Parameter]  # every `.data` is a view into `weights`
    weights: torch.Tensor  # in the model's dtype, whole
    master: torch.Tensor  # FP32, this rank's partition; alignment padding at the very end
    begin: int  # first element of the partition in `weights`
    ranks: torch.distributed.ProcessGroup  # owner of the first partition, of the second, ...


class ZeroState:
    """Weights, gradients and moments as ZeRO holds them, whichever its optimizer class is."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.base: torch.optim.AdamW = optimizer.optimizer
        self._accumulates_apart = hasattr(optimizer, "fp32_groups_flat_partition")
        if self._accumulates_apart:
            # Norm and clipping are ours; DeepSpeedZeroOptimizer has a setting, this one has not.
            nothing = [torch.zeros((), device=optimizer.fp32_groups_flat_partition[0].device)]
            optimizer.get_grads_for_norm = lambda: (nothing, {})
        elif torch.distributed.get_world_size() == 1 and not optimizer.partition_gradients:
            # One rank has nothing to reduce: skip four copies of the gradient through buckets.
            optimizer.reduce_gradients = lambda pipeline_parallel: (
                optimizer.overlapping_partition_gradients_reduce_epilogue()
            )

    def flat_groups(self) -> list[FlatGroup]:
        """Parameter groups in the base optimizer's order."""
        zero = self.optimizer
        if self._accumulates_apart:
            columns = (zero.bf16_groups, zero.bf16_groups_flat, zero.fp32_groups_flat_partition)
        else:
            columns = (
                zero.bit16_groups,
                zero.bit16_groups_flat,
                zero.single_partition_of_fp32_groups,
            )
        return [
            FlatGroup(
                parameters,
                weights,
                master,
                torch.distributed.get_rank(ranks) * master.numel(),
                ranks,
            )
            for parameters, weights, master, ranks in zip(
                *columns, zero.real_dp_process_group, strict=True
            )
        ]

    def reduce_gradients(self, engine: Any) -> None:
        """Share out what backward passes have accumulated (collective over the data ranks).

        For backward passes of which none is the last for all parameters, as in a pipeline; for
        ZeRO-1.
        """
        if self._accumulates_apart:
            engine.buffered_allreduce_fallback(grads=None, elements_per_buffer=REDUCED_ELEMENTS)
        else:
            self.optimizer.set_gradient_accumulation_boundary(True)
            self.optimizer.reduce_gradients(pipeline_parallel=True)

    def gradients(self) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        """Accumulated gradients this rank owns, after the last backward and before the step."""
        zero = self.optimizer
        if self._accumulates_apart:
            for parameters, gradients in zip(
                zero.bf16_groups, zero.fp32_groups_gradients, strict=True
            ):
                yield from zip(parameters, gradients, strict=True)
            return
        for index, parameters in enumerate(zero.params_in_partition):
            gradients = zero.averaged_gradients.get(index) or ()
            unpadded = (g for g in gradients if not getattr(g, "_zero_padding", False))
            yield from zip(parameters, unpadded, strict=False)

    def gradient_norm(self) -> float:
        """Norm of the accumulated gradient over all ranks (collective).

        Ours, because DeepSpeed's either converts every gradient to FP64 (a fifth of a step on a
        CPU) or sums millions of squares in FP32 (2e-4 off).
        """
        squares = [sum_of_squares(gradient) for gradient in self._owned_gradients()]
        total = torch.stack(squares).sum()
        if torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(total)  # every element is owned by exactly one rank
        return math.sqrt(float(total))

    def clip_gradients(self, grad_norm: float, largest: float) -> None:
        """Have the next update scale the gradient down to norm `largest`, if it is above.

        Fused Adam divides by `grad_scale` in its own pass over the gradient.
        """
        scale = (grad_norm + 1e-6) / largest  # torch.nn.utils.clip_grad_norm_ has the same 1e-6
        device = self.base.param_groups[0]["params"][0].device
        clipped = torch.tensor(scale, dtype=torch.float32, device=device) if scale > 1 else None
        self.base.grad_scale = clipped  # type: ignore[attr-defined]

    def discard_gradients(self) -> None:
        """Forget what the micro batches so far have accumulated."""
        zero = self.optimizer
        zero.zero_grad(set_to_none=True)
        if not self._accumulates_apart:
            zero._release_preflattened_grad_buffers()
            for index in zero.averaged_gradients:
                zero.averaged_gradients[index] = None
                zero.all_grad_tensors[index] = None

    def _owned_gradients(self) -> Iterator[torch.Tensor]:
        """Yield every element of the accumulated gradient that this rank's partitions hold."""
        if self._accumulates_apart:
            # In this class `gradients` yields whole tensors, the same on every data rank.
            yield from self.optimizer.fp32_groups_gradient_flat_partition
        else:
            yield from (gradient for _, gradient in self.gradients())

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of every group."""
        for group in self.base.param_groups:
            group["lr"] = lr

    def refresh_weights(self) -> None:
        """Round the masters into the model's weights and share them out (collective)."""
        self.optimizer.update_lp_params()


def sum_of_squares(tensor: torch.Tensor) -> torch.Tensor:
    """FP64 scalar; as fast as an FP32 sum and as exact as an FP64 one (4e-9 at 8M elements)."""
    flat = tensor.detach().reshape(-1)
    whole = flat.numel() - flat.numel() % NORM_CHUNK
    chunks: torch.Tensor = torch.linalg.vector_norm(flat[:whole].view(-1, NORM_CHUNK), dim=1)
    rest: torch.Tensor = torch.linalg.vector_norm(flat[whole:])
    return chunks.double().square().sum() + rest.double().square()
