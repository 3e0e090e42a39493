"""The training engine: micro batches in, one optimizer step out, DeepSpeed inside."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import nn

from dsv3.config.root import RunConfig
from dsv3.engine.adamw import MOMENT_DTYPES, make_adamw
from dsv3.engine.collective import RankCollective
from dsv3.engine.ema import HostAverage
from dsv3.engine.fragments import Fragment, FragmentedState
from dsv3.engine.groups import expert_group, parameter_groups, stage_grid, wrap
from dsv3.engine.health import (
    LARGEST_NUMBER_OF_NAMES,
    NonFiniteError,
    NonFiniteKind,
    first_non_finite_module,
    non_finite_names,
)
from dsv3.engine.replicas import Difference, differences
from dsv3.engine.settings import deepspeed_settings
from dsv3.engine.vendor import deepspeed
from dsv3.engine.zero import ZeroState
from dsv3.parallel.mesh import place_of
from dsv3.parallel.pipeline import Pipeline
from dsv3.parallel.spans import span

MicroBatch = Sequence[torch.Tensor]


class StepResult(NamedTuple):
    """What one optimizer step reports, the same on every rank."""

    losses: dict[str, list[float]]  # means over micro batches and data ranks, by name, flat
    grad_norm: float  # of the accumulated gradient, before clipping

    @property
    def loss(self) -> float:
        """What was trained on."""
        return next(iter(self.losses.values()))[0]


class TrainingEngine:
    """A model under ZeRO with FP32 master weights, AdamW and a clipped gradient.

    `distributed.start` must have run. `expert_parameter` tells by canonical name which parameters
    are stacked experts, of which this rank holds one slice of the global expert dimension.
    """

    def __init__(
        self,
        model: nn.Module,
        config: RunConfig,
        *,
        device: torch.device | str,
        expert_parameter: Callable[[str], bool],
        pipeline: Pipeline | None = None,
    ) -> None:
        self.module = model
        self._device = torch.device(device)
        self._pipeline = pipeline
        self._data_ranks = config.parallelism.data_parallel_size
        optimizer = config.optimizer
        self._largest_norm = optimizer.gradient_clipping
        expert_group(config.parallelism)  # exists already if the model's dispatcher needed it
        wrapped = wrap(
            model,
            expert_parallel_size=config.parallelism.expert_parallel_size,
            expert_parameter=expert_parameter,
        )
        adamw = make_adamw(parameter_groups(model, weight_decay=optimizer.weight_decay), optimizer)
        self._engine, *_ = deepspeed.initialize(
            model=wrapped,
            optimizer=adamw,
            config=deepspeed_settings(config),
            mpu=stage_grid(config.parallelism),
        )
        self._zero = ZeroState(self._engine.optimizer)
        moment_dtype = MOMENT_DTYPES[optimizer.moment_dtype]
        decay, masters = config.ema.decay, [group.master for group in self._zero.flat_groups()]
        self._average = None if decay is None else HostAverage(masters, decay=decay)
        saves_buffers = place_of(config.parallelism, torch.distributed.get_rank()).data_rank == 0
        self._state = FragmentedState(
            model,
            self._zero,
            moment_dtype=moment_dtype,
            saves_buffers=saves_buffers,
            average=self._average,
        )

    @property
    def optimizer_step(self) -> int:
        """Updates made so far, 0 before the first."""
        return self._state.optimizer_step

    def train_step(
        self,
        micro_batches: Sequence[MicroBatch],
        *,
        lr: float,
        on_micro_batch: Callable[[], None] = lambda: None,
        before_update: Callable[[StepResult], None] = lambda _: None,
    ) -> StepResult:
        """Accumulate the mean gradient of `micro_batches`, clip it, update the weights.

        A micro batch holds the arguments of the model's forward, which returns the scalar to train
        on, or a NamedTuple of losses beginning with it; `on_micro_batch` is called after each.
        `before_update` is given what the step is about to report: what it raises, on all ranks or
        none, refuses the step. Raises NonFiniteError if the first loss or the norm is not finite.
        After either the state is as it was.
        """
        assert micro_batches, f"{micro_batches=}"
        self._zero.set_lr(lr)
        try:
            losses = self._accumulate(micro_batches, on_micro_batch)
            result = StepResult(losses, self._finite_gradient_norm(losses))
            before_update(result)
        except BaseException:
            # Also on an interrupt: the next step must not start from half a gradient. Thrown away
            # and not multiplied by 0, which leaves a NaN what it is.
            self._zero.discard_gradients()
            raise
        self._await_average()
        with span("optimizer", "update"):
            self._zero.clip_gradients(result.grad_norm, self._largest_norm)
            self._engine.step()
        if self._average is not None:
            self._average.update()
        return result

    def _await_average(self) -> None:
        """Before masters change, or the average is read or written."""
        if self._average is not None:
            self._average.wait()

    def _accumulate(
        self, micro_batches: Sequence[MicroBatch], on_micro_batch: Callable[[], None]
    ) -> dict[str, list[float]]:
        """Run forward and backward over all micro batches; return the losses over all ranks."""
        if self._pipeline is not None:
            return self._accumulate_in_pipeline(self._pipeline, micro_batches, on_micro_batch)
        totals: dict[str, torch.Tensor] = {}
        for index, micro_batch in enumerate(micro_batches):
            # The boundary is where ZeRO reduces gradients over the ranks.
            self._engine.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
            with span("forward", "forward", part=0, micro_batch=index):
                losses = _by_name(self._engine(*micro_batch))
            objective = next(iter(losses.values()))
            self._require_finite_loss(objective.detach(), micro_batch)
            with span("backward", "backward", part=0, micro_batch=index):
                self._engine.backward(objective / len(micro_batches), scale_wrt_gas=False)
            for name, loss in losses.items():
                totals[name] = totals.get(name, 0) + loss.detach().float()
            on_micro_batch()
        return self._means(totals, len(micro_batches))

    def _accumulate_in_pipeline(
        self,
        pipeline: Pipeline,
        micro_batches: Sequence[MicroBatch],
        on_action: Callable[[], None],
    ) -> dict[str, list[float]]:
        """The same where every rank holds some parts of the model.

        A loss that is not finite is found when all micro batches are through: before that no rank
        may stop to ask the others.
        """
        self._engine.set_gradient_accumulation_boundary(False)

        def backward(root: torch.Tensor) -> None:
            self._engine.backward(root, scale_wrt_gas=False)

        totals = pipeline.train(micro_batches, backward, on_action)
        self._engine.set_gradient_accumulation_boundary(True)
        with span("other", "reduce gradients"):
            self._zero.reduce_gradients(self._engine)
        losses = self._means(totals, len(micro_batches))
        objective = next(iter(losses.values()))[0]
        if not math.isfinite(objective):
            raise self._non_finite("loss", objective, [], losses)
        return losses

    def _finite_gradient_norm(self, losses: dict[str, list[float]]) -> float:
        grad_norm = self._zero.gradient_norm()  # over all ranks: all raise together
        if not math.isfinite(grad_norm):
            named = ((self._state.name(p), g) for p, g in self._zero.gradients())
            raise self._non_finite("gradient norm", grad_norm, non_finite_names(named), losses)
        return grad_norm

    def _require_finite_loss(self, loss: torch.Tensor, micro_batch: MicroBatch) -> None:
        # Before backward, and not finite if any rank's is not: no rank is left alone in a
        # collective. The search runs the model once more, and its collectives, on every rank.
        mean = float(self._mean_over_ranks(loss))
        if not math.isfinite(mean):
            here = first_non_finite_module(self.module, micro_batch)
            raise self._non_finite("loss", mean, here, {})

    def _non_finite(
        self,
        kind: NonFiniteKind,
        value: float,
        names: list[str],
        losses: dict[str, list[float]],
    ) -> NonFiniteError:
        """The same error on every rank, with what each of them found."""
        of_ranks = RankCollective(self._device).all_gather(names)
        ranks = [rank for rank, found in enumerate(of_ranks) if found]
        named = list(dict.fromkeys(name for found in of_ranks for name in found))
        names = named[:LARGEST_NUMBER_OF_NAMES]
        return NonFiniteError(kind, value, names, ranks=ranks, losses=losses)

    def _means(self, totals: dict[str, torch.Tensor], micro_batches: int) -> dict[str, list[float]]:
        """Sums over micro batches to means over them and all ranks; one reduction for all."""
        flat = torch.cat([total.reshape(-1) for total in totals.values()]) / micro_batches
        values = iter(self._mean_over_ranks(flat).tolist())
        return {
            name: [next(values) for _ in range(total.numel())] for name, total in totals.items()
        }

    def _mean_over_ranks(self, value: torch.Tensor) -> torch.Tensor:
        """Mean over the data ranks of sums over the stages."""
        if torch.distributed.get_world_size() > 1:
            value = value.clone()
            torch.distributed.all_reduce(value)
            value /= self._data_ranks
        return value

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """Yield the module in evaluation mode and without gradients; restore its mode after."""
        was_training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                yield self.module
        finally:
            self.module.train(was_training)

    def set_masters(self, value: Callable[[str], torch.Tensor]) -> None:
        """Set the FP32 masters to `value(canonical name)`, this rank's slice of the parameter.

        ZeRO starts its masters from the model's weights, which under bf16 are rounded already.
        """
        self._await_average()
        self._state.set_masters(value)
        if self._average is not None:
            self._average.restart()

    def fragments(self) -> Iterator[Fragment]:
        """Masters, moments, averages and persistent buffers of this rank: views into live memory.

        They hold until the next step.
        """
        self._await_average()
        return self._state.fragments()

    def expected_tensors(
        self, optimizer_step: int
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Global shape and dtype of every tensor a checkpoint after that many updates holds."""
        return self._state.expected_tensors(optimizer_step)

    def prepare_load(self, optimizer_step: int) -> None:
        """Make the state of that many updates exist, so that `fragments` can be written to."""
        self._zero.discard_gradients()
        self._await_average()
        self._state.prepare_load(optimizer_step)

    def finish_load(self) -> None:
        """Bring the model's weights in line with the masters just written (collective)."""
        self._zero.refresh_weights()

    def differing_weights(self) -> list[Difference]:
        """Where a rank's weights are not the masters' of the ranks that own them (collective).

        The same list on every rank; to be asked before an update, which makes all weights anew.
        """
        return differences(self._zero.flat_groups(), self._state.name, self._device)

    def close(self) -> None:
        """Remove DeepSpeed's hooks and let its state go; the module stays usable."""
        if self._average is not None:
            self._average.close()
        self._engine.destroy()


def _by_name(losses: Any) -> dict[str, torch.Tensor]:
    """The model's losses by name, the one to train on first."""
    return {"objective": losses} if isinstance(losses, torch.Tensor) else losses._asdict()
