"""How many rows the busiest rank gets, from how uneven the experts are loaded.

A dropless layer has no bound of its own: what a rank needs depends on where the router sends the
tokens, and that is least even in the first hundred steps.
"""

from dsv3.config.model import ModelConfig
from dsv3.config.parallelism import ParallelismConfig

DEFAULT_MAX_VIOLATION = 1.0
"""MaxVio = largest load / mean load - 1: the busiest expert has twice its share. Our choice, near
the top of the axis (1.25) on which arXiv 2408.15664 plots it per batch."""


def rows_of_rank(
    model: ModelConfig, layout: ParallelismConfig, *, tokens: int, max_violation: float
) -> int:
    """Rows for the experts of the busiest rank, each of `expert_parallel_size` ranks with `tokens`.

    As if every expert of that rank had the largest load; never more than a token has experts there.
    On one rank all rows are its own, however uneven the load is.
    """
    ranks, top_k = layout.expert_parallel_size, model.num_experts_per_tok
    mean = tokens * top_k
    local = model.n_routed_experts // ranks
    most = ranks * tokens * min(top_k, local)
    return min(round(mean * (1 + max_violation)), most) if ranks > 1 else mean
