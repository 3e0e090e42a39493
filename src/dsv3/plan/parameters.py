"""Exact parameter counts of a model, from its configuration alone.

The router's bias (`e_score_correction_bias`) is a buffer that no gradient reaches: it is in none of
these counts. "Active" is what one token passes through, body + output head without the embedding:
the convention of the report's tables 4 and 5.
"""

from dataclasses import dataclass

from dsv3.config.model import ModelConfig


@dataclass(frozen=True)
class ParameterCounts:
    """Weights by piece, each piece once; the last four fields say how often a piece is there."""

    embedding: int
    head: int
    final_norm: int
    attention: int
    block_norms: int
    dense_ffn: int
    expert: int
    shared_experts: int
    router: int
    dense_layers: int
    moe_layers: int
    routed_experts: int
    experts_per_token: int

    @property
    def around_ffn(self) -> int:
        """What every block has besides its FFN: MLA and the two norms of the block."""
        return self.attention + self.block_norms

    @property
    def dense_layer(self) -> int:
        """One block with a dense FFN."""
        return self.around_ffn + self.dense_ffn

    @property
    def moe_layer(self) -> int:
        """One block with all its routed experts."""
        return self._moe_layer(self.routed_experts)

    @property
    def moe_layer_active(self) -> int:
        """One MoE block as one token sees it."""
        return self._moe_layer(self.experts_per_token)

    @property
    def body(self) -> int:
        """All blocks and the final norm."""
        return self._body(self.moe_layer)

    @property
    def body_active(self) -> int:
        """The body as one token sees it."""
        return self._body(self.moe_layer_active)

    @property
    def total(self) -> int:
        """All weights: embedding, body, head."""
        return self.embedding + self.body + self.head

    @property
    def active(self) -> int:
        """Weights one token passes through: body + head."""
        return self.body_active + self.head

    @property
    def active_with_embedding(self) -> int:
        """Active weights when the whole embedding is counted as well."""
        return self.embedding + self.active

    def _moe_layer(self, experts: int) -> int:
        return self.around_ffn + self.router + self.shared_experts + experts * self.expert

    def _body(self, moe_layer: int) -> int:
        return self.dense_layers * self.dense_layer + self.moe_layers * moe_layer + self.final_norm


@dataclass(frozen=True)
class MtpCounts:
    """What multi-token prediction adds (report section 2.2); it shares embedding and head."""

    total: int
    active: int


def count_parameters(model: ModelConfig) -> ParameterCounts:
    """Count the weights of the main model, without MTP."""
    width = model.hidden_size
    expert = _swiglu(width, model.moe_intermediate_size)
    return ParameterCounts(
        embedding=model.vocab_size * width,
        head=model.vocab_size * width,
        final_norm=width,
        attention=_attention(model),
        block_norms=2 * width,
        dense_ffn=_swiglu(width, model.intermediate_size),
        expert=expert,
        shared_experts=model.n_shared_experts * expert,
        router=width * model.n_routed_experts,
        dense_layers=model.num_hidden_layers - model.num_moe_layers,
        moe_layers=model.num_moe_layers,
        routed_experts=model.n_routed_experts,
        experts_per_token=model.num_experts_per_tok,
    )


def count_mtp(model: ModelConfig, *, depth: int) -> MtpCounts:
    """Count `depth` MTP modules: MoE block, projection of [hidden; embedding], three norms."""
    counts = count_parameters(model)
    extra = 2 * model.hidden_size**2 + 3 * model.hidden_size
    return MtpCounts(
        total=depth * (counts.moe_layer + extra),
        active=depth * (counts.moe_layer_active + extra),
    )


def _attention(model: ModelConfig) -> int:
    """MLA (report equations 1 to 11): queries, keys and values, output, norms of the latents."""
    width, heads = model.hidden_size, model.num_attention_heads
    if model.q_lora_rank is None:
        queries = width * heads * model.qk_head_dim
    else:
        queries = model.q_lora_rank * (width + 1 + heads * model.qk_head_dim)
    keys_values = width * (model.kv_lora_rank + model.qk_rope_head_dim)
    keys_values += model.kv_lora_rank * (1 + heads * (model.qk_nope_head_dim + model.v_head_dim))
    return queries + keys_values + heads * model.v_head_dim * width


def _swiglu(width: int, intermediate: int) -> int:
    return 3 * width * intermediate
