"""The two ZeRO optimizers of DeepSpeed 0.19.8 behind one face.

FP32 and ZeRO-2 runs get `DeepSpeedZeroOptimizer`, bf16 under ZeRO-1 with FP32 accumulation gets
`BF16_Optimizer`: the same flat layout under different attribute names. Reads internals, which the
pinned version and the tests of this package hold still.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import nn

from dsv3.engine.vendor import get_global_norm_of_tensors, get_norm_with_moe_layers


class FlatGroup(NamedTuple):
    """One parameter group: its weights in one flat tensor, of which this rank owns a partition."""

    parameters: list[nn.Parameter]  # every `.data` is a view into `weights`
    weights: torch.Tensor  # in the model's dtype, whole
    master: torch.Tensor  # FP32, this rank's partition; alignment padding at the very end
    begin: int  # first element of the partition in `weights`


class ZeroState:
    """Weights, gradients and moments as ZeRO holds them, whichever its optimizer class is."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.base: torch.optim.AdamW = optimizer.optimizer
        self._accumulates_apart = hasattr(optimizer, "fp32_groups_flat_partition")

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
        ranks = map(torch.distributed.get_rank, zero.real_dp_process_group)
        return [
            FlatGroup(parameters, weights, master, rank * master.numel())
            for *_, parameters, weights, master, rank in zip(*columns, ranks, strict=True)
        ]

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
        """Norm over all parameters of all ranks (collective); negative or non-finite if invalid."""
        zero = self.optimizer
        if not self._accumulates_apart:
            return float(zero.scaled_global_norm())
        dense, experts = zero.get_grads_for_norm()
        norm = get_global_norm_of_tensors(input_tensors=dense, mpu=zero.mpu)
        if zero.has_moe_layers:
            norm = get_norm_with_moe_layers(norm, mpu=zero.mpu, expert_tensors=experts)
        return float(norm)

    def discard_gradients(self) -> None:
        """Forget what the micro batches so far have accumulated."""
        zero = self.optimizer
        zero.zero_grad(set_to_none=True)
        if not self._accumulates_apart:
            zero._release_preflattened_grad_buffers()
            for index in zero.averaged_gradients:
                zero.averaged_gradients[index] = None
                zero.all_grad_tensors[index] = None

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of every group."""
        for group in self.base.param_groups:
            group["lr"] = lr

    def refresh_weights(self) -> None:
        """Round the masters into the model's weights and share them out (collective)."""
        self.optimizer.update_lp_params()
