"""A few micro batches through the program of a rank, pass by pass, and the step that follows."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dsv3.config.root import RunConfig
from dsv3.engine.distributed import fake_process_group
from dsv3.model.transformer import Transformer
from dsv3.parallel.mesh import Place
from dsv3.parallel.schedule import Action, actions
from dsv3.plan.memory_pass import Device
from dsv3.train.stages import build_pipeline
from dsv3.train.trace_backends import traced_backend
from dsv3.train.trace_engine import room_for_products
from dsv3.train.trace_memory import Ledger, Stretch
from dsv3.train.trace_program import micro_batch_shape, program_of
from dsv3.train.trace_state import BUFFERS, TracedState, traced_state
from dsv3.train.trace_workspace import workspace

FEWEST = 3
"""Micro batches after which every pass is like one before: the first makes what later ones find."""

COUNTERS = "counters"
BATCH = "batch"
PRODUCTS = "room for products"

MicroBatch = tuple[Tensor, Tensor, Tensor]


class Pass(NamedTuple):
    """What a forward or backward pass of a part allocates; bytes relative to its beginning."""

    memory: Stretch
    gradients: int  # that stay with their weights after it
    buffers: int  # of communication, that stay


class Passes(NamedTuple):
    """What a rank allocates: the passes of each part in the order of their micro batches."""

    parameters: int
    state: dict[str, int]  # bytes by label, between steps
    of: dict[tuple[str, int], list[Pass]]  # by kind and part
    reduce: Stretch  # of the gradients over the ranks
    update: Stretch  # of the weights

    def of_action(self, action: Action) -> Pass:
        """What an action of a step of any length allocates."""
        found = self.of[action.kind, action.part]
        return found[min(action.micro_batch, len(found) - 1)]


class _Run:
    """A step under way on tensors without data."""

    def __init__(self, state: TracedState, ledger: Ledger) -> None:
        self.state, self.ledger = state, ledger
        self._of: dict[tuple[str, int], list[Pass]] = {}
        self._gradients = self._buffers = 0

    def mark(self, action: Action) -> None:
        """The action has just been done."""
        gradients = sum(
            parameter.grad.untyped_storage().nbytes()
            for parameter in self.state.parameters
            if parameter.grad is not None
        )
        buffers = self.ledger.by_label().get(BUFFERS, 0)
        found = Pass(self.ledger.cut(), gradients - self._gradients, buffers - self._buffers)
        self._of.setdefault((action.kind, action.part), []).append(found)
        self._gradients, self._buffers = gradients, buffers

    def end(self, by_label: dict[str, int]) -> Passes:
        """All micro batches are through: reduce, update, and what came of it."""
        self.ledger.cut()
        self.state.reduce()
        reduce = self.ledger.cut()
        self.state.update()
        update = self.ledger.cut()
        parameters = sum(parameter.numel() for parameter in self.state.parameters)
        return Passes(parameters, by_label, self._of, reduce, update)


def trace_passes(
    config: RunConfig,
    place: Place,
    *,
    device: Device,
    max_violation: float,
    micro_batches: int = FEWEST,
) -> Passes:
    """Run the program of the rank at `place` for some micro batches of a step of full size."""
    n = min(config.gradient_accumulation_steps, micro_batches)
    with fake_process_group(place.rank, config.parallelism.world_size):
        backend = traced_backend(config.precision, device)
        model = program_of(config, place, backend, max_violation)
        ledger = Ledger(partial(workspace, device=device))
        with FakeTensorMode(), ledger:
            state = traced_state(model, config, ledger, device)
            backend.prepare(model)
            with ledger.of(COUNTERS):
                _give_buffers(model)
            with ledger.of(PRODUCTS):
                _room = room_for_products(config.precision)
            with ledger.of(BATCH):
                batches = [_micro_batch(config) for _ in range(n)]
            run, by_label = _Run(state, ledger), ledger.by_label()
            ledger.cut()
            if config.parallelism.parts == 1:
                _run_whole(model, batches, run)
            else:
                _run_in_pipeline(model, config, place, batches, run)
            return run.end(by_label)


def _run_whole(model: Transformer, batches: Sequence[MicroBatch], run: _Run) -> None:
    """As `TrainingEngine._accumulate`, without what only moves numbers."""
    for index, batch in enumerate(batches):
        objective = model(*batch).objective
        run.mark(Action("forward", 0, index))
        (objective / len(batches)).backward()
        del objective
        run.state.end_of_backward()
        run.mark(Action("backward", 0, index))


def _run_in_pipeline(
    model: Transformer,
    config: RunConfig,
    place: Place,
    batches: Sequence[MicroBatch],
    run: _Run,
) -> None:
    layout = config.parallelism
    pipeline = build_pipeline(model, config, place, torch.device("cpu"))
    assert pipeline is not None, f"{layout=}"
    schedule, stages = layout.pipeline_schedule, layout.pipeline_parallel_size
    order = iter(actions(schedule, stages, len(batches), place.stage))
    pipeline.train(batches, torch.Tensor.backward, lambda: run.mark(next(order)))


def _give_buffers(model: Transformer) -> None:
    for module in model.modules():
        for leaf, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, leaf, torch.zeros(buffer.shape, dtype=buffer.dtype))


def _micro_batch(config: RunConfig) -> MicroBatch:
    shape = micro_batch_shape(config)
    ids_BS, labels_BS = (torch.zeros(shape, dtype=torch.int64) for _ in "12")
    return ids_BS, labels_BS, torch.zeros(())
