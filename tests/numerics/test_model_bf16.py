"""BF16 weights against the same weights in FP32."""

import torch

from dsv3.config.model import AuxLossCoeffs, ModelConfig
from dsv3.model.backends.torch import TorchBackend
from dsv3.model.init import materialise
from dsv3.model.transformer import Transformer
from dsv3.parallel.dispatch import LocalDispatcher

CONFIG = ModelConfig(
    name="bf16",
    vocab_size=128,
    hidden_size=64,
    num_hidden_layers=3,
    first_k_dense_replace=1,
    intermediate_size=128,
    moe_intermediate_size=32,
    n_routed_experts=8,
    n_shared_experts=1,
    num_experts_per_tok=8,  # all: rounding cannot send a token to another expert
    n_group=1,
    topk_group=1,
    scoring_func="sigmoid",
    norm_topk_prob=True,
    routed_scaling_factor=1.0,
    num_attention_heads=2,
    q_lora_rank=32,
    kv_lora_rank=32,
    qk_nope_head_dim=16,
    qk_rope_head_dim=16,
    v_head_dim=32,
    max_position_embeddings=128,
    rope_theta=10000.0,
    rope_scaling=None,
    rms_norm_eps=1e-6,
    initializer_range=0.08,
    aux_loss_coeffs=AuxLossCoeffs(sequence=0.001, device=0.05, communication=0.02),
)


def build(dtype: torch.dtype) -> Transformer:
    with torch.device("meta"):
        model = Transformer(CONFIG, backend=TorchBackend(), dispatcher=LocalDispatcher(8))
    materialise(model, CONFIG, seed=1, device=torch.device("cpu"), dtype=dtype)
    return model


def test_loss_and_gradients_stay_within_the_rounding_of_bf16() -> None:
    """A rounding is 2^-9 relative at most; some hundred add up in quadrature to about 1 %.

    Measured: 1.6 % for the worst gradient (the queries of the last layer), 2e-5 for the loss.
    """
    tokens = torch.randint(0, 128, (4, 65), generator=torch.Generator().manual_seed(1))
    narrow = build(torch.bfloat16)
    wide = build(torch.float32)
    wide.load_state_dict(narrow.state_dict())  # the rounded weights on both sides
    losses = [model(tokens[:, :-1], tokens[:, 1:]).objective for model in (narrow, wide)]
    for loss in losses:
        loss.backward()
    assert abs(losses[0].item() / losses[1].item() - 1) < 5e-4
    reference = dict(wide.named_parameters())
    for name, parameter in narrow.named_parameters():
        assert parameter.grad is not None
        wanted = reference[name].grad
        assert wanted is not None
        error = (parameter.grad.float() - wanted).norm() / wanted.norm()
        assert error < 0.04, f"{name}: {error:.3f}"
