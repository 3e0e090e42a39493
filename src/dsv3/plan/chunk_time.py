"""Seconds that a rank takes for one micro batch, forward and backward, from operations and bytes.

Products run at the hardware's rate: those of layers in FP8 if the recipe has them, attention,
router and head in BF16. Norms, softmax and other small things are in no count; they are what the
efficiency leaves room for.
"""

from dataclasses import dataclass

from dsv3.config.hardware import Hardware
from dsv3.config.root import RunConfig
from dsv3.plan.communication import exchange
from dsv3.plan.parameters import count_parameters

FORWARD = 2  # operations per weight and token
EXCHANGES = 4  # messages of a layer, half of them forward


@dataclass(frozen=True)
class PartTime:
    """Seconds of one micro batch in a part of the model."""

    forward_compute: float = 0.0
    backward_compute: float = 0.0  # what is computed again included
    weights: float = 0.0  # of the backward: what only the weights' gradients need
    forward_exchange: float = 0.0
    backward_exchange: float = 0.0

    def __add__(self, other: "PartTime") -> "PartTime":
        return PartTime(
            self.forward_compute + other.forward_compute,
            self.backward_compute + other.backward_compute,
            self.weights + other.weights,
            self.forward_exchange + other.forward_exchange,
            self.backward_exchange + other.backward_exchange,
        )

    @property
    def forward(self) -> float:
        """Nothing overlaps: computing, then waiting for the rows."""
        return self.forward_compute + self.forward_exchange

    @property
    def backward(self) -> float:
        """The same backward."""
        return self.backward_compute + self.backward_exchange


class LayerTimes:
    """Seconds of each kind of layer for one micro batch of `tokens` tokens."""

    def __init__(
        self, config: RunConfig, hardware: Hardware, *, tokens: int, once_per_node: bool = False
    ) -> None:
        self._config, self._hardware, self._tokens = config, hardware, tokens
        self._counts = count_parameters(config.model)
        sent = exchange(config, hardware, tokens=tokens, once_per_node=once_per_node)
        self._exchange = sent.seconds(hardware)
        self.dense = self._block(self._counts.dense_ffn, is_moe=False)
        active = self._counts.shared_experts
        active += self._counts.experts_per_token * self._counts.expert
        self.moe = self._block(active, is_moe=True)
        self.head = self._linear(self._counts.head, fp8=False)
        joining = self._linear(2 * config.model.hidden_size**2, fp8=config.precision.is_fp8)
        self.mtp = joining + self.moe + self.head

    def _seconds(self, operations: float, *, fp8: bool) -> float:
        return operations * self._tokens / self._hardware.flops(fp8=fp8)

    def _linear(self, weights: int, *, fp8: bool) -> PartTime:
        once = self._seconds(FORWARD * weights, fp8=fp8)
        return PartTime(once, 2 * once, once)

    def _attention(self) -> PartTime:
        """Scores and values over the lower triangle; a token sees half the sequence on average."""
        m = self._config.model
        width = m.num_attention_heads * (m.qk_head_dim + m.v_head_dim)
        pairs = FORWARD * width * self._config.schedule.sequence_length / 2
        once = self._seconds(pairs, fp8=False)
        return PartTime(once, 2 * once)

    def _block(self, network: int, *, is_moe: bool) -> PartTime:
        fp8, recompute = self._config.precision.is_fp8, self._config.recompute
        around = self._linear(self._counts.attention, fp8=fp8) + self._attention()
        feeding = self._linear(network, fp8=fp8)
        if is_moe:
            feeding += self._linear(self._counts.router, fp8=False)
            each = self._exchange / 2
            feeding += PartTime(forward_exchange=each, backward_exchange=each)
        again = PartTime()
        if recompute == "full" or (recompute == "moe" and is_moe):
            again += PartTime(0, feeding.forward_compute, 0, 0, feeding.forward_exchange)
        if recompute == "full":
            again += PartTime(0, around.forward_compute)
        if recompute == "norm_and_up_projection":
            again += PartTime(0, self._seconds(FORWARD * self._up_projections(), fp8=fp8))
        return around + feeding + again

    def _up_projections(self) -> int:
        m = self._config.model
        heads = m.num_attention_heads
        keys = m.kv_lora_rank * heads * (m.qk_nope_head_dim + m.v_head_dim)
        return keys + (m.q_lora_rank or m.hidden_size) * heads * m.qk_head_dim


def part_times(
    config: RunConfig,
    hardware: Hardware,
    ranges: list[range],
    *,
    tokens: int,
    once_per_node: bool = False,
) -> list[PartTime]:
    """Seconds of each part of the model; the last has the head and the MTP modules."""
    kinds = LayerTimes(config, hardware, tokens=tokens, once_per_node=once_per_node)
    dense = config.model.first_k_dense_replace
    found = []
    for part in ranges:
        layers = [kinds.moe if layer >= dense else kinds.dense for layer in part]
        found.append(sum(layers, PartTime()))
    found[-1] += kinds.head
    for _ in range(config.mtp.num_nextn_predict_layers):
        found[-1] += kinds.mtp
    return found
