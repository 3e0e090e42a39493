"""What a checkpoint holds, item by item, and how each is forgotten by a resume."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from dsv3.checkpoint.random_state import capture_random_state, restore_random_state
from dsv3.engine.engine import TrainingEngine
from dsv3.train.checkpointing import Resumed


@dataclass
class Fresh:
    """A rank as a fresh start has it."""

    tensors: Mapping[str, Tensor]
    streams: dict[str, Any]

    @classmethod
    def of(cls, engine: TrainingEngine) -> "Fresh":
        """Copies of everything a checkpoint will overwrite."""
        tensors = {fragment.key: fragment.data.clone() for fragment in engine.fragments()}
        return cls(tensors, capture_random_state())


Forget = Callable[[Fresh, TrainingEngine, Resumed], Resumed]
"""Undoes one part of a restore; returns where training goes on."""


class Mutant(NamedTuple):
    """One item that is not restored, in which arm, and a digest that has to show it at once."""

    item: str
    forget: Forget
    shown_by: str
    arm: str = "aux_free"
    state: str | None = None  # the part of the trainer's state it belongs to


def of_position(name: str) -> Forget:
    """Forget a field of the position."""
    return lambda _fresh, _engine, resumed: resumed._replace(
        position=replace(resumed.position, **{name: 0})
    )


def tensors(pattern: str) -> Forget:
    """Forget the fragments whose keys match; moments of a fresh start are zero."""

    def forget(fresh: Fresh, engine: TrainingEngine, resumed: Resumed) -> Resumed:
        found = [each for each in engine.fragments() if re.search(pattern, each.key)]
        assert found, f"{pattern} is none of {[each.key for each in engine.fragments()]}"
        assert any(each.data.any() for each in found), f"{pattern} was not saved"
        for each in found:
            each.data.zero_()
            if each.key in fresh.tensors:
                each.data.copy_(fresh.tensors[each.key])
        engine.finish_load()
        return resumed

    return forget


def adam_step(_fresh: Fresh, engine: TrainingEngine, resumed: Resumed) -> Resumed:
    """Forget how many updates Adam has made, which corrects its moments' bias."""
    for state in engine._zero.base.state.values():
        state["step"].zero_()
    return resumed


def stream(name: str) -> Forget:
    """Forget one random stream."""

    def forget(fresh: Fresh, _engine: TrainingEngine, resumed: Resumed) -> Resumed:
        restore_random_state(capture_random_state() | {name: fresh.streams[name]})
        return resumed

    return forget


def of_state(name: str, **fresh: Any) -> Forget:
    """Forget fields of a part of the trainer's state."""

    def forget(_fresh: Fresh, _engine: TrainingEngine, resumed: Resumed) -> Resumed:
        assert resumed.state is not None
        part = resumed.state[name]
        assert all(part[key] != value for key, value in fresh.items()), f"{part} is fresh already"
        return resumed._replace(state=resumed.state | {name: part | fresh})

    return forget


def bias(layer: int) -> Forget:
    """Forget the expert biases of a layer."""
    return tensors(rf"^buffer/model\.layers\.{layer}\..*e_score_correction_bias$")


WINDOW = of_state("alarms", steps=0, counts=None)
NO_SPIKES = of_state("policies", spikes={"loss": [], "grad_norm": []})
COUNTS = tensors("^buffer/.*batch_tokens_per_expert")
MUTANTS = (
    Mutant("position.step", of_position("step"), "tokens"),
    Mutant("position.tokens", of_position("tokens"), "tokens"),
    Mutant("position.samples", of_position("samples"), "batch"),
    Mutant("masters", tensors("^master/"), "loss"),
    Mutant("first moments", tensors("^exp_avg/"), "loss"),
    Mutant("second moments", tensors("^exp_avg_sq/"), "loss"),
    Mutant("average of the parameters", tensors("^ema/"), "ema"),
    Mutant("step of Adam", adam_step, "loss"),
    Mutant("expert biases", bias(1), "biases"),
    Mutant("expert biases of the MTP module", bias(2), "biases"),
    Mutant("counts of the batch before", COUNTS, "objective", arm="aux_batch"),
    Mutant("window of the alarms", WINDOW, "state", state="alarms"),
    Mutant("alarms that are on", of_state("alarms", active={}), "state", state="alarms"),
    Mutant("losses and norms before", NO_SPIKES, "state", state="policies"),
    Mutant(
        "steps to leave out",
        of_state("policies", left_out_steps=[]),
        "state",
        arm="rollback",
        state="policies",
    ),
    Mutant("skips in a row", of_state("policies", skips=0), "state", arm="skip", state="policies"),
    Mutant("stream of Python", stream("python"), "streams"),
    Mutant("stream of numpy", stream("numpy"), "streams"),
    Mutant("stream of torch", stream("torch_cpu"), "streams"),
)
