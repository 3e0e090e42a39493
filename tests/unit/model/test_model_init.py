"""Initial weights do not know the layout: shards and stages hold the bits of the whole."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from dsv3.config.model import ModelConfig
from dsv3.model.init import initial_value
from dsv3.model.names import is_expert
from dsv3.model.transformer import Transformer

Build = Callable[..., Transformer]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shards", [2, 4, 8])
def test_expert_shards_equal_the_whole(
    config: ModelConfig, build: Build, shards: int, dtype: torch.dtype
) -> None:
    whole = dict(build(config, dtype=dtype).named_parameters())
    size = config.n_routed_experts // shards
    stacked = 0
    for shard in range(shards):
        local = range(shard * size, (shard + 1) * size)
        for name, value in build(config, dtype=dtype, local_experts=local).named_parameters():
            expected = whole[name]
            if is_expert(name):
                stacked += 1
                expected = expected[local.start : local.stop]
            assert torch.equal(value, expected), name
    assert stacked == shards * 2 * config.num_moe_layers


@pytest.mark.parametrize("cuts", [(0, 1, 4), (0, 2, 3, 4)])
def test_layer_ranges_equal_the_whole(
    config: ModelConfig, build: Build, cuts: tuple[int, ...]
) -> None:
    whole = dict(build(config).named_parameters())
    found = {}
    for start, stop in pairwise(cuts):
        part = dict(build(config, parts=[range(start, stop)]).named_parameters())
        assert not part.keys() & found.keys()
        found |= part
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_every_tensor_and_every_expert_has_its_own_stream(
    config: ModelConfig, build: Build
) -> None:
    """First numbers of all streams: different, and different again under another seed."""
    first = set()
    streams = 0
    for seed in (1, 2, 2**32 + 1):  # the last two would be one to a generator of 32 bits
        for name, value in build(config, seed=seed).named_parameters():
            if name.endswith("norm.weight"):
                assert torch.equal(value, torch.ones_like(value))
                continue
            for tensor in value if is_expert(name) else [value]:
                streams += 1
                first.add(tensor.flatten()[0].item())
    assert streams == 3 * (3 + 4 * 5 + 3 + 3 * (1 + 3 + 2 * 8) - 1)
    assert len(first) == streams


def test_moments(config: ModelConfig) -> None:
    """A million draws: mean within 5 sigma / 1000, deviation within 5 sigma / 1414."""
    value = initial_value("lm_head.weight", (1000, 1000), config, seed=3)
    assert value.dtype == torch.float32
    assert abs(value.mean().item()) < 5e-3 * config.initializer_range
    assert abs(value.std().item() / config.initializer_range - 1) < 5 / 1414


def test_the_numbers_themselves_are_fixed(config: ModelConfig) -> None:
    """Another library version that draws other numbers would change every experiment."""
    value = initial_value("model.layers.1.mlp.experts.down_proj", (2, 2), config, seed=1, expert=5)
    expected = torch.tensor(
        [[-0.006658122, -0.032675885], [0.035262473, -0.033936094]], dtype=torch.float32
    )
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)


def test_materialising_touches_nothing_but_what_is_held(config: ModelConfig, build: Build) -> None:
    part = build(config, parts=[range(1, 2)], local_experts=range(2, 4))
    assert not any(tensor.is_meta for tensor in (*part.parameters(), *part.buffers()))
    assert part.moe_layers()["model.layers.1.mlp"].experts.down_proj.shape == (2, 24, 10)
    assert all(isinstance(p, torch.nn.Parameter) and p.requires_grad for p in part.parameters())
    bias = part.moe_layers()["model.layers.1.mlp"].router.e_score_correction_bias
    assert bias.dtype == torch.float32
    assert not bias.any()
