"""What a recorded step comes to: its bubble beside the schedule's, and the trace of it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from dsv3.config.parallelism import ParallelismConfig
from dsv3.parallel.schedule import simulate
from dsv3.parallel.spans import Span


class Lane(NamedTuple):
    """The spans of a rank, in seconds since the recording began on all ranks."""

    rank: int
    stage: int
    spans: list[Span]

    @property
    def passes(self) -> list[Span]:
        """Its forwards and backwards: `args` says of which `part` and `micro_batch`."""
        return [span for span in self.spans if span.category in ("forward", "backward")]

    @property
    def busy_s(self) -> float:
        """Seconds of its passes, without the waits that lie in one."""
        waits = [span for span in self.spans if span.category == "wait"]
        waited = sum(_length_s(wait) for wait in waits if any(_holds(p, wait) for p in self.passes))
        return sum(map(_length_s, self.passes)) - waited


class Bubble(NamedTuple):
    """Share of the lanes' time between the first pass and the last in which there is none."""

    measured: float
    of_schedule: float  # of ranks that do nothing else, each pass taking the mean of its kind
    micro_batches: int
    forward_s: float
    backward_s: float


def bubble(layout: ParallelismConfig, lanes: Sequence[Lane]) -> Bubble:
    """Measured idle time beside that of the schedule; the lanes have one pass at least."""
    passes = [each for lane in lanes for each in lane.passes]
    whole_s = max(each.end_s for each in passes) - min(each.start_s for each in passes)
    micro_batches = 1 + max(each.args["micro_batch"] for each in passes)
    forward_s, backward_s = (_mean_s(passes, kind) for kind in ("forward", "backward"))
    ideal = simulate(
        layout.pipeline_schedule,
        layout.pipeline_parallel_size,
        micro_batches,
        forward_s,
        backward_s,
    )
    measured = 1 - sum(lane.busy_s for lane in lanes) / (len(lanes) * whole_s)
    return Bubble(measured, ideal.bubble_share, micro_batches, forward_s, backward_s)


def heading(layout: ParallelismConfig, step: int, of_step: Bubble) -> str:
    """One line over the picture: what was recorded, and how idle it was."""
    stages = layout.pipeline_parallel_size
    sizes = f"{_number(stages, 'stage')}, {_number(of_step.micro_batches, 'micro batch', 'es')}"
    return (
        f"step {step}: {layout.pipeline_schedule}, {sizes}; bubble {of_step.measured:.1%} measured,"
        f" {of_step.of_schedule:.1%} of the schedule"
    )


def trace(lanes: Sequence[Lane], told: dict[str, Any]) -> dict[str, Any]:
    """Chrome's trace events: complete events in microseconds, a process for each rank."""
    events: list[dict[str, Any]] = []
    for lane in lanes:
        name = {"name": f"rank {lane.rank} (stage {lane.stage})"}
        about = {"ph": "M", "pid": lane.rank, "tid": 0}
        events.append({"name": "process_name", "args": name, **about})
        events.append({"name": "process_sort_index", "args": {"sort_index": lane.rank}, **about})
        events += [
            {
                "name": span.name,
                "cat": span.category,
                "ph": "X",
                "ts": span.start_s * 1e6,
                "dur": _length_s(span) * 1e6,
                "pid": lane.rank,
                "tid": 0,
                "args": span.args,
            }
            for span in sorted(lane.spans, key=lambda each: (each.start_s, -each.end_s))
        ]
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": told}


def _mean_s(passes: Sequence[Span], category: str) -> float:
    lengths = [_length_s(each) for each in passes if each.category == category]
    return sum(lengths) / len(lengths) if lengths else 0.0


def _length_s(span: Span) -> float:
    return span.end_s - span.start_s


def _holds(outer: Span, inner: Span) -> bool:
    return outer.start_s <= inner.start_s and inner.end_s <= outer.end_s


def _number(count: int, what: str, plural: str = "s") -> str:
    return f"{count} {what}{'' if count == 1 else plural}"
