"""Training FLOPs per token, from the configuration alone.

The convention of "Insights into DeepSeek-V3" (arXiv 2505.09343, table 2) and of its causal
utilisation: 6 per active weight (2 forward, 4 backward), body + head, and the attention products
over the lower triangle. Recomputation, softmax, top-k and the optimizer are not counted.
"""

from dsv3.config.model import ModelConfig
from dsv3.plan.parameters import count_mtp, count_parameters

# Forward is 2 FLOPs (multiply, add) per weight; backward does it twice, for inputs and for weights.
TRAINING_FLOPS_PER_WEIGHT = 6


def training_flops_per_token(model: ModelConfig, *, sequence_length: int) -> int:
    """FLOPs of forward and backward of the main model per token, without MTP."""
    weights = count_parameters(model).active
    attention = model.num_hidden_layers * _attention_per_layer(model, sequence_length)
    return TRAINING_FLOPS_PER_WEIGHT * weights + attention


def mtp_flops_per_token(model: ModelConfig, *, sequence_length: int, depth: int) -> int:
    """FLOPs that `depth` MTP modules add per token; each passes the shared head once more."""
    head = count_parameters(model).head
    weights = count_mtp(model, depth=depth).active + depth * head
    attention = depth * _attention_per_layer(model, sequence_length)
    return TRAINING_FLOPS_PER_WEIGHT * weights + attention


def dense_layer_flops_per_token(model: ModelConfig, *, sequence_length: int) -> int:
    """FLOPs of forward and backward of a block with a dense FFN, per token."""
    weights = count_parameters(model).dense_layer
    return TRAINING_FLOPS_PER_WEIGHT * weights + _attention_per_layer(model, sequence_length)


def moe_layer_flops_per_token(model: ModelConfig, *, sequence_length: int) -> int:
    """FLOPs of forward and backward of an MoE block, as one token sees it."""
    weights = count_parameters(model).moe_layer_active
    return TRAINING_FLOPS_PER_WEIGHT * weights + _attention_per_layer(model, sequence_length)


def head_flops_per_token(model: ModelConfig) -> int:
    """FLOPs of forward and backward of the final norm and one pass through the head, per token."""
    counts = count_parameters(model)
    return TRAINING_FLOPS_PER_WEIGHT * (counts.final_norm + counts.head)


def flops_by_part(model: ModelConfig, *, sequence_length: int) -> dict[str, int]:
    """`training_flops_per_token` by what the operations are for; the parts add up to it."""
    counts = count_parameters(model)
    layers, moe = model.num_hidden_layers, counts.moe_layers
    weights = {
        "attention_projections": layers * counts.attention,
        "norms": layers * counts.block_norms + counts.final_norm,
        "dense_ffn": counts.dense_layers * counts.dense_ffn,
        "router": moe * counts.router,
        "shared_experts": moe * counts.shared_experts,
        "routed_experts": moe * counts.experts_per_token * counts.expert,
        "head": counts.head,
    }
    found = {name: TRAINING_FLOPS_PER_WEIGHT * count for name, count in weights.items()}
    scores = layers * _attention_per_layer(model, sequence_length)
    return {"attention_scores": scores, **found}


def _attention_per_layer(model: ModelConfig, sequence_length: int) -> int:
    """q k^T and p v of one layer; a token sees half the sequence on average."""
    per_pair = model.num_attention_heads * (model.qk_head_dim + model.v_head_dim)
    return TRAINING_FLOPS_PER_WEIGHT * per_pair * sequence_length // 2
