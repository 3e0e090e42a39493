"""Cases about training: the real model and engine in every layout, step for step.

A row is (precision, layout, ZeRO stage, accumulation, further overrides). Biases keep the first MoE
layer away from the second half of its experts: whole ranks get no token there. In some rows they do
so for the first half of the sequences only: then one replica of these experts is idle, one is not.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor

from dsv3.config.compose import compose
from dsv3.config.recompute import RecomputePolicy
from dsv3.config.root import RunConfig
from dsv3.model.init import fill, materialise
from dsv3.model.names import is_expert
from dsv3.model.transformer import Transformer
from dsv3.ops.fp8 import TILE
from dsv3.parallel.dispatch import AllToAllDispatcher, LocalDispatcher
from dsv3.parallel.mesh import place_of
from dsv3.train.build import choose_backend

SEQUENCES, LENGTH, STEPS, LR = 8, 12, 4, 2e-3
EMPTIED = "model.layers.1.mlp"  # its second half of experts gets no token

SMALL = [
    "model=moe_nano",
    "model.vocab_size=264",
    "model.hidden_size=40",
    "model.intermediate_size=48",
    "model.moe_intermediate_size=24",
    "model.num_hidden_layers=3",
    "model.n_routed_experts=8",
    "model.num_attention_heads=2",
    "model.initializer_range=0.08",
    "balance=aux_free_seq",
    "mtp=depth1",
    f"schedule.sequence_length={LENGTH}",
    f"schedule.global_batch_size={SEQUENCES}",
    f"schedule.batch_size_quantum={SEQUENCES}",
    "optimizer.gradient_clipping=0.5",
    "ema.decay=0.9",
]


class Row(NamedTuple):
    """How one configuration is run."""

    precision: str = "fp32"
    experts: int = 1  # expert parallel size
    zero_stage: int = 1
    accumulation: int = 1
    recompute: RecomputePolicy = "none"
    further: tuple[str, ...] = ()
    idle_replica: bool = False  # the second half of the sequences may use all experts
    refused_step: bool = False  # a step that is not finite on one rank, before the third
    length: int = LENGTH  # tokens of a sequence; in FP8 a whole tile of 128


BF16_MOMENTS = ("optimizer.moment_dtype=bf16",)
FP8_WIRE = ("precision.dispatch=fp8",)

# By world size. Each has its reference, of the same precision and overrides, among the first.
ROWS: dict[int, dict[str, Row]] = {
    1: {
        "fp32": Row(),
        "bf16": Row("bf16", accumulation=8),
        "fp32 bf16_moments": Row(further=BF16_MOMENTS),
        "fp32 fp8_wire": Row(further=FP8_WIRE),
        "fp32 idle_replica": Row(accumulation=2, idle_replica=True),
        "fp8": Row("fp8_block_emulated", length=TILE),
    },
    2: {
        "fp32 ep2 zero1": Row(experts=2),
        "fp32 ep2 zero2 acc2 recompute": Row(
            experts=2, zero_stage=2, accumulation=2, recompute="full"
        ),
        "fp32 dp2 zero2": Row(zero_stage=2),
        "bf16 ep2 zero1 acc4": Row("bf16", 2, 1, 4),
        "fp32 fp8_wire ep2": Row(experts=2, further=FP8_WIRE),
        "fp32 ep2 zero1 full": Row(experts=2, recompute="full"),
        "fp32 ep2 zero1 moe": Row(experts=2, recompute="moe"),
        "fp32 ep2 zero1 norm_and_up_projection": Row(experts=2, recompute="norm_and_up_projection"),
        "bf16 ep2 zero1 acc4 moe": Row("bf16", 2, 1, 4, "moe"),
        "bf16 ep2 zero1 acc4 norm_and_up_projection": Row(
            "bf16", 2, 1, 4, "norm_and_up_projection"
        ),
        "fp32 fp8_wire ep2 moe": Row(experts=2, recompute="moe", further=FP8_WIRE),
        "fp8 ep2 zero1": Row("fp8_block_emulated", 2, length=TILE),
        "fp8 ep2 zero1 moe": Row("fp8_block_emulated", 2, recompute="moe", length=TILE),
    },
    4: {
        "fp32 ep4 zero1 acc2": Row(experts=4, accumulation=2),
        "fp32 ep2_dp2 zero1 recompute": Row(experts=2, recompute="full", refused_step=True),
        "fp32 ep2_dp2 zero2 acc2": Row(experts=2, zero_stage=2, accumulation=2),
        "bf16 ep2_dp2 zero1": Row("bf16", 2, 1, 2),
        "bf16 ep2_dp2 zero2": Row("bf16", 2, 2, 2),
        "fp32 bf16_moments ep2_dp2": Row(experts=2, further=BF16_MOMENTS),
        "fp32 idle_replica ep2_dp2 zero1": Row(experts=2, idle_replica=True),
        "fp32 idle_replica ep2_dp2 zero2": Row(experts=2, zero_stage=2, idle_replica=True),
    },
}


def reference_of(name: str) -> str:
    """The row of one process that this row must equal."""
    fitting = [row for row in ROWS[1] if set(row.split()) <= set(name.split())]
    return max(fitting, key=len)


def config_of(row: Row, world: int) -> RunConfig:
    """The composed configuration of a row."""
    overrides = [
        f"precision={row.precision}",
        f"parallelism.expert_parallel_size={row.experts}",
        f"parallelism.expert_data_parallel_size={world // row.experts}",
        f"parallelism.zero_stage={row.zero_stage}",
        f"schedule.micro_batch_size={SEQUENCES // world // row.accumulation}",
        f"schedule.sequence_length={row.length}",
    ]
    return compose([*SMALL, *overrides, *row.further]).config


def build(config: RunConfig, local_experts: range, *, recompute: RecomputePolicy) -> Transformer:
    """This rank's part of the model, as it is built for training."""
    from dsv3.engine.groups import expert_group

    group, fp8 = expert_group(config.parallelism), config.precision.dispatch == "fp8"
    experts = config.model.n_routed_experts
    alone = config.parallelism.expert_parallel_size == 1
    backend = choose_backend(config.precision)
    with torch.device("meta"):
        model = Transformer(
            config.model,
            backend=backend,
            dispatcher=LocalDispatcher(experts, fp8=fp8)
            if alone
            else AllToAllDispatcher(experts, group, fp8=fp8),
            local_experts=local_experts,
            recompute=recompute,
            balance=config.balance,
            mtp=config.mtp,
        )
    dtype = torch.bfloat16 if config.precision.weights == "bf16" else torch.float32
    materialise(model, config.model, seed=4, device=torch.device("cpu"), dtype=dtype)
    backend.prepare(model)
    for index, moe in enumerate(model.moe_layers().values()):
        bias_E = moe.router.e_score_correction_bias
        bias_E.copy_(torch.randn(experts, generator=torch.Generator().manual_seed(index)) / 10)
    set_idle(model, True)
    return model


def set_idle(model: Transformer, idle: bool) -> None:
    """Keep tokens away from the second half of one layer's experts, or do not."""
    bias_E = model.moe_layers()[EMPTIED].router.e_score_correction_bias
    bias_E[len(bias_E) // 2 :] = -9.0 if idle else 0.1


def switch_by_sequence(model: Transformer, config: RunConfig) -> None:
    """Idle for the first half of the sequences: the first data ranks', the first micro batch's."""
    layout, passes = config.parallelism, [0]
    place = place_of(layout, torch.distributed.get_rank())

    def switch(_module: Any, _arguments: Any) -> None:
        alone, first = layout.world_size == 1, place.data_rank < layout.world_size // 2
        set_idle(model, passes[0] % 2 == 0 if alone else first)
        passes[0] += 1

    model.register_forward_pre_hook(switch)


def micro_batches(step: int, share: range, size: int, length: int) -> list[tuple[Tensor, ...]]:
    """Sequences `share` of the global batch, in micro batches of `size`."""
    generator = torch.Generator().manual_seed(1000 + step)
    tokens_GS = torch.randint(264, (SEQUENCES, length + 1), generator=generator)
    own_GS = tokens_GS[share.start : share.stop]
    return [(ids[:, :-1], ids[:, 1:], torch.tensor(0.3)) for ids in own_GS.split(size)]


def engine_of(row: Row) -> tuple[Any, RunConfig]:
    """The engine of this rank, its masters at the exact initial values."""
    from dsv3.engine.engine import TrainingEngine

    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    config = config_of(row, world)
    held = place_of(config.parallelism, rank).local_experts(config.model.n_routed_experts)
    model = build(config, held, recompute=row.recompute)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    engine = TrainingEngine(model, config, device="cpu", expert_parameter=is_expert)

    def initial(name: str) -> Tensor:
        value = torch.empty(shapes[name])
        fill(value, name, config.model, seed=4, local_experts=held)
        return value

    engine.set_masters(initial)
    return engine, config


def batches_of(config: RunConfig, step: int) -> list[tuple[Tensor, ...]]:
    """This rank's share of a step's global batch, in micro batches."""
    place = place_of(config.parallelism, torch.distributed.get_rank())
    each = SEQUENCES // config.parallelism.data_parallel_size
    share = range(place.data_rank * each, (place.data_rank + 1) * each)
    schedule = config.schedule
    return micro_batches(step, share, schedule.micro_batch_size, schedule.sequence_length)


def train(row: Row) -> Any:
    """Train a few steps; what every step reports, and the state at the start, after one, the last.

    Tensors are named by moment, key and offset; the first moment is the gradient after one step.
    """
    engine, config = engine_of(row)
    if row.idle_replica:
        switch_by_sequence(engine.module, config)
    tensors, steps, refused = dict(state("start", engine)), [], []
    for step in range(STEPS):
        batches = batches_of(config, step)
        if row.refused_step and step == 2:
            refused.append(refuse(engine, batches))
        result = engine.train_step(batches, lr=LR)
        counts = take_counts(engine.module)
        steps.append({"losses": result.losses, "norm": result.grad_norm, "counts": counts})
        if step == 0:
            tensors |= state("once", engine)
    tensors |= state("end", engine)
    shapes_of = {f.key: list(f.shape) for f in engine.fragments()}
    engine.close()
    return {"steps": steps, "shapes": shapes_of, "refused": refused}, tensors


def refuse(engine: Any, batches: list[tuple[Tensor, ...]]) -> str:
    """Make the last rank's loss infinite for one step, which every rank must refuse."""
    from dsv3.engine.health import NonFiniteError

    hooks = []
    if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
        norm = engine.module.model.norm
        hooks.append(norm.register_forward_hook(lambda _m, _i, out: out * torch.inf))
    try:
        engine.train_step(batches, lr=LR)
    except NonFiniteError as error:
        take_counts(engine.module)
        return f"{error.kind} {error.value} {' '.join(error.names)} {error.ranks}"
    finally:
        for hook in hooks:
            hook.remove()
    return ""


def take_counts(model: Transformer) -> dict[str, list[int]]:
    """Tokens per expert of the global batch, by layer; the counters go back to zero."""
    counts = {}
    for name, moe in model.moe_layers().items():
        total_E = moe.tokens_per_expert_E.clone()
        torch.distributed.all_reduce(total_E)
        moe.tokens_per_expert_E.zero_()
        counts[name] = total_E.tolist()
    return counts


def state(moment: str, engine: Any) -> Iterator[tuple[str, Tensor]]:
    """What this rank saves, by `<moment>|<key>|<offset>`."""
    for fragment in engine.fragments():
        if fragment.saved_here:
            yield f"{moment}|{fragment.key}|{fragment.offset}", fragment.data.clone()


TRAINING_CASES: dict[int, dict[str, Callable[[], Any]]] = {
    world: {name: partial(train, row) for name, row in rows.items()} for world, rows in ROWS.items()
}
