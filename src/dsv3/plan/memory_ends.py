"""Memory of a model's two ends: embedding, head with its loss, and the MTP modules between them."""

from functools import lru_cache

from dsv3.plan.memory_blocks import LayerMemory, block, layer
from dsv3.plan.memory_layers import linear, norm
from dsv3.plan.memory_ops import FP32, GradientRule, Op
from dsv3.plan.memory_pass import Pass

CHUNK_ELEMENTS, CHUNK_ROWS = 1 << 22, 256
"""As ops/cross_entropy.py: logits held at once, and rows at least."""


def embedding(p: Pass, rule: GradientRule) -> LayerMemory:
    """Its output is the first layer's input, counted there; its gradient is a whole table."""
    m = p.model
    states = p.of(m.hidden_size)
    looked_up = Op(
        "embedding", forward=states, backward=states, weights=(m.vocab_size * m.hidden_size,)
    )
    return layer([looked_up], [looked_up], rule)


def head(p: Pass, rule: GradientRule) -> LayerMemory:
    """The final norm and the loss."""
    ops = [norm(p, p.model.hidden_size, name="norm"), _loss(p)]
    return layer(ops, ops, rule)


def _loss(p: Pass) -> Op:
    """The head over chunks of rows: both gradients are made on the way, no logits are kept."""
    m = p.model
    states, weights = p.of(m.hidden_size), m.vocab_size * m.hidden_size
    rows = min(p.tokens, max(CHUNK_ROWS, CHUNK_ELEMENTS // m.vocab_size))
    narrow = p.activation_bytes < FP32
    # Logits, probabilities in FP32, and below FP32 an FP32 copy of the one or a rounded one of these.
    chunk = rows * m.vocab_size * (p.activation_bytes + FP32 + (FP32 if narrow else 0))
    # Below FP32 the weights' gradient is summed up in FP32, a product at a time.
    summed = weights * FP32 if narrow else 0
    return Op(
        "loss",
        kept=states + weights * p.activation_bytes,
        forward=states + summed + chunk,
        backward=states,
        weights=(weights,),
        part="logits",
    )


@lru_cache(maxsize=64)
def mtp_modules(p: Pass, rule: GradientRule, depth: int) -> list[LayerMemory]:
    """Each module: the norms and the joining, its block, the norm before the head, the loss."""
    found = []
    for offset in range(1, depth + 1):
        shorter = p.shortened(p.length - offset)
        found += [_joining(shorter, rule, is_first=offset == 1)]
        found += [block(shorter, rule, is_moe=True), head(shorter, rule)]
    return found


def _joining(p: Pass, rule: GradientRule, *, is_first: bool) -> LayerMemory:
    width = p.model.hidden_size
    # The first takes the final norm of the hidden states, made once more for it.
    ops = [norm(p, width, name="norm", keeps_input=False)] if is_first else []
    ops += [
        norm(p, width, name="enorm", keeps_input=False),
        norm(p, width, name="hnorm"),
        linear(p, 2 * width, width, name="eh_proj"),
    ]
    kept = list(ops)
    if p.recompute == "norm_and_up_projection":
        kept[-1] = ops[-1]._replace(kept=0)
    return layer(kept, ops, rule)

