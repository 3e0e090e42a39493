"""Alarms about the load of the experts and the fit of FP8; none of them stops a run."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dsv3.config.health import HealthConfig
from dsv3.model.moe import MoE
from dsv3.train.layers import ModelLayers
from dsv3.train.load import Load, load_figures
from dsv3.train.ranges import Ranges

JsonObject = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """A kind of alarm: the figure it judges, its limit, and the bad side of that."""

    figure: str
    text: str
    limit: Callable[[HealthConfig], float]
    is_floor: bool = False

    def broken(self, value: float, limit: float) -> bool:
        """Whether `value` calls for the alarm; the limit itself does not."""
        return value < limit if self.is_floor else value > limit

    def worst(self, values: list[float]) -> float:
        """The value furthest to the bad side."""
        return min(values) if self.is_floor else max(values)


RULES: Mapping[str, Rule] = {
    "collapse": Rule(
        "load_entropy", "load entropy", lambda health: health.lowest_load_entropy, is_floor=True
    ),
    "dead_expert": Rule("dead_experts", "experts without a token", lambda _: 0),
    "bias_runaway": Rule("bias_spread", "bias spread", lambda health: health.largest_bias_spread),
    "saturation": Rule(
        "score_saturation", "score saturation", lambda health: health.largest_saturation
    ),
}
"""Of a window of the load."""

FP8_RULES: Mapping[str, Rule] = {
    "fp8_overflow": Rule(
        "overflow", "share cut to the largest number", lambda health: health.largest_fp8_overflow
    ),
    "fp8_underflow": Rule(
        "underflow", "share lost to zero", lambda health: health.largest_fp8_underflow
    ),
}
"""Of the worst operand of a layer, in the last step of a window."""


@dataclass(frozen=True)
class Alarm:
    """The begin or the end of an alarm in some layers; `value` is the worst among them."""

    alarm: str
    begins: bool
    step: int
    layers: list[int]
    value: float
    limit: float
    operand: str | None = None  # of FP8: whose value it is

    @property
    def event(self) -> str:
        """The event's name in events.jsonl."""
        return "alarm" if self.begins else "alarm_over"

    def details(self) -> JsonObject:
        """The event's fields."""
        keys = ("alarm", "layers", "value", "step", "limit")
        also = () if self.operand is None else ("operand",)
        return {key: getattr(self, key) for key in (*keys, *also)}

    def __str__(self) -> str:
        """A line for whoever watches."""
        rule = {**RULES, **FP8_RULES}[self.alarm]
        which = f"layer{'s' if len(self.layers) > 1 else ''} {', '.join(map(str, self.layers))}"
        found = f"{rule.text} {self.value:.4g}, {'below' if rule.is_floor else 'above'}"
        worst = "" if self.operand is None else f" ({self.operand})"
        return f"step {self.step}: alarm {self.alarm} in {which}: {found} {self.limit:g}{worst}"


class Alarms:
    """Judges the load summed over consecutive windows of `health.window_steps` steps.

    A window ends with a step that is a multiple of its length; one of which steps are missing is
    not judged. The ranges of FP8 operands are judged as they are given, those of one step. An alarm
    begins with the first window or step that breaks its rule in a layer and is over with the first
    that does not.
    """

    def __init__(
        self, health: HealthConfig, layers: Mapping[str, MoE], state: JsonObject | None = None
    ) -> None:
        """Start, or go on from what `state` returned."""
        self._health = health
        self._layers = layers
        self._active: dict[str, set[int]] = {alarm: set() for alarm in (*RULES, *FP8_RULES)}
        self._window: Load | None = None
        self._steps = 0
        if state is not None:
            self._restore(state)

    def after_step(self, step: int, load: Load) -> list[Alarm]:
        """Take the load of `step`, its biases updated; alarms that begin or end with its window."""
        if not load.names:
            return []
        self._window = load if self._window is None else self._window + load
        self._steps += 1
        if step % self._health.window_steps != 0:
            return []
        window, is_complete = self._window, self._steps == self._health.window_steps
        self._window, self._steps = None, 0
        return self._judge(step, window) if is_complete else []

    def after_ranges(self, step: int, ranges: Ranges) -> list[Alarm]:
        """Take the ranges of `step`, over all ranks; none if they were not taken in it."""
        if not ranges:
            return []
        alarms: list[Alarm] = []
        for alarm, rule in FP8_RULES.items():
            worst: dict[int, tuple[float, str]] = defaultdict(lambda: (-1.0, ""))
            for (layer, role), found in ranges.items():
                number = int(layer.split(".")[2])
                value = getattr(found, rule.figure)
                worst[number] = max(worst[number], (value, f"{role} of {layer}"))
            values = {number: value for number, (value, _) in worst.items()}
            operands = {number: operand for number, (_, operand) in worst.items()}
            alarms += self._changes(alarm, rule, step, values, operands)
        return alarms

    def skip(self, step: int) -> None:
        """Take note that `step` had no update, so that its window is not judged."""
        if step % self._health.window_steps == 0:
            self._window, self._steps = None, 0

    def state(self) -> JsonObject:
        """JSON for the checkpoint: the sums of the window so far, and the alarms that are on."""
        return {
            "steps": self._steps,
            "counts": None if self._window is None else self._window.counts(),
            "active": {alarm: sorted(layers) for alarm, layers in self._active.items()},
        }

    def _restore(self, state: JsonObject) -> None:
        self._active = {alarm: set(state["active"].get(alarm, ())) for alarm in self._active}
        if state["counts"] is not None:
            self._window = Load.of_counts(self._layers, state["counts"])
            self._steps = state["steps"]

    def _judge(self, step: int, window: Load) -> list[Alarm]:
        figures = load_figures(window, ModelLayers.whole(self._layers).biases())
        alarms: list[Alarm] = []
        for alarm, rule in RULES.items():
            values = dict(zip(window.layers, figures[rule.figure], strict=True))
            alarms += self._changes(alarm, rule, step, values, {})
        return alarms

    def _changes(
        self,
        alarm: str,
        rule: Rule,
        step: int,
        values: Mapping[int, float],
        operands: Mapping[int, str],
    ) -> list[Alarm]:
        """What begins and what ends with the values of layers; `operands` are whose they are."""
        limit = rule.limit(self._health)
        broken = {layer for layer, value in values.items() if rule.broken(value, limit)}
        active, self._active[alarm] = self._active[alarm], broken
        alarms: list[Alarm] = []
        for begins, changed in ((True, broken - active), (False, active - broken)):
            if changed:
                worst = rule.worst([values[layer] for layer in changed])
                of = next((operands.get(each) for each in changed if values[each] == worst), None)
                alarms.append(Alarm(alarm, begins, step, sorted(changed), worst, limit, of))
        return alarms
