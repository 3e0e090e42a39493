"""The program of one rank on tensors without data: the real model, dispatcher, pipeline and mail.

A fake process group says who the others are and moves nothing. How many rows reach this rank's
experts is given; everything else follows from the configuration.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from dsv3.config.root import RunConfig
from dsv3.model.backends import Backend
from dsv3.model.moe import TokenDispatcher
from dsv3.model.transformer import Transformer
from dsv3.parallel.dispatch import AllToAllDispatcher, AllToAllHandle, LocalDispatcher
from dsv3.parallel.exchange import Exchange, Splits
from dsv3.parallel.mesh import Place
from dsv3.plan.imbalance import rows_of_rank
from dsv3.train.build import lay_out_model


class GivenExchange(Exchange):
    """An exchange that is told how many rows arrive for how many tokens."""

    def __init__(self, group: dist.ProcessGroup, config: RunConfig, max_violation: float) -> None:
        super().__init__(group)
        self._config = config
        self._max_violation = max_violation
        self.tokens = 0  # of the call under way

    def counts(self, counts_E: Tensor) -> tuple[Tensor, Splits]:
        """The counts as given, in tensors like those of a real exchange."""
        config, tokens = self._config, self.tokens
        received = torch.empty_like(counts_E.view(self.size, -1))
        arriving = rows_of_rank(
            config.model, config.parallelism, tokens=tokens, max_violation=self._max_violation
        )
        leaving = tokens * config.model.num_experts_per_tok
        return received, Splits(_even(leaving, self.size), _even(arriving, self.size))


class GivenDispatcher(AllToAllDispatcher):
    """The dispatcher of a run, with rows that are counted and not routed."""

    def __init__(self, config: RunConfig, group: dist.ProcessGroup, max_violation: float) -> None:
        fp8 = config.precision.dispatch == "fp8"
        super().__init__(config.model.n_routed_experts, group, fp8=fp8)
        self._given = self._exchange = GivenExchange(group, config, max_violation)

    def dispatch(
        self,
        x_TD: Tensor,
        topk_expert_ids_TK: Tensor,
        topk_scores_TK: Tensor,
        *,
        row_multiple: int,
    ) -> tuple[Tensor, Tensor, Tensor, AllToAllHandle]:
        """As the dispatcher of a run, told the number of tokens beforehand."""
        self._given.tokens = x_TD.shape[0]
        dispatched: tuple[Tensor, Tensor, Tensor, AllToAllHandle] = super().dispatch(
            x_TD, topk_expert_ids_TK, topk_scores_TK, row_multiple=row_multiple
        )
        return dispatched


def program_of(
    config: RunConfig, place: Place, backend: Backend, max_violation: float
) -> Transformer:
    """The model that the rank at `place` holds, on the meta device (collective)."""
    experts = config.model.n_routed_experts
    dispatcher: TokenDispatcher = LocalDispatcher(experts, fp8=config.precision.dispatch == "fp8")
    if len(place.expert_ranks) > 1:
        group = dist.new_group(list(place.expert_ranks), use_local_synchronization=True)
        assert isinstance(group, dist.ProcessGroup)
        dispatcher = GivenDispatcher(config, group, max_violation)
    return lay_out_model(config, place, backend, dispatcher)


def micro_batch_shape(config: RunConfig) -> tuple[int, int]:
    """Sequences and positions of the micro batches of a step of full size."""
    schedule, layout = config.schedule, config.parallelism
    share = schedule.global_batch_size // layout.data_parallel_size
    sequences = schedule.micro_batch_size_of(share, at_least=layout.fewest_micro_batches)
    return sequences, schedule.sequence_length


def _even(rows: int, ranks: int) -> list[int]:
    return [rows // ranks + (rank < rows % ranks) for rank in range(ranks)]
