"""`model`: the architecture, under the keys of Hugging Face's DeepseekV3Config."""

from typing import Literal

from dsv3.config.section import Section, field


class YarnConfig(Section):
    """YaRN context extension (arXiv 2309.00071) of the rotary part of the keys and queries."""

    factor: float = field("How many times longer the context becomes (s).", ge=1)
    original_max_position_embeddings: int = field("Context length before extension.", gt=0)
    beta_fast: float = field("Rotations above which a frequency is left alone.", gt=0)
    beta_slow: float = field("Rotations below which a frequency is fully interpolated.", gt=0)
    mscale: float = field("Scale of the logarithmic attention temperature.", ge=0)
    mscale_all_dim: float = field("The same, applied to the whole softmax scale.", ge=0)


class BalanceStrengths(Section):
    """What the arms of `balance` take from the scale of the model they balance."""

    bias_update_speed: float = field("Step of the expert bias (gamma).", ge=0)
    sequence: float = field("Loss per sequence (alpha; alpha_1 of V2).", ge=0)
    device: float = field("V2's device-level loss (alpha_2).", ge=0)
    communication: float = field("V2's communication loss (alpha_3).", ge=0)


class ModelConfig(Section):
    """A DeepSeek-V3-style decoder: multi-head latent attention and DeepSeekMoE."""

    name: str = field("What this model is called in tables and reports.", min_length=1)
    vocab_size: int = field("Rows of the embedding and of the output head.", gt=0)
    hidden_size: int = field("Width of the residual stream.", gt=0)
    num_hidden_layers: int = field("Transformer blocks, without the MTP module.", gt=0)
    first_k_dense_replace: int = field("Leading blocks with a dense FFN in place of MoE.", ge=0)
    intermediate_size: int = field("FFN width of the dense blocks.", gt=0)
    moe_intermediate_size: int = field("FFN width of one expert.", gt=0)
    n_routed_experts: int = field("Routed experts of a MoE block.", gt=0)
    n_shared_experts: int = field("Shared experts; one MLP of that many expert widths.", ge=0)
    num_experts_per_tok: int = field("Routed experts a token is sent to (top-k).", gt=0)
    n_group: int = field("Groups the routed experts are divided into (nodes, in the report).", gt=0)
    topk_group: int = field("Groups a token may be sent to.", gt=0)
    scoring_func: Literal["sigmoid", "softmax"] = field("From router logits to scores.")
    norm_topk_prob: bool = field("Divide the chosen scores by their sum.")
    routed_scaling_factor: float = field("Factor on the routed experts' output.", gt=0)
    num_attention_heads: int = field("Attention heads.", gt=0)
    q_lora_rank: int | None = field("Width of the query latent; null: one full projection.", gt=0)
    kv_lora_rank: int = field("Width of the key-value latent.", gt=0)
    qk_nope_head_dim: int = field("Width per head of keys and queries without position.", gt=0)
    qk_rope_head_dim: int = field("Width of the rotary part of keys and queries.", gt=0)
    v_head_dim: int = field("Width per head of the values.", gt=0)
    max_position_embeddings: int = field("Longest context the positions are made for.", gt=0)
    rope_theta: float = field("Base of the rotary frequencies.", gt=0)
    rope_scaling: YarnConfig | None = field("YaRN context extension; null in pre-training.")
    rms_norm_eps: float = field("Epsilon inside every RMSNorm.", gt=0)
    initializer_range: float = field("Standard deviation of the initial weights.", gt=0)
    balance_strengths: BalanceStrengths = field("Strengths at this scale, for `balance`.")

    @property
    def qk_head_dim(self) -> int:
        """Width per head of keys and queries: without position + rotary."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def num_moe_layers(self) -> int:
        """Blocks that hold routed experts."""
        return max(0, self.num_hidden_layers - self.first_k_dense_replace)
