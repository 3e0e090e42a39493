"""What ranks send each other in a step: bytes over the links within a node and between nodes.

An all-to-all is told twice: as this program does it, each row on its own (parallel/exchange.py),
and as the report's kernels do (section 3.2.2), where a token goes once to each node that has
experts for it and is passed on inside. Loads are even: over a training they nearly are.
"""

from dataclasses import dataclass
from math import comb

from dsv3.config.hardware import Hardware
from dsv3.config.model import ModelConfig
from dsv3.config.root import RunConfig
from dsv3.plan.fp8_copies import FP8_TILE
from dsv3.plan.memory import bytes_per_weight

SCALE_BYTES = 4
GATE_BYTES = 4
GRADIENT_BYTES = 4


@dataclass(frozen=True)
class Traffic:
    """Bytes that a rank sends."""

    node: float  # over the links within a node
    network: float  # between nodes

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.node + other.node, self.network + other.network)

    def __mul__(self, times: float) -> "Traffic":
        return Traffic(self.node * times, self.network * times)

    def seconds(self, hardware: Hardware) -> float:
        """Both links at once; the slower one decides."""
        within = self.node / hardware.rate("node_bytes_per_s")
        return max(within, self.network / hardware.rate("network_bytes_per_s"))


NOTHING = Traffic(0.0, 0.0)


def reached_nodes(model: ModelConfig, nodes: int) -> float:
    """Nodes that hold experts of a token, on average, where experts are spread over `nodes`.

    Groups lie on nodes in their order, and every chosen group has an expert of the token: with as
    many nodes as groups these are `topk_group`, the report's M = 4. Choices are even.
    """
    top_k, groups, chosen = model.num_experts_per_tok, model.n_group, model.topk_group
    if chosen >= groups or (groups % nodes and nodes % groups):
        return _reached(model.n_routed_experts, nodes, top_k)
    if nodes <= groups:
        return _reached(groups, nodes, min(chosen, top_k))
    in_group = _reached(model.n_routed_experts // groups, nodes // groups, max(1, top_k // chosen))
    return min(chosen, top_k) * in_group


def _reached(things: int, nodes: int, drawn: int) -> float:
    """Nodes with at least one of `drawn` different things, which lie evenly on all of them."""
    return nodes * (1 - comb(things - things // nodes, drawn) / comb(things, drawn))


def exchange(
    config: RunConfig, hardware: Hardware, *, tokens: int, once_per_node: bool = False
) -> Traffic:
    """Forward and backward of one MoE layer for `tokens` of a rank: four messages.

    To the experts and back, then the gradients on the same ways. With `precision.dispatch=fp8`
    those to the experts are FP8 with their scales, the others have the type of the weights.
    """
    wide = config.model.hidden_size * bytes_per_weight(config.precision.recipe)
    narrow = wide
    if config.precision.dispatch == "fp8":
        width = config.model.hidden_size
        narrow = width + -(-width // FP8_TILE) * SCALE_BYTES
    sent = _sent(config, hardware, tokens=tokens, once_per_node=once_per_node)
    return sent * (2 * (narrow + wide) + 2 * GATE_BYTES)


def _sent(config: RunConfig, hardware: Hardware, *, tokens: int, once_per_node: bool) -> Traffic:
    """Rows that leave a rank in one direction."""
    ranks, top_k = config.parallelism.expert_parallel_size, config.model.num_experts_per_tok
    if ranks == 1:
        return NOTHING
    in_node = min(ranks, hardware.gpus_per_node)
    nodes = max(1, ranks // in_node)
    elsewhere = (nodes - 1) / nodes
    if once_per_node:
        network = tokens * reached_nodes(config.model, nodes) * elsewhere
        return Traffic(tokens * top_k * (in_node - 1) / in_node, network)
    return Traffic(tokens * top_k * (in_node - 1) / ranks, tokens * top_k * elsewhere)


def reduction(
    config: RunConfig, hardware: Hardware, *, dense: int, experts: int, weight_bytes: int
) -> Traffic:
    """Once a step: FP32 gradients of a rank's weights to sums over its replicas, new weights back.

    A ring sends each element twice for a sum and once for the weights; `experts` are those held.
    """
    layout = config.parallelism
    gradients, weights = 2 * GRADIENT_BYTES, weight_bytes
    per_weight = gradients + weights
    return _ring(layout.data_parallel_size, 1, dense * per_weight, hardware) + _ring(
        layout.expert_data_parallel_size,
        layout.expert_parallel_size,
        experts * per_weight,
        hardware,
    )


def _ring(ranks: int, stride: int, size: float, hardware: Hardware) -> Traffic:
    """`ranks` that lie `stride` apart, within a node if all of them fit."""
    sent = size * (ranks - 1) / ranks
    within = ranks * stride <= hardware.gpus_per_node
    return Traffic(sent, 0.0) if within else Traffic(0.0, sent)
