"""Recomputation changes no bit, and what is kept for the backward pass is really less."""

from collections import Counter
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from dsv3.config.compose import compose
from dsv3.config.recompute import RecomputePolicy
from dsv3.model.attention import LatentAttention
from dsv3.model.moe import MoE
from dsv3.model.recompute import remade
from dsv3.model.router import Router
from dsv3.model.transformer import Losses, Transformer
from dsv3.ops import attention
from dsv3.train.build import build_model
from numerics.small_model import ARMS, balance, batch, build, model_config, mtp

POLICIES = get_args(RecomputePolicy)
LATENT_QUERIES = {"q_lora_rank": 5}
COUNTERS = ("tokens_per_expert_E", "sequence_peaks", "saturated_scores")


def small(recompute: str, dtype: torch.dtype = torch.float32, **changes: object) -> Transformer:
    """Three layers, two of them MoE, and two MTP modules, under an arm with a loss."""
    config = model_config(num_hidden_layers=3, **changes)
    arm = balance(**ARMS["aux_free_seq"])
    return build(config, balance=arm, mtp=mtp(2), recompute=recompute, dtype=dtype)


def step(model: Transformer) -> Losses:
    """Losses of a batch, with their gradients in the parameters."""
    losses = model(*batch(model.config, 2, 6), torch.tensor(0.3))
    losses.objective.backward()
    return losses


def gradients(model: Transformer) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(grad is not None for grad in found.values())
    return {name: grad for name, grad in found.items() if grad is not None}


@pytest.mark.parametrize("kernel", ["kept", "torch"])
@pytest.mark.parametrize("changes", [{}, LATENT_QUERIES], ids=["q_proj", "q_lora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("policy", POLICIES[1:])
def test_bits_are_those_without_recomputation(policy, dtype, changes, kernel, monkeypatch):
    if kernel == "torch":  # the one of GPUs and of long sequences
        monkeypatch.setattr(attention, "LONGEST_KEPT", 0)
    plain, again = small("none", dtype, **changes), small(policy, dtype, **changes)
    for mine, wanted in zip(step(again), step(plain), strict=True):
        assert torch.equal(mine, wanted)
    wanted_of = gradients(plain)
    assert [n for n, g in gradients(again).items() if not torch.equal(g, wanted_of[n])] == []
    layers = again.moe_layers()
    for name, moe in plain.moe_layers().items():
        for counter in COUNTERS:
            assert torch.equal(getattr(layers[name], counter), getattr(moe, counter)), counter


def kept_bytes(call: Callable[[], object]) -> int:
    """Bytes that torch's allocator gave out in `call` and did not get back while its result lived.

    A profiler's events; hooks on what autograd saves do not see what is inside a recomputed region.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        result = call()
    events = seen.profiler.kineto_results.events()
    assert result is not None
    return sum(event.nbytes() for event in events if event.name() == "[memory]")


def calls(monkeypatch, kind: type, method: str) -> list[int]:
    """One entry for every time the method runs from here on."""
    seen: list[int] = []
    real = getattr(kind, method)

    def counting(self, *arguments, **named):
        seen.append(1)
        return real(self, *arguments, **named)

    monkeypatch.setattr(kind, method, counting)
    return seen


@pytest.mark.parametrize(
    ("policy", "attended", "routed"),
    [("none", 1, 1), ("norm_and_up_projection", 2, 1), ("moe", 1, 2), ("full", 2, 2)],
)
def test_each_policy_repeats_its_own_part(policy, attended, routed, monkeypatch):
    model = small(policy)
    blocks, routers = 3 + 2, 2 + 2
    attention_runs = calls(monkeypatch, LatentAttention, "attend")
    router_runs = calls(monkeypatch, Router, "forward")
    records = calls(monkeypatch, MoE, "record")
    step(model)
    assert len(attention_runs) == attended * blocks
    assert len(router_runs) == routed * routers
    assert len(records) == routers


class Operators(TorchDispatchMode):
    """Counts what runs; a selective recomputation answers for what it has kept before that."""

    def __init__(self) -> None:
        super().__init__()
        self.times: Counter[object] = Counter()

    def __torch_dispatch__(self, operator, types, arguments=(), named=None):
        self.times[operator] += 1
        return operator(*arguments, **(named or {}))


@pytest.mark.parametrize(("changes", "expansions"), [({}, 2), (LATENT_QUERIES, 2)])
def test_only_norms_and_expansions_are_made_again(changes, expansions):
    """Neither attention, nor the products that make the latents, nor the networks."""
    times = {}
    for policy in ("none", "norm_and_up_projection"):
        model = small(policy, **changes)
        with Operators() as operators:
            step(model)
        times[policy] = operators.times
    more = {key: n - times["none"][key] for key, n in times["norm_and_up_projection"].items()}
    blocks, aten = 3 + 2, torch.ops.aten
    attentions = times["norm_and_up_projection"][torch.ops.dsv3.kept_attention.default]
    assert attentions == blocks
    # Queries and keys with values: of each block, one product each.
    assert more[aten.mm.default] == expansions * blocks
    # Of a block the norm before attention, before the FFN and those of the latents; of an MTP
    # module the two on its inputs.
    norms = blocks * (3 + len(changes)) + 2 * 2
    assert more[aten.linalg_vector_norm.default] == norms


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_what_is_kept_is_less(dtype):
    words = [
        "model=moe_tiny",
        "model.first_k_dense_replace=0",
        "model.num_hidden_layers=2",
        f"precision={dtype}",
    ]
    kept = {}
    for policy in POLICIES:
        model = build_model(compose([*words, f"recompute={policy}"]).config, torch.device("cpu"))
        ids, _ = batch(model.config, 2, 128)
        embedded = model.embed(ids)
        model.run_blocks(embedded)  # makes the table of rotations
        kept[policy] = kept_bytes(lambda m=model, e=embedded: m.run_blocks(e))
        dropped_pass = kept_bytes(lambda m=model, e=embedded: m.run_blocks(e) is not None)
        assert dropped_pass < 0.01 * kept[policy], "a pass without a backward frees itself"
    none = kept["none"]
    c, itemsize = model.config, 4 if dtype == "fp32" else 2
    # Of each layer: queries, keys and values; the result of both norms and of those of the latents.
    heads = c.num_attention_heads * (2 * c.qk_head_dim + c.v_head_dim)
    normed = 2 * c.hidden_size + c.q_lora_rank + c.kv_lora_rank
    dropped = 2 * 256 * (heads + normed) * itemsize
    expected = none - dropped
    # Beside them views and small factors come and go; a router in BF16 keeps a copy in FP32.
    assert kept["norm_and_up_projection"] == pytest.approx(expected, rel=0.03)
    assert kept["moe"] < 0.75 * none
    # The input of a layer, and what a MoE layer counts.
    inputs = 2 * 256 * c.hidden_size * itemsize
    assert kept["full"] == pytest.approx(inputs, rel=0.1)


def test_remade_results_are_made_once_a_backward_pass_and_let_go():
    made = []
    weights = [torch.randn(4, 4, requires_grad=True) for _ in range(3)]
    x = torch.randn(5, 4, requires_grad=True)

    def double(value: Tensor) -> Tensor:
        made.append(1)
        return value * 2

    with remade(double, x) as doubled:
        out = sum((doubled @ weight).sum() for weight in weights)
    for passes in (1, 2):
        grads = torch.autograd.grad(out, [x, *weights], retain_graph=True)
        assert len(made) == 1 + passes
    plain = sum(((x * 2) @ weight).sum() for weight in weights)
    wanted = torch.autograd.grad(plain, [x, *weights])
    assert all(torch.equal(*pair) for pair in zip(grads, wanted, strict=True))
    with torch.no_grad(), remade(double, x) as doubled:
        assert torch.equal(doubled, x * 2)
