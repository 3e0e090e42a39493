"""Canonical parameter names: those of Hugging Face's DeepseekV3 modules, experts stacked.

    model.embed_tokens.weight [X, D]      model.layers.N.self_attn.*, .mlp.*, .*_layernorm.weight
    model.norm.weight [D]                 model.layers.N.mlp.experts.gate_up_proj [E, 2F, D]
    lm_head.weight [X, D]                 model.layers.N.mlp.experts.down_proj [E, D, F]

Layers keep their global number and stacked experts their global order on every rank.
"""

EXPERT_SUFFIXES = (".mlp.experts.gate_up_proj", ".mlp.experts.down_proj")


def is_expert(name: str) -> bool:
    """Whether the parameter stacks routed experts along its first dimension."""
    return name.endswith(EXPERT_SUFFIXES)


def is_norm(name: str) -> bool:
    """Whether the parameter is the weight of an RMSNorm."""
    return name.endswith("norm.weight")


def in_recipe(name: str) -> bool:
    """Whether `precision.recipe` decides the products with this parameter.

    Embedding, head and routers are left in the type of the weights or FP32; norms have no products.
    """
    stays = ("model.embed_tokens.weight", "lm_head.weight")
    return not (name in stays or name.endswith(".mlp.gate.weight") or is_norm(name))
