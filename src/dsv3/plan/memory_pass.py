"""One micro batch on one rank: the numbers from which every operation's bytes follow."""

from dataclasses import dataclass, replace
from typing import Literal

from dsv3.config.model import ModelConfig
from dsv3.config.precision import Recipe
from dsv3.config.recompute import RecomputePolicy
from dsv3.config.root import RunConfig
from dsv3.plan.fp8_copies import copies_of
from dsv3.plan.imbalance import rows_of_rank
from dsv3.plan.memory import bytes_per_weight

Device = Literal["cpu", "cuda"]
Kernel = Literal["engine", "fused", "halves", "plain"]

LONGEST_KEPT = 512
"""As ops/attention.py: up to this length a CPU keeps the probabilities."""
ROW_MULTIPLE_BF16_CPU = 32
ROW_MULTIPLE_FP8, ROW_MULTIPLE_MXFP8 = 16, 32
FUSED_HEADS = (192, 128)
"""model/backends/te.py: widths for which Transformer Engine's attention is used."""


@dataclass(frozen=True)
class Pass:
    """Shapes and types of a pass through a layer."""

    model: ModelConfig
    sequences: int
    length: int
    activation_bytes: int  # of an element, in the type of the weights
    device: Device
    engine: Recipe | None  # that Transformer Engine computes products in
    emulated: bool  # FP8 in FP32 products
    narrow_dispatch: bool  # tokens go to the experts in FP8
    recompute: RecomputePolicy
    expert_ranks: int
    rows: int  # for the local experts, with those that fill up an expert
    arrived: int  # of these, rows with a token
    balance_loss: bool

    @property
    def tokens(self) -> int:
        """Tokens of the micro batch."""
        return self.sequences * self.length

    @property
    def local_experts(self) -> int:
        """Experts of a layer that the rank holds."""
        return self.model.n_routed_experts // self.expert_ranks

    @property
    def assignments(self) -> int:
        """Pairs of a token of this rank and one of its experts."""
        return self.tokens * self.model.num_experts_per_tok

    @property
    def attention_kernel(self) -> Kernel:
        """How attention is computed: on a GPU fused; on a CPU as ops/attention.py and torch choose.

        A CPU has a fused kernel for values as wide as queries only.
        """
        if self.engine and (self.model.qk_head_dim, self.model.v_head_dim) == FUSED_HEADS:
            return "engine"
        if self.device == "cuda":
            return "fused"
        if self.length <= LONGEST_KEPT:
            return "halves"
        return "fused" if self.model.qk_head_dim == self.model.v_head_dim else "plain"

    @property
    def wide_gradients(self) -> bool:
        """Whether the gradients of products' weights come in FP32 beside BF16 weights."""
        return self.engine is not None or self.emulated

    def of(self, width: int) -> int:
        """Bytes of [T, width] in the type of the weights."""
        return self.tokens * width * self.activation_bytes

    def wide(self, width: int) -> int:
        """Bytes of [T, width] in FP32."""
        return self.tokens * width * 4

    def rows_of(self, width: int) -> int:
        """Bytes of [R, width] in the type of the weights."""
        return self.rows * width * self.activation_bytes

    @property
    def fp8(self) -> bool:
        """Whether layers keep FP8 copies: an emulation has none."""
        return self.engine not in (None, "bf16")

    def linear_input(self, width: int, rows: int | None = None) -> int:
        """Bytes of the input a linear layer keeps: under FP8 the copy by column."""
        rows = self.tokens if rows is None else rows
        if self.engine is None or self.engine == "bf16":
            return rows * width * self.activation_bytes
        return copies_of(self.engine, rows, width, is_weight=False)[1].size

    def quantised(self, width: int, rows: int | None = None) -> tuple[int, int]:
        """Bytes of the copies by row and by column that FP8 products make of [rows, width]."""
        if self.engine is None or self.engine == "bf16":
            return 0, 0
        rows = self.tokens if rows is None else rows
        by_row, by_column = copies_of(self.engine, rows, width, is_weight=False)
        return by_row.size, by_column.size

    def rows_quantised(self, width: int) -> tuple[int, int]:
        """The same of the rows for the local experts, whose tiles begin anew at each."""
        by_row, by_column = self.quantised(width, -(-self.rows // self.local_experts))
        return self.local_experts * by_row, self.local_experts * by_column

    def weight_copies(self, wide_in: int, wide_out: int) -> int:
        """Bytes of both FP8 copies of a weight, which every micro batch makes and keeps."""
        if self.engine is None or self.engine == "bf16":
            return 0
        return sum(copy.size for copy in copies_of(self.engine, wide_out, wide_in, is_weight=True))

    def shortened(self, length: int) -> "Pass":
        """The same for shorter sequences, as MTP modules see them."""
        return replace(self, length=length)


def pass_of(config: RunConfig, *, device: Device, max_violation: float) -> Pass:
    """The largest micro batch of a run, its experts as loaded as `max_violation` says."""
    schedule, layout = config.schedule, config.parallelism
    share = schedule.global_batch_size // layout.data_parallel_size
    sequences = schedule.micro_batch_size_of(share, at_least=layout.fewest_micro_batches)
    tokens = sequences * schedule.sequence_length
    multiple = _row_multiple(config, device)
    arrived = rows_of_rank(config.model, layout, tokens=tokens, max_violation=max_violation)
    local = config.model.n_routed_experts // layout.expert_parallel_size
    return Pass(
        model=config.model,
        sequences=sequences,
        length=schedule.sequence_length,
        activation_bytes=bytes_per_weight(config.precision.recipe),
        device=device,
        engine=config.precision.recipe if config.precision.backend == "te" else None,
        emulated=config.precision.backend == "emulated",
        narrow_dispatch=config.precision.dispatch == "fp8",
        recompute=config.recompute,
        expert_ranks=layout.expert_parallel_size,
        rows=arrived + local * (multiple - 1),
        arrived=arrived,
        balance_loss=any(config.balance.coeffs.values()),
    )


def _row_multiple(config: RunConfig, device: Device) -> int:
    """Rows of an expert are filled up to a multiple: for oneDNN in BF16, for FP8's products."""
    if config.precision.has_fp8_products:
        is_mx = config.precision.recipe == "mxfp8"
        return ROW_MULTIPLE_MXFP8 if is_mx else ROW_MULTIPLE_FP8
    return ROW_MULTIPLE_BF16_CPU if device == "cpu" and config.precision.recipe == "bf16" else 1
