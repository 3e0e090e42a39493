"""The MoE layers of a model, of which a rank of a pipeline holds some."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dsv3.model.moe import MoE
from dsv3.model.transformer import Transformer
from dsv3.train.ranks import Ranks


class ModelLayers(dict[str, MoE]):
    """The MoE layers that this rank holds, by canonical name, and what all layers have in common.

    `names` are those of the whole model, in its order, those of MTP modules included.
    """

    def __init__(
        self,
        held: Mapping[str, MoE],
        *,
        names: Sequence[str],
        experts: int,
        top_k: int,
        device: torch.device,
        mtp_depth: int = 0,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__(held)
        self.mtp_depth = mtp_depth  # the last so many layers are those of MTP modules
        self.names = tuple(names)
        self.experts = experts
        self.top_k = top_k
        self._device = device
        self._ranks = ranks
        assert held.keys() <= {*names}, f"{held.keys()=} {names=}"

    @classmethod
    def of_model(
        cls,
        model: Transformer,
        device: torch.device,
        ranks: Ranks | None = None,
    ) -> "ModelLayers":
        """The layers of a model, of which other stages may hold some."""
        config, mtp_depth = model.config, model.mtp_depth
        numbers = range(config.first_k_dense_replace, config.num_hidden_layers + mtp_depth)
        return cls(
            model.moe_layers(),
            names=[f"model.layers.{number}.mlp" for number in numbers],
            experts=config.n_routed_experts,
            top_k=config.num_experts_per_tok,
            device=device,
            mtp_depth=mtp_depth,
            ranks=ranks,
        )

    @classmethod
    def whole(cls, layers: Mapping[str, MoE]) -> "ModelLayers":
        """`layers` themselves, or all MoE layers of a model that one rank holds."""
        if isinstance(layers, cls):
            return layers
        first = next(iter(layers.values()), None)
        if first is None:
            return cls({}, names=(), experts=1, top_k=1, device=torch.device("cpu"))
        counts_E, top_k = first.tokens_per_expert_E, first.config.num_experts_per_tok
        return cls(
            layers, names=(*layers,), experts=len(counts_E), top_k=top_k, device=counts_E.device
        )

    def table(self, columns: int, dtype: torch.dtype) -> Tensor:
        """Zeros [L, columns], a row for each layer of the model."""
        return torch.zeros(len(self.names), columns, dtype=dtype, device=self._device)

    def row(self, name: str) -> int:
        """The row of a layer in a table."""
        return self.names.index(name)

    def biases(self) -> Tensor:
        """The expert biases of all layers of the model, FP32 [L, E] (collective in a pipeline)."""
        biases_LE = self.table(self.experts, torch.float32)
        ranks = self._ranks
        in_pipeline = ranks is not None and len(ranks.place.pipeline_ranks) > 1
        # In a sum over ranks one replica of each layer has a say; the others add exact zeros.
        if not in_pipeline or (ranks is not None and ranks.place.data_rank == 0):
            for name, moe in self.items():
                biases_LE[self.row(name)] = moe.router.e_score_correction_bias
        return ranks.sum(biases_LE) if ranks is not None and in_pipeline else biases_LE
