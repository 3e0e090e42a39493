"""Our model against Hugging Face's DeepseekV3ForCausalLM on the same weights, FP32 on CPU."""

import pytest
import torch
import torch.nn.functional as F
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from dsv3.config.model import ModelConfig
from dsv3.model.backends.torch import TorchBackend
from dsv3.model.init import materialise
from dsv3.model.transformer import Transformer
from dsv3.parallel.dispatch import LocalDispatcher

# Both sides round each product and sum once at 2^-24; over these depths and widths the relative
# norm of the difference stays near 1e-6. The contract of the project is 1e-5.
TOLERANCE = 1e-5
YARN = {
    "factor": 8.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 0.707,
    "mscale_all_dim": 1.0,
}
BASE = {
    "name": "parity",
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "intermediate_size": 80,
    "moe_intermediate_size": 24,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "num_attention_heads": 3,
    "q_lora_rank": 20,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "max_position_embeddings": 128,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.05,
    "aux_loss_coeffs": {"sequence": 0.0, "device": 0.0, "communication": 0.0},
}
VARIANTS = {
    "plain": {},
    "no_q_lora": {"q_lora_rank": None},
    "all_moe": {"first_k_dense_replace": 0},
    "ungrouped": {"n_group": 1, "topk_group": 1},
    "two_shared_unnormalised": {"n_shared_experts": 2, "norm_topk_prob": False},
    "equal_head_widths": {"v_head_dim": 20},
    "yarn": {"rope_scaling": YARN},
    "yarn_all_dim_off": {"rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.0}},
    "yarn_no_q_lora_all_moe": {
        "rope_scaling": YARN,
        "q_lora_rank": None,
        "first_k_dense_replace": 0,
    },
}
BIASES = {"zero": (0.0, 0.0), "mixed": (-0.2, 0.2), "negative": (-3.0, -2.0)}


def build(variant: str, bias: str) -> tuple[Transformer, DeepseekV3ForCausalLM]:
    values = BASE | VARIANTS[variant]
    config = ModelConfig(**values)
    with torch.device("meta"):
        ours = Transformer(
            config, backend=TorchBackend(), dispatcher=LocalDispatcher(config.n_routed_experts)
        )
    materialise(ours, config, seed=5, device=torch.device("cpu"), dtype=torch.float32)
    rope = values["rope_scaling"]
    peer = DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **{k: v for k, v in values.items() if k not in {"name", "rope_scaling"}},
            rope_scaling=None if rope is None else {"rope_type": "yarn", **rope},
            num_key_value_heads=config.num_attention_heads,
            attn_implementation="eager",
            use_cache=False,
        )
    )
    generator = torch.Generator().manual_seed(3)
    low, high = BIASES[bias]
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.2 * torch.randn(parameter.shape, generator=generator))
        for moe in ours.moe_layers().values():
            draw = torch.rand(config.n_routed_experts, generator=generator)
            moe.router.e_score_correction_bias.copy_(low + (high - low) * draw)
            moe.router.weight.mul_(8)  # scores well apart from one half
    peer.load_state_dict(ours.state_dict(), strict=True)
    return ours, peer


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_loss_and_every_gradient_match(variant: str, bias: str) -> None:
    ours, peer = build(variant, bias)
    tokens = torch.randint(
        0, BASE["vocab_size"], (2, 49), generator=torch.Generator().manual_seed(1)
    )
    inputs, labels = tokens[:, :-1], tokens[:, 1:]

    logits = peer(input_ids=inputs).logits
    assert relative(ours.logits(inputs), logits) < TOLERANCE

    theirs = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    mine = ours(inputs, labels).objective
    assert mine.dtype == torch.float32
    assert abs(mine.item() / theirs.item() - 1) < TOLERANCE

    # A gradient from above other than one: what accumulation and loss scaling send.
    (theirs * 3.0).backward()
    (mine * 3.0).backward()
    gradients = {name: p.grad for name, p in peer.named_parameters()}
    assert gradients.keys() == {name for name, _ in ours.named_parameters()}
    errors = {n: relative(p.grad, gradients[n]) for n, p in ours.named_parameters()}
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] < TOLERANCE, f"{worst}: {errors[worst]:.2e}"


def test_yarn_changes_positions_beyond_the_original_context() -> None:
    """The softmax scale is invisible at position 0, so parity there would prove nothing."""
    plain, _ = build("plain", "mixed")
    yarn, _ = build("yarn", "mixed")
    tokens = torch.randint(
        0, BASE["vocab_size"], (1, 48), generator=torch.Generator().manual_seed(1)
    )
    difference = (plain.logits(tokens) - yarn.logits(tokens)).abs().amax(dim=(0, 2))
    assert difference[0] == 0
    assert difference[YARN["original_max_position_embeddings"] :].min() > 1e-4
