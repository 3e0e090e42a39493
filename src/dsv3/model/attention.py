"""Multi-head latent attention (report section 2.1.1, eq. 1 to 11)."""

import torch
from torch import Tensor, nn

from dsv3.config.model import ModelConfig
from dsv3.model.backends import Backend
from dsv3.model.recompute import kept
from dsv3.ops.rope import (
    rotary_frequencies,
    rotate_pairs,
    rotation_table,
    yarn_frequencies,
    yarn_temperature,
)


class LatentAttention(nn.Module):
    """Keys and values are expanded from one latent per token; one rotary key serves all heads."""

    def __init__(self, config: ModelConfig, *, backend: Backend) -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        self.scale = softmax_scale(config)
        D, H, C = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
        if config.q_lora_rank is None:
            self.q_proj = backend.linear(D, H * config.qk_head_dim)
        else:
            self.q_a_proj = backend.linear(D, config.q_lora_rank)
            self.q_a_layernorm = backend.rms_norm(config.q_lora_rank, config.rms_norm_eps)
            self.q_b_proj = backend.linear(config.q_lora_rank, H * config.qk_head_dim)
        self.kv_a_proj_with_mqa = backend.linear(D, C + config.qk_rope_head_dim)
        self.kv_a_layernorm = backend.rms_norm(C, config.rms_norm_eps)
        self.kv_b_proj = backend.linear(C, H * (config.qk_nope_head_dim + config.v_head_dim))
        self.o_proj = backend.linear(H * config.v_head_dim, D)

    def forward(self, hidden_BSD: Tensor, rotation: Tensor) -> Tensor:
        """Attend causally; `rotation` [2, S, P/2] holds the cosines and sines of the positions."""
        out_BSD: Tensor = self.o_proj(self.attend(hidden_BSD, rotation))
        return out_BSD

    def attend(self, hidden_BSD: Tensor, rotation: Tensor) -> Tensor:
        """The heads' values side by side, [B, S, H V], before `o_proj` mixes them.

        Of this, a selective recomputation keeps the latents and what the attention itself made.
        """
        c = self.config
        heads = (c.num_attention_heads, -1)
        with kept():  # small beside what is expanded from them
            latents = self.kv_a_proj_with_mqa(hidden_BSD)
        latent_BSC, k_rope_BSP = latents.split((c.kv_lora_rank, c.qk_rope_head_dim), dim=-1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent_BSC)).unflatten(-1, heads).transpose(1, 2)
        k_nope_BHSN, v_BHSV = kv.split((c.qk_nope_head_dim, c.v_head_dim), dim=-1)
        k_rope_BHSP = rotate_pairs(k_rope_BSP, rotation).unsqueeze(1)
        k_rope_BHSP = k_rope_BHSP.expand(-1, c.num_attention_heads, -1, -1)
        k_BHSd = torch.cat((k_nope_BHSN, k_rope_BHSP), dim=-1)

        q = self._queries(hidden_BSD).unflatten(-1, heads).transpose(1, 2)
        q_nope_BHSN, q_rope_BHSP = q.split((c.qk_nope_head_dim, c.qk_rope_head_dim), dim=-1)
        q_BHSd = torch.cat((q_nope_BHSN, rotate_pairs(q_rope_BHSP, rotation)), dim=-1)

        with kept():
            out_BHSV = self.backend.attention(q_BHSd, k_BHSd, v_BHSV, scale=self.scale)
        return out_BHSV.transpose(1, 2).flatten(2)

    def _queries(self, hidden_BSD: Tensor) -> Tensor:
        if self.config.q_lora_rank is None:
            queries: Tensor = self.q_proj(hidden_BSD)
        else:
            with kept():
                latent_BSQ = self.q_a_proj(hidden_BSD)
            queries = self.q_b_proj(self.q_a_layernorm(latent_BSQ))
        return queries


def softmax_scale(config: ModelConfig) -> float:
    """1 / sqrt(qk_head_dim), under YaRN times the square of the temperature."""
    scale: float = config.qk_head_dim**-0.5
    yarn = config.rope_scaling
    if yarn is None or yarn.mscale_all_dim == 0:
        return scale
    temperature = yarn_temperature(yarn.factor, yarn.mscale_all_dim)
    return scale * temperature * temperature


def rotation_of(config: ModelConfig, length: int, device: torch.device) -> Tensor:
    """Cosines and sines of the first `length` positions of this model, FP32 [2, length, P/2]."""
    yarn = config.rope_scaling
    if yarn is None:
        frequencies = rotary_frequencies(config.qk_rope_head_dim, config.rope_theta)
        return rotation_table(frequencies.to(device), length)
    frequencies = yarn_frequencies(
        config.qk_rope_head_dim,
        config.rope_theta,
        factor=yarn.factor,
        original_length=yarn.original_max_position_embeddings,
        beta_fast=yarn.beta_fast,
        beta_slow=yarn.beta_slow,
    )
    # The part of the temperature that the softmax scale does not already hold.
    magnitude = yarn_temperature(yarn.factor, yarn.mscale) / yarn_temperature(
        yarn.factor, yarn.mscale_all_dim
    )
    return rotation_table(frequencies.to(device), length, magnitude=magnitude)
