"""FLOPs per token against published figures and against the products counted one by one."""

import pytest

from dsv3.config.compose import compose
from dsv3.config.model import ModelConfig
from dsv3.plan.flops import mtp_flops_per_token, training_flops_per_token


def model(*overrides: str) -> ModelConfig:
    return compose(list(overrides)).config.model


@pytest.mark.parametrize(
    ("overrides", "gigaflops"),
    [
        # arXiv 2505.09343, table 2 prints 250 and 155; the decimals follow from its convention.
        (["model=moe_671b"], 250.46),
        (
            ["model=moe_228b", "model.vocab_size=102400", "model.first_k_dense_replace=1"],
            155.31,
        ),
        (["model=moe_228b"], 156.12),
        (["model=moe_16b"], 16.41),
    ],
)
def test_published_figures_at_4096(overrides: list[str], gigaflops: float) -> None:
    counted = training_flops_per_token(model(*overrides), sequence_length=4096)
    assert round(counted / 1e9, 2) == gigaflops


def test_mtp_adds_a_block_and_one_more_pass_of_the_head() -> None:
    # The small ablation: 16.41 GFLOP without, 18.28 with MTP.
    config = model("model=moe_16b")
    main = training_flops_per_token(config, sequence_length=4096)
    mtp = mtp_flops_per_token(config, sequence_length=4096, depth=1)
    assert round((main + mtp) / 1e9, 2) == 18.28
    assert mtp_flops_per_token(config, sequence_length=4096, depth=0) == 0


def test_the_products_of_a_token_counted_one_by_one() -> None:
    config, length = model("model=moe_tiny"), 256
    heads, width = config.num_attention_heads, config.hidden_size
    assert config.q_lora_rank is not None
    products = [
        (width, config.q_lora_rank),
        (config.q_lora_rank, heads * (config.qk_nope_head_dim + config.qk_rope_head_dim)),
        (width, config.kv_lora_rank + config.qk_rope_head_dim),
        (config.kv_lora_rank, heads * (config.qk_nope_head_dim + config.v_head_dim)),
        (heads * config.v_head_dim, width),
    ] * config.num_hidden_layers
    products += [(width, config.intermediate_size)] * 3
    experts = config.num_experts_per_tok + config.n_shared_experts
    products += [(width, config.moe_intermediate_size)] * 3 * experts * config.num_moe_layers
    products += [(width, config.n_routed_experts)] * config.num_moe_layers
    products += [(width, config.vocab_size)]
    attention = 0
    for seen in range(1, length + 1):
        per_head = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
        attention += seen * heads * per_head * config.num_hidden_layers
    expected = 3 * 2 * (sum(rows * columns for rows, columns in products) + attention / length)
    counted = training_flops_per_token(config, sequence_length=length)
    # The count adds the norm weights (0.1 %) and leaves out half a position (1/512 of attention).
    assert counted == pytest.approx(expected, rel=2e-3)
