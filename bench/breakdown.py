"""Where a step's time goes: the matrix products alone, and a profile in a few groups."""

import re
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from dsv3.config.model import ModelConfig

# First match wins.
GROUPS = (
    ("matrix products", r"aten::(addmm_?|mm|bmm|baddbmm|_grouped_mm|linear|matmul)$"),
    ("attention kernels", r"scaled_dot_product|_softmax|kept_attention"),
    ("optimizer and clipping", r"adamw|_foreach|linalg_vector_norm|clip"),
    ("compiled element-wise", r"cpp_fused|CompiledF|Compiled Function|Torch-Compiled"),
    ("reordering", r"index|embedding|gather|scatter|sort|topk|permute|copy_|cat|clone|contiguous"),
)
OTHER = "other element-wise"


def products_of(config: ModelConfig, tokens: int) -> list[tuple[str, int, int, int, int]]:
    """Linear layers of one step: (name, products, rows, inputs, outputs), experts evenly loaded."""
    c, layers, moe = config, config.num_hidden_layers, config.num_moe_layers
    dense, heads = layers - moe, config.num_attention_heads
    D, F = c.hidden_size, c.moe_intermediate_size
    rows = tokens * c.num_experts_per_tok // c.n_routed_experts
    experts = moe * c.n_routed_experts
    shared = c.n_shared_experts * F
    queries = [("q", layers, tokens, D, heads * c.qk_head_dim)]
    if c.q_lora_rank is not None:
        queries = [
            ("q_a", layers, tokens, D, c.q_lora_rank),
            ("q_b", layers, tokens, c.q_lora_rank, heads * c.qk_head_dim),
        ]
    return [
        *queries,
        ("kv_a", layers, tokens, D, c.kv_lora_rank + c.qk_rope_head_dim),
        ("kv_b", layers, tokens, c.kv_lora_rank, heads * (c.qk_nope_head_dim + c.v_head_dim)),
        ("o", layers, tokens, heads * c.v_head_dim, D),
        ("dense gate, up", 2 * dense, tokens, D, c.intermediate_size),
        ("dense down", dense, tokens, c.intermediate_size, D),
        ("shared gate, up", 2 * moe, tokens, D, shared),
        ("shared down", moe, tokens, shared, D),
        ("router", moe, tokens, D, c.n_routed_experts),
        ("expert gate_up", experts, rows, D, 2 * F),
        ("expert down", experts, rows, F, D),
        ("head", 1, tokens, D, c.vocab_size),
    ]


def products_seconds(
    config: ModelConfig, tokens: int, dtype: torch.dtype, *, rounds: int
) -> tuple[float, float]:
    """Seconds and FLOPs of all linear layers' products of one step, measured on their shapes."""
    seconds = flops = 0.0
    for _, count, rows, inputs, outputs in products_of(config, tokens):
        if count == 0 or outputs == 0 or inputs == 0:
            continue
        x, w = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
        grad = torch.randn(rows, outputs).to(dtype)
        three: tuple[Callable[[], Tensor], ...] = (
            lambda x=x, w=w: x @ w.t(),
            lambda grad=grad, w=w: grad @ w,
            lambda grad=grad, x=x: grad.t() @ x,
        )
        seconds += count * sum(_median_seconds(product, rounds) for product in three)
        flops += count * 6.0 * rows * inputs * outputs
    return seconds, flops


def _median_seconds(call: Callable[[], Tensor], rounds: int) -> float:
    call()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return sorted(taken)[rounds // 2]


def profile_groups(step: Callable[[], object], *, steps: int) -> dict[str, float]:
    """Share of the profiled time per group of operations, largest first."""
    step()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(steps):
            step()
    times = dict.fromkeys([name for name, _ in GROUPS] + [OTHER], 0.0)
    for event in recorded.key_averages():
        group = next((name for name, rule in GROUPS if re.search(rule, event.key, re.I)), OTHER)
        times[group] += event.self_cpu_time_total
    total = sum(times.values())
    shares = {name: spent / total for name, spent in times.items()}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))
