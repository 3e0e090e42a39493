"""What a model remembers of a token at inference."""

from dsv3.config.model import ModelConfig

BF16_BYTES = 2


def kv_cache_bytes_per_token(model: ModelConfig) -> int:
    """Bytes in BF16 of all layers: the latent of keys and values, and the rotary key."""
    return model.num_hidden_layers * (model.kv_lora_rank + model.qk_rope_head_dim) * BF16_BYTES
