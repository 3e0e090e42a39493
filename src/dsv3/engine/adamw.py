"""AdamW whose moments are kept in BF16 and updated in FP32 (report section 3.3.3)."""

from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo  # the first optimizer would, when imports are no longer expected
from torch.optim.adamw import adamw

from dsv3.config.optimizer import OptimizerConfig

MOMENTS = ("exp_avg", "exp_avg_sq")
MOMENT_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

CHUNK_ELEMENTS = 1 << 22  # bounds the FP32 copies of the moments


def make_adamw(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.AdamW:
    """Fused AdamW, with its moments in the configured type; the caller sets the learning rate."""
    kind = torch.optim.AdamW if config.moment_dtype == "fp32" else Bf16MomentsAdamW
    return kind(groups, lr=0.0, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


class Bf16MomentsAdamW(torch.optim.AdamW):
    """torch's fused AdamW on FP32 copies of the moments, a chunk at a time, rounded after it.

    Rounding is to nearest, so that a resumed run is exact. A moment must therefore change by more
    than half a unit in the last place of BF16 in a step: betas have an upper bound (config rules).
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter with a gradient; `grad_scale` divides the gradients."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            for name in MOMENTS:
                state[name] = torch.zeros_like(parameter, dtype=torch.bfloat16)
        flat = [parameter, parameter.grad, *(state[name] for name in MOMENTS)]
        for chunks in zip(*(t.view(-1).split(CHUNK_ELEMENTS) for t in flat), strict=True):
            weights, gradient, *rounded = chunks
            first, second = (moment.float() for moment in rounded)
            adamw(
                [weights],
                [gradient],
                [first],
                [second],
                max_exp_avg_sqs=[],
                state_steps=[state["step"].clone()],
                fused=True,
                grad_scale=getattr(self, "grad_scale", None),
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            for moment, exact in zip(rounded, (first, second), strict=True):
                moment.copy_(exact)
        state["step"] += 1
