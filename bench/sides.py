"""The contestants: a training step of our model and of Hugging Face's DeepseekV3.

A side is a name and `step(input_ids_BS, labels_BS) -> loss`: forward, backward, clipping and
optimizer. Both sides start from the same weights and use torch's fused AdamW.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dsv3.config.model import ModelConfig
from dsv3.config.optimizer import OptimizerConfig
from dsv3.model.backends.torch import TorchBackend
from dsv3.model.compile import compile_model
from dsv3.model.init import materialise
from dsv3.model.transformer import Transformer
from dsv3.parallel.dispatch import LocalDispatcher

Step = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Side:
    """One contestant."""

    name: str
    step: Step


def training_step(
    loss: Step, parameters: list[nn.Parameter], config: OptimizerConfig, *, lr: float = 1e-4
) -> Step:
    """A whole optimizer step around `loss(input_ids, labels)`."""
    optimizer = torch.optim.AdamW(
        parameters,
        lr=lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )

    def step(input_ids_BS: Tensor, labels_BS: Tensor) -> Tensor:
        value = loss(input_ids_BS, labels_BS)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, config.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.detach()

    return step


def our_model(config: ModelConfig, dtype: torch.dtype) -> Transformer:
    """Our model with the initial weights of seed 1."""
    with torch.device("meta"):
        dispatcher = LocalDispatcher(config.n_routed_experts)
        model = Transformer(config, backend=TorchBackend(), dispatcher=dispatcher)
    materialise(model, config, seed=1, device=torch.device("cpu"), dtype=dtype)
    return model


def our_side(
    config: ModelConfig, optimizer: OptimizerConfig, dtype: torch.dtype, *, compiled: bool
) -> Side:
    """Our model without an engine around it."""
    model = our_model(config, dtype)
    if compiled:
        compile_model(model)
    step = training_step(model, list(model.parameters()), optimizer)
    return Side("dsv3, compiled" if compiled else "dsv3", step)


def peer_side(
    config: ModelConfig, optimizer: OptimizerConfig, dtype: torch.dtype, *, compiled: bool
) -> Side:
    """Hugging Face's DeepseekV3 with SDPA and grouped_mm experts, its fastest on a CPU."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    assert config.rope_scaling is None, "the peer is set up without YaRN"
    values = config.model_dump(exclude={"name", "rope_scaling"})
    peer = DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **values,
            num_key_value_heads=config.num_attention_heads,
            attn_implementation="sdpa",
            experts_implementation="grouped_mm",
            use_cache=False,
        )
    )
    peer.load_state_dict(our_model(config, torch.float32).state_dict())
    peer = peer.to(dtype).train()

    def loss(input_ids_BS: Tensor, labels_BS: Tensor) -> Tensor:
        value: Tensor = peer(input_ids=input_ids_BS, labels=labels_BS, shift_labels=labels_BS).loss
        return value

    chosen: Step = torch.compile(loss) if compiled else loss
    step = training_step(chosen, list(peer.parameters()), optimizer)
    return Side("transformers, compiled" if compiled else "transformers", step)
