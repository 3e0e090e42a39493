"""A whole step of a rank, put together from its passes in the order of the schedule.

What lives longer than the pass that makes it is followed here: what a micro batch keeps for its
backward pass, gradients, and messages, which a rank holds until so many others have been sent.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from dsv3.parallel.mail import LARGEST_NUMBER_ON_THE_WAY
from dsv3.parallel.schedule import Action
from dsv3.train.trace_memory import WORKING, Stretch
from dsv3.train.trace_passes import BATCH, Passes
from dsv3.train.trace_state import BUFFERS, GRADIENTS

ACTIVATIONS = "activations"
MESSAGES = "messages"

Key = tuple[int, int]  # a part and a micro batch


class Moment(NamedTuple):
    """The fullest moment of a step: bytes by what they are of, and what runs."""

    parts: dict[str, int]
    action: Action | str
    under_way: tuple[Key, ...]  # whose forward pass is done and whose backward pass is not

    @property
    def size(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


@dataclass
class _Step:
    """Bytes alive in the step, beside the state."""

    activations: int = 0
    gradients: int = 0
    buffers: int = 0
    messages: int = 0  # that only the mail holds
    kept: dict[Key, int] = field(default_factory=dict)
    on_the_way: deque[tuple[int, Key | None]] = field(default_factory=deque)
    arrived: set[Key] = field(default_factory=set)  # whose message the mail no longer holds

    def parts(self) -> dict[str, int]:
        return {
            ACTIVATIONS: self.activations,
            GRADIENTS: self.gradients,
            BUFFERS: self.buffers,
            MESSAGES: self.messages,
        }

    def end_of_forward(self, key: Key, memory: Stretch) -> None:
        """What it keeps is there until its backward pass; so is what it sent."""
        self.kept[key] = memory.end
        self.activations += memory.end
        for size in memory.sent:
            self._send(size, key)

    def end_of_backward(self, key: Key, memory: Stretch, sent_before: Iterable[int]) -> None:
        """What it kept is gone, save what the mail still holds."""
        self.activations -= self.kept.pop(key)
        if key in self.arrived:
            self.arrived.discard(key)
        else:
            self.messages += sum(sent_before)
        for size in memory.sent:
            self.messages += size
            self._send(size, None)

    def _send(self, size: int, key: Key | None) -> None:
        self.on_the_way.append((size, key))
        while len(self.on_the_way) > LARGEST_NUMBER_ON_THE_WAY:
            delivered, of = self.on_the_way.popleft()
            if of is not None and of in self.kept:
                self.arrived.add(of)
            else:
                self.messages -= delivered


def fullest_moment(passes: Passes, order: Iterable[Action], micro_batches: int) -> Moment:
    """Go through a step of so many micro batches; the first of its fullest moments."""
    traced = len(passes.of["forward", 0])
    state = dict(passes.state)
    state[BATCH] = state[BATCH] // traced * micro_batches
    step, best = _Step(), Moment(state, "update", ())

    def look(memory: Stretch, action: Action | str) -> None:
        nonlocal best
        held = step.parts()
        if sum(state.values()) + sum(held.values()) + memory.peak > best.size:
            held |= {WORKING: memory.peak}
            both = {name: state.get(name, 0) + held.get(name, 0) for name in {**state, **held}}
            best = Moment(both, action, tuple(step.kept))

    for action in order:
        found, key = passes.of_action(action), (action.part, action.micro_batch)
        look(found.memory, action)
        step.gradients += found.gradients
        step.buffers += found.buffers
        if action.kind == "forward":
            step.end_of_forward(key, found.memory)
        else:
            of_forward = passes.of_action(action._replace(kind="forward"))
            step.end_of_backward(key, found.memory, of_forward.memory.sent)
    step.on_the_way.clear()
    step.messages = 0
    look(passes.reduce, "reduce")
    reduced = sum(step.parts().values()) + passes.reduce.end
    step.buffers, step.gradients = 0, reduced
    look(passes.update, "update")
    return best
