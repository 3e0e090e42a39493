"""Counts against published totals, and against the modules of an independent implementation."""

import pytest

from dsv3.config.compose import compose
from dsv3.config.model import ModelConfig
from dsv3.plan.parameters import count_mtp, count_parameters

ALL = ("moe_nano", "moe_tiny", "moe_1b", "moe_3b", "moe_16b", "moe_228b", "moe_671b")


def model(*overrides: str) -> ModelConfig:
    return compose(list(overrides)).config.model


def billions(number: int) -> float:
    return round(number / 1e9, 4)


@pytest.mark.parametrize(
    ("overrides", "total", "active", "active_with_embedding"),
    [
        (["model=moe_671b"], 671.0264, 36.6256, 37.5523),
        (["model=moe_228b"], 228.7484, 20.9875, 21.6494),
        (["model=moe_16b"], 15.7065, 2.4514, 2.6612),
        # V2 as released, and V2-Lite with V3's vocabulary: the totals the report does not have.
        (
            ["model=moe_228b", "model.vocab_size=102400", "model.first_k_dense_replace=1"],
            235.7414,
            20.8515,
            21.3758,
        ),
        (["model=moe_16b", "model.vocab_size=129280"], 15.8166, 2.5065, 2.7713),
    ],
)
def test_published_totals(
    overrides: list[str], total: float, active: float, active_with_embedding: float
) -> None:
    counts = count_parameters(model(*overrides))
    assert billions(counts.total) == total
    assert billions(counts.active) == active
    assert billions(counts.active_with_embedding) == active_with_embedding


def test_published_bodies() -> None:
    # "Moonlight" (arXiv 2502.16982) counts V3-Small without embedding and head: 15.29B, 2.24B.
    counts = count_parameters(model("model=moe_16b"))
    assert (billions(counts.body), billions(counts.body_active)) == (15.2871, 2.2417)
    counts = count_parameters(model("model=moe_671b"))
    assert (billions(counts.body), billions(counts.body_active)) == (669.173, 35.6989)


@pytest.mark.parametrize(
    ("name", "expert", "attention", "moe_layer"),
    [
        ("moe_671b", 44.040, 187.11, 11_507),
        ("moe_228b", 23.593, 149.23, 3_972),
        ("moe_16b", 8.651, 13.76, 584.8),
    ],
)
def test_published_pieces_in_millions(
    name: str, expert: float, attention: float, moe_layer: float
) -> None:
    counts = count_parameters(model(f"model={name}"))
    assert round(counts.expert / 1e6, 3) == expert
    assert round(counts.attention / 1e6, 2) == attention
    # The layers are printed to four digits.
    assert counts.moe_layer / 1e6 == pytest.approx(moe_layer, rel=2e-4)


def test_mtp_adds_what_the_report_says() -> None:
    # README_WEIGHTS of the released model: 11.5B unique; small and large ablations by arithmetic.
    assert billions(count_mtp(model("model=moe_671b"), depth=1).total) == 11.6101
    small = count_mtp(model("model=moe_16b"), depth=1)
    assert (billions(small.total), billions(small.active)) == (0.5932, 0.0915)
    large = count_mtp(model("model=moe_228b"), depth=1)
    assert (billions(large.total), billions(large.active)) == (4.0246, 0.3912)
    assert count_mtp(model("model=moe_228b"), depth=0).total == 0


@pytest.mark.parametrize(
    ("name", "at_least", "at_most"),
    [
        ("moe_nano", 1e6, 2e6),
        ("moe_tiny", 14e6, 16e6),
        ("moe_1b", 1.0e9, 1.1e9),
        ("moe_3b", 2.95e9, 3.05e9),
    ],
)
def test_models_are_as_large_as_they_are_called(name: str, at_least: float, at_most: float) -> None:
    assert at_least <= count_parameters(model(f"model={name}")).total <= at_most


@pytest.mark.parametrize("name", ALL)
def test_counts_equal_those_of_an_independent_implementation(name: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = model(f"model={name}")
    keys = config.model_dump(exclude={"name", "rope_scaling", "rope_theta", "scoring_func"})
    theirs_config = transformers.DeepseekV3Config(
        **keys, num_key_value_heads=config.num_attention_heads, tie_word_embeddings=False
    )
    with torch.device("meta"):
        theirs = transformers.DeepseekV3ForCausalLM(theirs_config)
    counts = count_parameters(config)

    def numel(module: object) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    layers = theirs.model.layers
    assert counts.total == numel(theirs)
    assert counts.embedding == numel(theirs.model.embed_tokens)
    assert counts.head == numel(theirs.lm_head)
    assert counts.attention == numel(layers[-1].self_attn)
    assert counts.dense_layer == numel(layers[0])
    assert counts.moe_layer == numel(layers[-1])
    assert counts.expert * config.n_routed_experts == numel(layers[-1].mlp.experts)
    idle = config.n_routed_experts - config.num_experts_per_tok
    assert counts.active == (
        numel(theirs) - counts.embedding - config.num_moe_layers * idle * counts.expert
    )
