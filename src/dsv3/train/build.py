"""The one composition root: from a configuration to everything a rank trains with."""

import os

import torch
from torch import Tensor

from dsv3.config.precision import PrecisionConfig
from dsv3.config.root import RunConfig
from dsv3.engine.engine import TrainingEngine
from dsv3.engine.groups import expert_group
from dsv3.model.backends import Backend
from dsv3.model.backends.emulated import EmulatedBackend
from dsv3.model.backends.torch import TorchBackend
from dsv3.model.compile import compile_model
from dsv3.model.init import fill, materialise
from dsv3.model.moe import TokenDispatcher
from dsv3.model.names import is_expert
from dsv3.model.transformer import Transformer
from dsv3.parallel.dispatch import AllToAllDispatcher, LocalDispatcher
from dsv3.parallel.mesh import Place
from dsv3.parallel.pipeline import Pipeline
from dsv3.train.stages import layers_held

WEIGHT_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def choose_device(config: RunConfig) -> torch.device:
    """The device of this rank: CUDA where there is one, unless the configuration says otherwise.

    Ranks of one machine have a GPU each, by their number there.
    """
    kind = config.launcher.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cpu":
        return torch.device(kind)
    device = torch.device(kind, int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def choose_backend(precision: PrecisionConfig) -> Backend:
    """The layers of a precision recipe; Transformer Engine is imported only where it is asked for.

    Raises CapacityError if it is not there, or not with what the recipe needs.
    """
    match precision.backend:
        case "torch":
            return TorchBackend()
        case "emulated":
            return EmulatedBackend(precision)
        case "te":
            from dsv3.model.backends.te import TransformerEngineBackend

            return TransformerEngineBackend(precision)


def build_model(config: RunConfig, device: torch.device, place: Place | None = None) -> Transformer:
    """The model with its initial weights, in the type of the precision recipe.

    With a `place` in the layout of a run, for which the process group must be there, it holds the
    layers and experts of that rank, and tokens travel to the experts of the others; without one it
    holds them all.
    """
    experts = config.model.n_routed_experts
    local = range(experts) if place is None else place.local_experts(experts)
    fp8 = config.precision.dispatch == "fp8"
    dispatcher: TokenDispatcher = LocalDispatcher(experts, fp8=fp8)
    if len(local) < experts:
        group = expert_group(config.parallelism)
        dispatcher = AllToAllDispatcher(experts, group, fp8=fp8)
    backend = choose_backend(config.precision)
    model = lay_out_model(config, place, backend, dispatcher)
    dtype = WEIGHT_DTYPES[config.precision.weights]
    materialise(model, config.model, seed=config.seed, device=device, dtype=dtype)
    backend.prepare(model)
    if config.launcher.compile:
        compile_model(model)
    return model


def lay_out_model(
    config: RunConfig, place: Place | None, backend: Backend, dispatcher: TokenDispatcher
) -> Transformer:
    """What the rank at `place` holds of the model, on the meta device; all of it without one."""
    experts = config.model.n_routed_experts
    with torch.device("meta"):
        return Transformer(
            config.model,
            backend=backend,
            dispatcher=dispatcher,
            parts=None if place is None else layers_held(config, place.stage),
            local_experts=None if place is None else place.local_experts(experts),
            recompute=config.recompute,
            balance=config.balance,
            mtp=config.mtp,
        )


def build_engine(
    model: Transformer,
    config: RunConfig,
    device: torch.device,
    pipeline: Pipeline | None = None,
) -> TrainingEngine:
    """The engine around the model, its masters at the exact FP32 initial values."""
    engine = TrainingEngine(
        model, config, device=device, expert_parameter=is_expert, pipeline=pipeline
    )
    if config.precision.weights != "fp32":
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}

        def initial(name: str) -> Tensor:
            value = torch.empty(shapes[name])
            local = model.local_experts
            fill(value, name, config.model, seed=config.seed, local_experts=local)
            return value

        engine.set_masters(initial)
    return engine
