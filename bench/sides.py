"""The contestants: a training step of our model and of Hugging Face's DeepseekV3.

A side is a name and `step(input_ids_BS, labels_BS)`: forward, backward, clipping and optimizer.
Both sides start from the same weights and use torch's fused AdamW; ours updates FP32 masters under
BF16 too, the peer rounds to BF16.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dsv3.config.compose import compose
from dsv3.config.optimizer import OptimizerConfig
from dsv3.config.root import RunConfig
from dsv3.engine.engine import TrainingEngine
from dsv3.train.build import WEIGHT_DTYPES, build_engine, build_model

LR = 1e-4
CPU = torch.device("cpu")
EXPERTS = ("eager", "grouped_mm")
"""The peer's experts on a CPU; its batched_mm copies the weights for every token (gigabytes)."""

Step = Callable[[Tensor, Tensor], object]


@dataclass
class Side:
    """One contestant."""

    name: str
    step: Step


def _plain_step(
    loss: Callable[[Tensor, Tensor], Tensor],
    parameters: list[nn.Parameter],
    config: OptimizerConfig,
) -> Step:
    """A whole optimizer step around `loss(input_ids, labels)`."""
    optimizer = torch.optim.AdamW(
        parameters,
        lr=LR,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )

    def step(input_ids_BS: Tensor, labels_BS: Tensor) -> float:
        value = loss(input_ids_BS, labels_BS)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, config.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.item()

    return step


def our_side(config: RunConfig, *, compiled: bool) -> tuple[Side, TrainingEngine]:
    """A step as `dsv3 train` makes it, and the engine in it."""
    launcher = config.launcher.model_copy(update={"compile": compiled})
    config = config.model_copy(update={"launcher": launcher})
    device = torch.device("cpu")
    engine = build_engine(build_model(config, device), config, device)

    def step(input_ids_BS: Tensor, labels_BS: Tensor) -> float:
        return engine.train_step([(input_ids_BS, labels_BS)], lr=LR).loss

    return Side("dsv3, compiled" if compiled else "dsv3", step), engine


def peer_side(
    config: RunConfig, experts: str, *, compiled: bool, device: torch.device = CPU
) -> Side:
    """Hugging Face's DeepseekV3 with SDPA and one of its implementations of the experts."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    assert config.model.rope_scaling is None, "the peer is set up without YaRN"
    values = config.model.model_dump(exclude={"name", "rope_scaling", "balance_strengths"})
    peer = DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **values,
            num_key_value_heads=config.model.num_attention_heads,
            attn_implementation="sdpa",
            experts_implementation=experts,
            use_cache=False,
        )
    )
    exact = config.model_copy(update={"precision": compose(["precision=fp32"]).config.precision})
    peer.load_state_dict(build_model(exact, torch.device("cpu")).state_dict())
    peer = peer.to(device=device, dtype=WEIGHT_DTYPES[config.precision.weights]).train()

    def loss(input_ids_BS: Tensor, labels_BS: Tensor) -> Tensor:
        value: Tensor = peer(input_ids=input_ids_BS, labels=labels_BS, shift_labels=labels_BS).loss
        return value

    chosen = torch.compile(loss) if compiled else loss
    step = _plain_step(chosen, list(peer.parameters()), config.optimizer)
    return Side("transformers, compiled" if compiled else "transformers", step)
