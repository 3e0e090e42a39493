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
    kept = states + weights * p.activation_bytes
    return Op(
        "loss",
        kept=kept,
        forward=states + _chunks(p, weights),
        backward=states,
        weights=(weights,),
        part="logits",
    )


def _chunks(p: Pass, weights: int) -> int:
    """The most that the chunks need beside the two gradients that are kept.

    Below FP32 the weights' gradient is summed up in FP32 and rounded at the end. BF16 logits are
    copied to FP32 before their softmax; a CPU does so with what is added to the sum, too.
    """
    vocabulary = p.model.vocab_size
    rows = min(p.tokens, max(CHUNK_ROWS, CHUNK_ELEMENTS // vocabulary))
    logits = rows * vocabulary * p.activation_bytes
    wide = rows * vocabulary * FP32
    narrow = p.activation_bytes < FP32
    converted = FP32 if narrow and p.device == "cpu" else 0
    # From the second chunk on, the gradient of the one before is still there.
    before = logits if p.tokens > rows else 0
    softmax = before + logits + wide + (wide if narrow else 0)
    if not narrow:
        return softmax
    product = logits + weights * (p.activation_bytes + converted)
    return weights * (FP32 - p.activation_bytes) + max(softmax, product)


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
