"""The operations of a layer, in their order: norms, latent attention, dense and expert networks.

Each function follows the code it is named after. `grad` below stands for the gradient of the
layer's output, which stays alive for the residual sum while a branch runs backward.
"""

from typing import TypedDict

from dsv3.plan.memory_emulated import inside_experts, inside_linear
from dsv3.plan.memory_ops import FP32, INT64, Op
from dsv3.plan.memory_pass import Pass

SILU_AND_PRODUCTS = 4  # [T, F] tensors of a dense network: gate, up, silu(gate), their product


class _Product(TypedDict):
    """What the products of one shape have in common."""

    weights: tuple[int, ...]
    copies: int
    wide: bool


def norm(p: Pass, width: int, *, keeps_input: bool = True, name: str = "norm") -> Op:
    """RMSNorm: keeps its input and 1 / rms; on a CPU its gradient takes three FP32 tensors."""
    grad = p.of(p.model.hidden_size)
    working = 3 * p.wide(width) if p.device == "cpu" else p.of(width)
    return Op(
        name,
        kept=(p.of(width) if keeps_input else 0) + p.tokens * FP32,
        forward=p.wide(width) + p.of(width) if p.device == "cpu" else p.of(width),
        backward=grad + p.of(width) + working,
        weights=(width,),
    )


def linear(p: Pass, wide_in: int, wide_out: int, *, name: str, keeps_input: bool = True) -> Op:
    """A linear layer: keeps its input, unless another operation is said to keep it already.

    In FP8 each keeps a copy of its own, and both of its weight.
    """
    grad = p.of(p.model.hidden_size)
    forward, backward = inside_linear(p, wide_in, wide_out)
    return Op(
        name,
        kept=p.linear_input(wide_in) if keeps_input or p.fp8 else 0,
        forward=p.of(wide_in) + p.of(wide_out) + p.quantised(wide_in)[0] + forward,
        backward=grad + p.of(wide_out) + p.of(wide_in) + sum(p.quantised(wide_out)) + backward,
        weights=(wide_in * wide_out,),
        copies=p.weight_copies(wide_in, wide_out),
        wide=p.wide_gradients,
    )


def attention(p: Pass) -> list[Op]:
    """Latent attention with the norm before it (model/attention.py), up to the residual sum."""
    m = p.model
    heads, width = m.num_attention_heads, m.hidden_size
    queries, keys = heads * m.qk_head_dim, heads * (m.qk_nope_head_dim + m.v_head_dim)
    latents = m.kv_lora_rank + m.qk_rope_head_dim
    ops = [norm(p, width, name="input_layernorm")]
    ops.append(linear(p, width, latents, name="kv_a_proj"))
    ops.append(
        Op(
            "kv_a_layernorm",
            # A view, which holds the rotary key as well; Transformer Engine makes a copy.
            kept=p.of(m.kv_lora_rank if p.engine else latents) + p.tokens * FP32,
            forward=p.wide(m.kv_lora_rank),
            backward=p.of(width) + 3 * p.wide(m.kv_lora_rank) + p.of(latents),
            weights=(m.kv_lora_rank,),
        )
    )
    ops.append(linear(p, m.kv_lora_rank, keys, name="kv_b_proj"))
    if m.q_lora_rank is None:
        ops.append(linear(p, width, queries, name="q_proj", keeps_input=False))
    else:
        ops.append(linear(p, width, m.q_lora_rank, name="q_a_proj", keeps_input=False))
        ops.append(norm(p, m.q_lora_rank, name="q_a_layernorm"))
        ops.append(linear(p, m.q_lora_rank, queries, name="q_b_proj"))
    ops += [_rotary(p), _scores(p)]
    ops.append(linear(p, heads * m.v_head_dim, width, name="o_proj", keeps_input=False))
    return ops


def _rotary(p: Pass) -> Op:
    """Rotation and joining of queries and keys: nothing is kept, FP32 copies come and go."""
    m = p.model
    heads = m.num_attention_heads
    rotary = p.wide(heads * m.qk_rope_head_dim)
    queries = p.of(heads * m.qk_head_dim)
    expanded = p.of(heads * (m.qk_nope_head_dim + m.v_head_dim))
    return Op(
        "rotary",
        forward=2 * queries + expanded + queries + 2 * rotary,
        backward=p.of(m.hidden_size) + 4 * queries + expanded + 2 * rotary,
    )


def _scores(p: Pass) -> Op:
    """The attention itself: queries, keys, values, its result, and what its kernel keeps."""
    m = p.model
    heads = m.num_attention_heads
    query, value = p.of(heads * m.qk_head_dim), p.of(heads * m.v_head_dim)
    expanded = p.of(heads * (m.qk_nope_head_dim + m.v_head_dim))
    grads = p.of(m.hidden_size) + 2 * value + 2 * query
    # The unscaled queries and the expanded keys and values are alive until `attend` returns.
    before = expanded + query
    match p.attention_kernel:
        case "engine":
            # Copies with the heads behind the positions.
            keeps = 2 * query + 2 * value + p.tokens * heads * FP32
            return Op("attention", kept=keeps, forward=before + 2 * query + value, backward=grads)
        case "fused":
            # The values are a view into what kv_b_proj made; one sum is kept for each row.
            keeps = 2 * query + expanded + value + p.tokens * heads * FP32
            return Op("attention", kept=keeps, forward=before, backward=grads)
        case "halves":
            first = (p.length + 1) // 2
            each = p.sequences * heads * p.activation_bytes
            early, late = each * first * first, each * (p.length - first) * p.length
            return Op(
                "attention",
                kept=2 * query + 2 * value + early + late,
                forward=before + late,
                backward=grads + value + 2 * late,
            )
        case "plain":
            # All of it in FP32, and a copy of the result with the heads side by side.
            square = p.wide(heads) * p.length
            wide = 2 * p.wide(heads * m.qk_head_dim) + p.wide(heads * m.v_head_dim)
            return Op(
                "attention",
                kept=wide + square + value,
                forward=before + query + square + square // FP32,
                backward=p.of(m.hidden_size) + wide + 2 * value + 2 * square,
            )


def dense_network(p: Pass, width: int, *, name: str, keeps_input: bool = True) -> list[Op]:
    """down(silu(gate(x)) * up(x)): keeps x and four tensors of its inner width."""
    hidden = p.model.hidden_size
    grad, inner = p.of(hidden), p.of(width)
    up_forward, up_backward = inside_linear(p, hidden, width)
    down_forward, down_backward = inside_linear(p, width, hidden)
    up_forward += p.quantised(hidden)[0]
    up_backward += sum(p.quantised(width))
    down_forward += p.quantised(width)[0]
    down_backward += sum(p.quantised(hidden))
    up: _Product = {
        "weights": (hidden * width,),
        "copies": p.weight_copies(hidden, width),
        "wide": p.wide_gradients,
    }
    return [
        Op(
            f"{name}.gate_proj",
            kept=p.linear_input(hidden) if keeps_input or p.fp8 else 0,
            forward=grad + inner + up_forward,
            backward=4 * grad + inner + up_backward,
            **up,
        ),
        Op(
            f"{name}.up_proj",
            kept=p.linear_input(hidden) if p.fp8 else 0,
            forward=2 * inner + up_forward,
            backward=3 * grad + 2 * inner + up_backward,
            **up,
        ),
        Op(f"{name}.silu", kept=inner, forward=2 * inner, backward=2 * grad + 3 * inner),
        Op(f"{name}.product", kept=2 * inner, forward=inner, backward=2 * grad + 3 * inner),
        Op(
            f"{name}.down_proj",
            kept=p.linear_input(width),
            forward=2 * grad + down_forward,
            backward=2 * grad + inner + down_backward,
            **up,
        ),
    ]


def router(p: Pass) -> Op:
    """Scores in FP32, the choice and the gate values; the balance loss keeps as much again."""
    m = p.model
    scores, chosen = p.wide(m.n_routed_experts), p.tokens * m.num_experts_per_tok
    is_narrow = p.activation_bytes < FP32
    of_input = p.wide(m.hidden_size) if is_narrow else 0  # FP32 copies of states and weights
    of_weights = m.n_routed_experts * m.hidden_size * FP32 if is_narrow else 0
    of_loss = 3 * scores if p.balance_loss else 0
    return Op(
        "router",
        kept=of_input + of_weights + scores + of_loss + chosen * (INT64 + 2 * FP32),
        forward=4 * scores,
        backward=3 * p.of(m.hidden_size) + p.wide(m.hidden_size) + 2 * scores,
        weights=(m.n_routed_experts * m.hidden_size,),
    )


def experts(p: Pass) -> list[Op]:
    """Dispatch, the routed experts' networks, combine (parallel/dispatch.py, ops/experts.py)."""
    dispatch, combine = _to_experts_and_back(p)
    return [dispatch, *(_engine_experts(p) if p.engine else [_experts(p)]), combine]


def _to_experts_and_back(p: Pass) -> tuple[Op, Op]:
    m = p.model
    hidden = m.hidden_size
    grad, rows = p.of(hidden), p.rows_of(hidden)
    places = p.assignments * INT64 + p.rows * (INT64 + FP32)
    away, packed, narrow = 0, 0, 0
    if p.narrow_dispatch and p.expert_ranks == 1:
        narrow = _as_fp8(p, p.tokens, p.tokens)
    if p.expert_ranks > 1:
        # Places at home and of what arrived; a message is packed as bytes, sent, and taken apart.
        row = hidden * p.activation_bytes + FP32
        packed = p.assignments * row + 2 * p.arrived * row
        places += p.assignments * INT64 + p.arrived * INT64
        away = p.assignments * hidden * p.activation_bytes + p.arrived * hidden * p.activation_bytes
        if p.narrow_dispatch:
            narrow = _as_fp8(p, p.assignments, p.arrived)
    dispatch = Op(
        "dispatch",
        kept=places,
        forward=max(packed + rows, narrow),
        backward=2 * grad + rows + packed,
        part="dispatch",
    )
    combine = Op(
        "combine",
        forward=rows + grad + away,
        backward=2 * grad + max(rows + away, narrow),
        part="dispatch",
    )
    return dispatch, combine


def _as_fp8(p: Pass, leaving: int, arriving: int) -> int:
    """Bytes of rows that are quantised, sent and made BF16 again (parallel/wire.py).

    Both conversions go through FP32: one beside its quotient and the codes, the other beside codes,
    its product and the result. The rows and their codes stay until what has arrived is there.
    """
    width, narrow = p.model.hidden_size, p.activation_bytes
    quantised = narrow + FP32 + FP32 + 1
    arrived = 1 + FP32 + FP32 + narrow
    return width * max(leaving * quantised, leaving * (narrow + 1) + arriving * arrived)


def _experts(p: Pass) -> Op:
    """All of them in one operation, which goes from expert to expert."""
    m = p.model
    hidden, inner = m.hidden_size, m.moe_intermediate_size
    grad, rows = p.of(hidden), p.rows_of(hidden)
    run = -(-p.rows // p.local_experts)
    one_expert = 0 if p.emulated else run * inner * p.activation_bytes
    forward, backward = inside_experts(p)
    return Op(
        "experts",
        kept=rows + p.rows_of(2 * inner),
        forward=rows + 3 * one_expert + forward,
        backward=2 * grad + 2 * rows + 9 * one_expert + backward,
        weights=_weights_of_experts(p),
        part="dispatch",
        wide=p.wide_gradients,
    )


def _engine_experts(p: Pass) -> list[Op]:
    """Transformer Engine's two grouped products with SwiGLU between them (model/backends/te.py)."""
    m = p.model
    hidden, inner = m.hidden_size, m.moe_intermediate_size
    grad, rows = p.of(hidden), p.rows_of(hidden)
    narrow, wide = p.rows_of(inner), p.rows_of(2 * inner)
    first, second = _weights_of_experts(p)
    of_rows, of_wide, of_narrow = (p.rows_quantised(w) for w in (hidden, 2 * inner, inner))
    into_first = of_rows[1] if p.fp8 else rows
    into_second = of_narrow[1] if p.fp8 else narrow
    return [
        Op(
            "experts.gate_up",
            kept=into_first + (p.rows if p.fp8 else 0),  # a flag for each row: has it a token
            forward=rows + wide + of_rows[0],
            backward=2 * grad + 2 * rows + wide + sum(of_wide),
            weights=(first,),
            copies=p.local_experts * p.weight_copies(hidden, 2 * inner),
            wide=True,
            part="dispatch",
        ),
        Op(
            "experts.swiglu",
            kept=wide,
            forward=2 * narrow,
            backward=2 * grad + 5 * narrow + wide,
            part="dispatch",
        ),
        Op(
            "experts.down",
            kept=into_second,
            forward=narrow + 3 * rows + of_narrow[0],
            backward=2 * grad + 2 * rows + narrow + sum(of_rows),
            weights=(second,),
            copies=p.local_experts * p.weight_copies(inner, hidden),
            wide=True,
            part="dispatch",
        ),
    ]


def _weights_of_experts(p: Pass) -> tuple[int, int]:
    one = p.local_experts * p.model.moe_intermediate_size * p.model.hidden_size
    return 2 * one, one


def moe(p: Pass, *, keeps_input: bool = True) -> list[Op]:
    """A MoE layer's network without its norm: router, routed experts, shared experts, their sum."""
    m = p.model
    shared = m.n_shared_experts * m.moe_intermediate_size
    # The normed states are kept for the router (FP32) or the shared experts, whoever reads them;
    # in FP8 nobody does, who has made copies.
    states = p.of(m.hidden_size) if keeps_input and not p.fp8 else 0
    ops = [Op("normed states", kept=states), router(p), *experts(p)]
    if shared:
        ops += dense_network(p, shared, name="shared_experts", keeps_input=False)
    return ops
