"""What a whole layer keeps and needs under each policy of recomputation (model/recompute.py)."""

from dataclasses import dataclass, replace
from functools import lru_cache

from dsv3.plan.memory_layers import attention, dense_network, moe, norm
from dsv3.plan.memory_ops import (
    FP32,
    GradientRule,
    Op,
    Part,
    backward_peak,
    forward_peak,
    kept,
    kept_by_part,
    weights_of,
)
from dsv3.plan.memory_pass import Pass


@dataclass(frozen=True)
class LayerMemory:
    """Bytes of one layer and one micro batch, beside what was there before."""

    kept: dict[Part, int]  # between the forward and the backward pass
    forward: int  # at most while it runs forward
    backward: int  # at most while it runs backward, its kept bytes included
    weights: int  # elements whose gradients it makes

    @property
    def kept_in_all(self) -> int:
        """Bytes between the passes."""
        return sum(self.kept.values())


@lru_cache(maxsize=256)
def block(p: Pass, rule: GradientRule, *, is_moe: bool) -> LayerMemory:
    """A decoder layer (model/block.py)."""
    m = p.model
    attending = attention(p)
    before = norm(p, m.hidden_size, name="post_attention_layernorm")
    network = moe(p) if is_moe else dense_network(p, m.intermediate_size, name="mlp")
    feeding = [before, *network]
    everything = attending + feeding
    match p.recompute:
        case "full":
            return _made_again(p, [everything], [], rule)
        case "moe" if is_moe:
            return _made_again(p, [feeding], attending, rule)
        case "norm_and_up_projection":
            return _selective(p, attending, feeding, rule)
        case _:
            return layer(everything, everything, rule)


def layer(between: list[Op], running: list[Op], rule: GradientRule) -> LayerMemory:
    """What `between` keeps between the passes, and what it takes to run `running`."""
    return LayerMemory(
        kept=kept_by_part(between),
        forward=forward_peak(running),
        backward=backward_peak(running, rule),
        weights=weights_of(running),
    )


def _made_again(
    p: Pass, regions: list[list[Op]], others: list[Op], rule: GradientRule
) -> LayerMemory:
    """Of the regions only the input stays; the backward pass makes one, and goes through it."""
    states = p.of(p.model.hidden_size)
    left = [*others, *(Op("input", kept=states) for _ in regions)]
    again = [*others, *(op for region in regions for op in region)]
    made = layer(left, again, rule)
    return replace(made, backward=max(made.backward, made.forward + states))


def _selective(p: Pass, attending: list[Op], feeding: list[Op], rule: GradientRule) -> LayerMemory:
    """The report's policy: norms and what is expanded from the latents are made again.

    The network's backward pass comes first, beside what attention left; then all of attention is
    there again.
    """
    m = p.model
    states = p.of(m.hidden_size)
    left = [Op("input", kept=states), *_kept_of_attention(p, attending[-1])]
    is_dense = not any(op.name == "router" for op in feeding)
    dropped = 0 if p.fp8 else p.linear_input(m.hidden_size) if is_dense else states
    between = [*left, *feeding, Op("normed states", kept=-dropped)]
    made = rule.left([weights_of(feeding)])
    return LayerMemory(
        kept=kept_by_part(between),
        forward=max(kept(left) + forward_peak(feeding), forward_peak(attending)),
        backward=max(
            kept(left) + backward_peak(feeding, rule),
            made + backward_peak(attending, rule),
            made + forward_peak(attending) + states,
        ),
        weights=weights_of([*attending, *feeding]),
    )


def _kept_of_attention(p: Pass, o_proj: Op) -> list[Op]:
    """What a selective recomputation keeps: it knows torch's operators and ours.

    Of Transformer Engine's only `o_proj` is left, which stands outside and keeps its own.
    """
    m = p.model
    made = Op("attention", kept=_made_by_attention(p))
    if not p.engine:
        latents = p.of(m.kv_lora_rank + m.qk_rope_head_dim + (m.q_lora_rank or 0))
        return [Op("latents", kept=latents), made]
    if p.attention_kernel == "fused":
        return [made, o_proj]
    heads = 0 if p.fp8 else p.of(m.num_attention_heads * m.v_head_dim)
    return [o_proj._replace(kept=o_proj.kept + heads)]


def _made_by_attention(p: Pass) -> int:
    """What the kernel itself made: its result and, where it is one operation, its by-products."""
    m = p.model
    heads = m.num_attention_heads
    value = p.of(heads * m.v_head_dim)
    match p.attention_kernel:
        case "engine" | "fused":
            return value + p.tokens * heads * FP32
        case "halves":
            first = (p.length + 1) // 2
            kept = first * first + (p.length - first) * p.length
            return value + p.sequences * heads * kept * p.activation_bytes
        case "plain":
            return value
