"""What a whole layer keeps and needs under each policy of recomputation (model/recompute.py)."""

from dataclasses import dataclass
from functools import lru_cache

from dsv3.plan.memory_layers import attention, dense_network, moe, norm
from dsv3.plan.memory_ops import (
    GradientRule,
    Op,
    Part,
    backward_peak,
    forward_peak,
    kept_by_part,
    weights_of,
)
from dsv3.plan.memory_pass import Pass

UP_PROJECTED = ("input_layernorm", "kv_a_layernorm", "kv_b_proj", "q_a_layernorm", "q_b_proj")


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
    return layer(left, again, rule)


def _selective(
    p: Pass, attending: list[Op], feeding: list[Op], rule: GradientRule
) -> LayerMemory:
    """The report's policy: norms and what is expanded from the latents are made again."""
    m = p.model
    states = p.of(m.hidden_size)
    value = p.of(m.num_attention_heads * m.v_head_dim)
    scores = next(op for op in attending if op.name == "attention")
    expanded = 2 * p.of(m.num_attention_heads * m.qk_head_dim)
    expanded += value if p.keeps_probabilities else p.of(
        m.num_attention_heads * (m.qk_nope_head_dim + m.v_head_dim)
    )
    latents = p.of(m.kv_lora_rank + m.qk_rope_head_dim + (m.q_lora_rank or 0))
    normed = [op for op in feeding if op.name == "normed states"]
    dropped = states if normed or not p.fp8 else p.linear_input(m.hidden_size)
    between = [
        Op("input", kept=states),
        Op("latents", kept=latents),
        Op("attention", kept=scores.kept - expanded),
        *feeding,
        Op("remade", kept=-dropped),
    ]
    running = [*attending, *feeding]
    return layer(between, running, rule)
