"""What ZeRO and AdamW hold and move, accounted on tensors without data from the parameter groups.

Nothing of DeepSpeed runs here. These are the allocations its two optimizers make (0.19.8, as
`engine/settings.py` asks for them), in their order: `BF16_Optimizer` for BF16 under ZeRO-1, which
adds every gradient to an FP32 sum at once, and `DeepSpeedZeroOptimizer` for all else, which keeps
gradients with their weights until they are reduced by way of a bucket.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from dsv3.config.parallelism import ParallelismConfig
from dsv3.config.root import RunConfig
from dsv3.engine.adamw import CHUNK_ELEMENTS, MOMENT_DTYPES
from dsv3.engine.groups import is_expert, parameter_groups, wrap
from dsv3.engine.settings import BUCKET_ELEMENTS
from dsv3.engine.zero import REDUCED_ELEMENTS
from dsv3.model.names import is_expert as is_expert_name
from dsv3.train.build import WEIGHT_DTYPES
from dsv3.train.trace_memory import Ledger

WEIGHTS, MASTERS, MOMENTS = "weights", "masters", "moments"
GRADIENTS, BUFFERS, AVERAGE = "gradients", "communication", "average"
ALIGNMENT = 2  # elements for each rank, so that a partition begins at whole 4 bytes of BF16


class Group:
    """One parameter group of this rank: flat weights, and the partition it owns."""

    def __init__(self, parameters: list[nn.Parameter], ranks: int) -> None:
        self.parameters = parameters
        self.ranks = ranks
        self.filled = sum(parameter.numel() for parameter in parameters)
        step = ALIGNMENT * ranks
        self.elements = -(-self.filled // step) * step
        self.partition = self.elements // ranks

    def held(self) -> list[nn.Parameter]:
        """The parameters of which the first partition has a part."""
        found, begin = [], 0
        for parameter in self.parameters:
            if begin < self.partition:
                found.append(parameter)
            begin += parameter.numel()
        return found

    def slices(self, parameters: Iterable[nn.Parameter]) -> int:
        """Into how many runs of one owner these parameters' gradients fall, one after the other."""
        owners: set[int] = set()
        begin, wanted = 0, {id(parameter) for parameter in parameters}
        for parameter in self.parameters:
            end = begin + parameter.numel()
            if id(parameter) in wanted:
                owners.update(range(begin // self.partition, -(-end // self.partition)))
            begin = end
        return len(owners)


class TracedState:
    """The weights, their optimizer state, and what happens to gradients; of a rank of partition 0.

    Replaces the model's parameters by views of flat weights.
    """

    def __init__(self, model: nn.Module, config: RunConfig, ledger: Ledger, device: str) -> None:
        self._ledger = ledger
        self._on_host = device == "cpu"
        layout, dtype = config.parallelism, WEIGHT_DTYPES[config.precision.weights]
        wrap(
            model,
            expert_parallel_size=layout.expert_parallel_size,
            expert_parameter=is_expert_name,
        )
        groups = parameter_groups(model, weight_decay=config.optimizer.weight_decay)
        self.groups = [Group(group["params"], _ranks(group["params"], layout)) for group in groups]
        self._kinds = [is_expert(group.parameters[0]) for group in self.groups]
        self._moment_dtype = MOMENT_DTYPES[config.optimizer.moment_dtype]
        with ledger.of(WEIGHTS):
            self._weights = [torch.empty(group.elements, dtype=dtype) for group in self.groups]
        _give_views(model, self.groups, self._weights)
        partitions = [group.partition for group in self.groups]
        with ledger.of(MASTERS):
            self._masters = [torch.empty(size) for size in partitions]
        with ledger.of(MOMENTS):
            self._moments = [
                torch.empty(size, dtype=self._moment_dtype) for size in partitions for _ in "12"
            ]
        with ledger.of(AVERAGE):
            averaged = config.ema.decay is not None and self._on_host
            self._average = [torch.empty(size) for size in partitions] if averaged else []

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters, in the order of the groups."""
        return [parameter for group in self.groups for parameter in group.parameters]

    def end_of_backward(self) -> None:
        """What follows each backward pass of ZeRO-2, which reduces every time."""

    def reduce(self) -> None:
        """Share out the gradients over the data ranks."""
        raise NotImplementedError

    def update(self) -> None:
        """One step of the optimizer."""
        raise NotImplementedError

    def _adam(self) -> None:
        """Moments in BF16 are updated on FP32 copies, a chunk at a time."""
        if self._moment_dtype != torch.float32:
            chunk = min(CHUNK_ELEMENTS, max(group.partition for group in self.groups))
            _copies = [torch.empty(chunk) for _ in "12"]

    def _gather(self) -> None:
        """Weights are gathered in place over NCCL, by gloo in a tensor of its own."""
        for group, weights in zip(self.groups, self._weights, strict=True):
            if self._on_host and group.ranks > 1:
                with self._ledger.of(BUFFERS):
                    _gathered = torch.empty_like(weights)
                del _gathered


class SummedState(TracedState):
    """`BF16_Optimizer`: gradients go into flat FP32 sums as they come, by way of an FP32 copy."""

    def __init__(self, model: nn.Module, config: RunConfig, ledger: Ledger, device: str) -> None:
        super().__init__(model, config, ledger, device)
        with ledger.of(GRADIENTS):
            self._sums = [torch.empty(group.elements, dtype=torch.float32) for group in self.groups]
        for parameter in self.parameters:
            parameter.register_post_accumulate_grad_hook(_add_to_sum)

    def reduce(self) -> None:
        """Flat sums are reduced in one copy, those of dense weights and of experts apart."""
        with self._ledger.of(BUFFERS):
            for kind in (False, True):
                pairs = zip(self._sums, self._kinds, strict=True)
                _copies_of([each for each, of in pairs if of is kind], REDUCED_ELEMENTS)

    def update(self) -> None:
        """Gradients are views of the sums."""
        self._adam()
        self._gather()


class BucketedState(TracedState):
    """`DeepSpeedZeroOptimizer`: a bucket as long as a backward pass is under way."""

    def __init__(self, model: nn.Module, config: RunConfig, ledger: Ledger, device: str) -> None:
        super().__init__(model, config, ledger, device)
        self._alone = config.parallelism.world_size == 1
        self._in_pipeline = config.parallelism.parts > 1
        self._bucket: list[Tensor] = []
        self._bucket_dtype = torch.float32
        self._reduced: list[Tensor] = []  # keep what the epilogue leaves for the update
        for parameter in self.parameters:
            parameter.register_post_accumulate_grad_hook(self._make_bucket)

    def _make_bucket(self, _parameter: Tensor) -> None:
        if not self._bucket:
            with self._ledger.of(BUFFERS):
                self._bucket.append(torch.empty(BUCKET_ELEMENTS, dtype=self._bucket_dtype))

    def reduce(self) -> None:
        """Through the bucket, unless this rank is alone; then gradients wait for the update."""
        if self._in_pipeline:
            with self._ledger.of(BUFFERS):
                self._bucket.append(torch.empty(BUCKET_ELEMENTS))
        if not self._alone:
            self._through_bucket()
        self._bucket.clear()

    def _through_bucket(self) -> None:
        waiting: list[nn.Parameter] = []
        for parameter in self.parameters:
            if sum(each.numel() for each in waiting) + parameter.numel() > BUCKET_ELEMENTS:
                self._flush(waiting)
                waiting = []
            if parameter.numel() <= BUCKET_ELEMENTS:
                parameter.grad = None  # becomes a view of the bucket
            waiting.append(parameter)
        self._flush(waiting)
        for parameter in self.parameters:
            parameter.grad = None

    def _flush(self, waiting: list[nn.Parameter]) -> None:
        ours = {id(each) for each in waiting}
        for kind in (False, True):
            elements = slices = 0
            for group, of in zip(self.groups, self._kinds, strict=True):
                if of is kind:
                    here = [each for each in group.parameters if id(each) in ours]
                    elements += sum(each.numel() for each in here)
                    slices += group.slices(here)
            if slices > 1:
                with self._ledger.of(BUFFERS):
                    _copy = torch.empty(elements, dtype=self._bucket_dtype)
                    _sent = self._as_sent(elements)
                del _copy, _sent
        if not self._reduced:
            with self._ledger.of(GRADIENTS):
                self._reduced.append(torch.empty(self._held_elements()))

    def _as_sent(self, elements: int) -> Tensor | None:
        """Gradients travel in FP32."""
        narrow = self._bucket_dtype != torch.float32
        return torch.empty(elements) if narrow else None

    def _held_elements(self) -> int:
        """Gradients that stay: of every parameter that this rank owns a part of."""
        return sum(each.numel() for group in self.groups for each in group.held())

    def update(self) -> None:
        """Each group's gradients are copied into one flat tensor before its step."""
        for index, group in enumerate(self.groups):
            with self._ledger.of(GRADIENTS):
                pieces = len(group.held()) + (group.partition * group.ranks > group.filled)
                flat = torch.empty(group.partition if pieces > 1 else 0)
            for parameter in group.parameters:
                parameter.grad = None
            if index == len(self.groups) - 1:
                self._reduced.clear()
            self._adam()
            del flat
        self._gather()


class PartitionedState(BucketedState):
    """The same under ZeRO-2: each gradient goes into the bucket at once, in its own type.

    What this rank owns of the sums is FP32.
    """

    def __init__(self, model: nn.Module, config: RunConfig, ledger: Ledger, device: str) -> None:
        super().__init__(model, config, ledger, device)
        self._bucket_dtype = WEIGHT_DTYPES[config.precision.weights]
        self._widened = self._bucket_dtype != torch.float32
        self._waiting: list[nn.Parameter] = []
        for parameter in self.parameters:
            parameter.register_post_accumulate_grad_hook(self._into_bucket)

    def _into_bucket(self, parameter: Tensor) -> None:
        assert isinstance(parameter, nn.Parameter)
        if sum(each.numel() for each in (*self._waiting, parameter)) > BUCKET_ELEMENTS:
            self._flush(self._waiting)
            self._waiting = []
        if parameter.numel() <= BUCKET_ELEMENTS:
            parameter.grad = None
        self._waiting.append(parameter)

    def end_of_backward(self) -> None:
        """The rest of the bucket; sums of later micro batches are added to those of the first."""
        self._flush(self._waiting)
        self._waiting = []
        self._bucket.clear()
        for parameter in self.parameters:
            parameter.grad = None

    def reduce(self) -> None:
        """Done already."""

    def _held_elements(self) -> int:
        """BF16 runs keep sums of exactly what this rank owns."""
        if self._widened:
            return sum(group.partition for group in self.groups)
        return super()._held_elements()

    def update(self) -> None:
        """Sums of BF16 runs are flat already."""
        if not self._widened:
            super().update()
            return
        self._adam()
        self._reduced.clear()
        self._gather()


def traced_state(model: nn.Module, config: RunConfig, ledger: Ledger, device: str) -> TracedState:
    """The state that the configuration's precision and ZeRO stage lead to."""
    kind: Callable[..., TracedState] = BucketedState
    if config.parallelism.zero_stage == 2:
        kind = PartitionedState
    elif config.precision.recipe != "fp32":
        kind = SummedState
    return kind(model, config, ledger, device)


def _ranks(parameters: Sequence[nn.Parameter], layout: ParallelismConfig) -> int:
    expert = is_expert(parameters[0])
    return layout.expert_data_parallel_size if expert else layout.data_parallel_size


def _give_views(model: nn.Module, groups: Sequence[Group], weights: Sequence[Tensor]) -> None:
    views: dict[int, nn.Parameter] = {}
    for group, flat in zip(groups, weights, strict=True):
        sizes = [parameter.numel() for parameter in group.parameters]
        parts = flat[: sum(sizes)].split(sizes)
        for parameter, part in zip(group.parameters, parts, strict=True):
            views[id(parameter)] = nn.Parameter(part.view(parameter.shape))
        group.parameters[:] = [views[id(parameter)] for parameter in group.parameters]
    for module in model.modules():
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, leaf, views[id(parameter)])


def _add_to_sum(parameter: Tensor) -> None:
    assert parameter.grad is not None
    _copy = parameter.grad.to(torch.float32)
    parameter.grad = None


def _copies_of(tensors: Iterable[Tensor], elements: int) -> None:
    """Several tensors are reduced as a copy of them all, in portions of more than `elements`."""
    portion: list[Tensor] = []
    for tensor in (*tensors, None):
        if tensor is not None:
            portion.append(tensor)
        if tensor is None or sum(each.numel() for each in portion) > elements:
            if len(portion) > 1:
                _copy = torch.empty(sum(each.numel() for each in portion))
                del _copy
            portion = []
