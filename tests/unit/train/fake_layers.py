"""MoE layers as the load metrics see them: counters, a bias and a key of the configuration."""

from types import SimpleNamespace

import torch


def layer(tokens, *, peaks=0, saturated=0, top_k=1, bias=None):
    """A layer that has counted `tokens` per expert, its scalars as given."""
    bias = [0.0] * len(tokens) if bias is None else bias
    return SimpleNamespace(
        tokens_per_expert_E=torch.tensor(tokens, dtype=torch.int64),
        sequence_peaks=torch.tensor(peaks),
        saturated_scores=torch.tensor(saturated),
        config=SimpleNamespace(num_experts_per_tok=top_k),
        router=SimpleNamespace(e_score_correction_bias=torch.tensor(bias, dtype=torch.float32)),
    )


def model_of(*layers, first=1):
    """The layers by canonical name, as the model gives them."""
    return {f"model.layers.{first + i}.mlp": each for i, each in enumerate(layers)}
