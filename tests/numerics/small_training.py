"""Real optimizer steps of a small model on made-up tokens, without a run directory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsv3.config.compose import compose
from dsv3.data.samples import ValidationSample
from dsv3.train.alarms import Alarms
from dsv3.train.build import build_engine, build_model
from dsv3.train.digests import Digests
from dsv3.train.heartbeat import Heartbeat
from dsv3.train.layers import ModelLayers
from dsv3.train.loop import Trainer
from dsv3.train.policies import Policies
from dsv3.train.position import Position
from dsv3.train.proof import Proof
from dsv3.train.ranks import Ranks
from dsv3.train.reporter import Reports
from dsv3.train.stages import PipelinedModel, build_pipeline
from dsv3.train.timeline import Recorder

SEQUENCE_LENGTH, GLOBAL_BATCH_SIZE = 12, 4
STEPS = 8
OVERRIDES = [
    "model=moe_nano",
    "model.vocab_size=261",
    "model.hidden_size=16",
    "model.num_hidden_layers=3",
    "model.intermediate_size=24",
    "model.moe_intermediate_size=8",
    "model.n_routed_experts=8",
    "model.n_group=4",
    "model.topk_group=2",
    "model.initializer_range=0.3",
    f"schedule.sequence_length={SEQUENCE_LENGTH}",
    f"schedule.global_batch_size={GLOBAL_BATCH_SIZE}",
    "schedule.batch_size_quantum=1",
    "schedule.batch_size_curve.start=1.0",
    "schedule.batch_size_curve.phases=[]",
    "schedule.micro_batch_size=4",
    f"schedule.total_tokens={STEPS * SEQUENCE_LENGTH * GLOBAL_BATCH_SIZE}",
    "optimizer.gradient_clipping=1e9",
]


class Samples:
    """Sample n is a function of n."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def __getitem__(self, n: int) -> np.ndarray:
        return np.random.default_rng(n).integers(self.vocab_size, size=SEQUENCE_LENGTH + 1)


@contextmanager
def training(*overrides: str) -> Iterator[Trainer]:
    """A trainer at its first step, in a process group that exists already."""
    config = compose([*OVERRIDES, *overrides]).config
    device = torch.device("cpu")
    ranks = Ranks(config.parallelism, device)
    model = build_model(config, device, ranks.place)
    pipeline = build_pipeline(model, config, ranks.place, device)
    engine = build_engine(model, config, device, pipeline)
    layers = ModelLayers.of_model(model, device, ranks)
    samples: Any = Samples(config.model.vocab_size)
    validation = [ValidationSample("a", samples[10**6 + n], 50) for n in range(4)]
    try:
        known = {
            "run": None,
            "heartbeat": Heartbeat(None, 0, 0.0),
            "ranks": ranks,
            "layers": layers,
            "config": config,
            "device": device,
            "model": model if pipeline is None else PipelinedModel(model, pipeline),
            "engine": engine,
            "samples": samples,
            "validation": validation,
            "position": Position(),
            "checkpoints": SimpleNamespace(
                newest=lambda: None, take_stall=lambda: 0.0, collect=lambda reporter: None
            ),
            "reporter": Reports(),
            "stop": SimpleNamespace(number=0),
            "alarms": Alarms(config.health, layers),
            "digests": Digests(),
            "policies": Policies(config.health),
            "recorder": Recorder(config, ranks, Path(), device),
            "proof": Proof(config, ranks, model, None),
            "fence": SimpleNamespace(stale=lambda: False),
        }
        yield Trainer(**{field.name: known[field.name] for field in fields(Trainer)})
    finally:
        engine.close()
        _forget_layout()


def _forget_layout() -> None:
    """What DeepSpeed keeps for the life of a process, which has one layout; here it has many."""
    from dsv3.engine.vendor import groups  # fixes the accelerator: not before there is a group

    groups.mpu = None
    for by_name in (
        groups._EXPERT_PARALLEL_GROUP,
        groups._EXPERT_PARALLEL_GROUP_RANKS,
        groups._EXPERT_DATA_PARALLEL_GROUP,
        groups._EXPERT_DATA_PARALLEL_GROUP_RANKS,
    ):
        by_name.clear()


def biases(trainer: Trainer) -> dict[str, Tensor]:
    """A copy of every expert bias, by layer."""
    return {
        name: moe.router.e_score_correction_bias.clone() for name, moe in trainer.layers.items()
    }


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    """The unclipped gradient of the first step, by parameter: a tenth of it is Adam's moment."""
    assert trainer.engine.optimizer_step == 1
    scale = 1 - trainer.config.optimizer.beta1
    return {
        fragment.key.removeprefix("exp_avg/"): fragment.data.view(fragment.shape) / scale
        for fragment in trainer.engine.fragments()
        if fragment.key.startswith("exp_avg/")
    }
