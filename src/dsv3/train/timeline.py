"""The timeline of one real step: what every rank did when, as a trace and as a picture.

`run.timeline_step=N` writes `timeline/step-N.json` (Chrome's trace event format: open it in
Perfetto or chrome://tracing) and `timeline/step-N.svg` into the run's directory.
"""

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from dsv3.checkpoint.collective import Collective, on_first, together
from dsv3.config.parallelism import ParallelismConfig
from dsv3.config.root import RunConfig
from dsv3.files import storage_error
from dsv3.parallel import spans
from dsv3.parallel.mesh import place_of
from dsv3.parallel.spans import Span
from dsv3.runs.files import read_json, write_atomically
from dsv3.train.timeline_figures import Lane, bubble, heading, trace
from dsv3.train.timeline_picture import draw

READINGS = 5
LARGEST_WORLD = 64
"""Ranks up to which each has a lane; of more, one for each stage has."""


class Recorder:
    """Records step `run.timeline_step`, where one is asked for, and does nothing in all others."""

    def __init__(
        self,
        config: RunConfig,
        ranks: Collective,
        directory: Path,
        device: torch.device,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._recorded_step = config.run.timeline_step
        self._layout = config.parallelism
        self._ranks = ranks
        self._directory = directory / "timeline"
        self._settle = _settling(device)
        self._clock = clock
        self._step: int | None = None
        self._origin_s = 0.0

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Record the `with` block if this is the step to record; not one that is refused or fails.

        Collective in that step. Raises CapacityError on all ranks if a file cannot be written.
        """
        self.begin(step)
        try:
            yield
        except BaseException:
            self._step = None
            spans.stop()
            raise
        self.end()

    def begin(self, step: int) -> None:
        """Agree on a common time and record from here on, if this is the step to record."""
        if step == self._recorded_step:
            self._step = step
            self._origin_s = common_origin(self._ranks, self._clock)
            spans.start(self._settle, self._clock)

    def end(self) -> None:
        """Write what was recorded since `begin`, if anything was."""
        if self._step is None:
            return
        step, self._step = self._step, None
        found = [_since(self._origin_s, each) for each in spans.stop()]
        rank = self._ranks.rank
        lane = Lane(rank, place_of(self._layout, rank).stage, found)
        together(self._ranks, lambda: self._hand_over(lane))
        on_first(self._ranks, lambda: self._write(step))

    def _hand_over(self, lane: Lane) -> None:
        """By a file: of messages every rank would get those of all ranks."""
        if lane.rank in lane_ranks(self._layout):
            try:
                self._directory.mkdir(exist_ok=True)
            except OSError as error:
                remedy = "make room for the timeline of the run there"
                raise storage_error(self._directory, error, remedy) from error
            write_atomically(self._file_of(lane.rank), json.dumps(lane._asdict()))

    def _write(self, step: int) -> None:
        files = [self._file_of(rank) for rank in lane_ranks(self._layout)]
        lanes = [_read(file) for file in files]
        of_step = bubble(self._layout, lanes)
        title = heading(self._layout, step, of_step)
        content = trace(lanes, {"step": step, "title": title, "bubble": of_step._asdict()})
        write_atomically(self._directory / f"step-{step}.json", json.dumps(content))
        write_atomically(self._directory / f"step-{step}.svg", draw(title, lanes))
        for file in files:
            file.unlink()

    def _file_of(self, rank: int) -> Path:
        return self._directory / f"rank-{rank}.json"


def lane_ranks(layout: ParallelismConfig) -> list[int]:
    """Ranks that are shown: all of them, or in a large world the first of each stage."""
    every = 1 if layout.world_size <= LARGEST_WORLD else layout.data_parallel_size
    return list(range(0, layout.world_size, every))


def common_origin(ranks: Collective, clock: Callable[[], float]) -> float:
    """When the recording begins, by this rank's clock: one moment for all ranks (collective).

    Ranks of one machine share its time of day, and tell by it how far apart they read their clocks.
    The time of day of another machine may be another: its ranks go by leaving an exchange, which
    all do at about the same time.
    """
    ranks.all_gather(None)
    time_s, clock_s = _both_clocks(clock)
    own: dict[str, Any] = {"host": socket.gethostname(), "time_s": time_s, "clock_s": clock_s}
    first = ranks.all_gather(own)[0]
    later_s = own["time_s"] - first["time_s"] if own["host"] == first["host"] else 0.0
    return clock_s - float(later_s)


def _both_clocks(clock: Callable[[], float]) -> tuple[float, float]:
    """Time of day and this rank's clock, read at once: the closest of a few readings.

    Between two readings the process may be put aside for milliseconds.
    """
    readings = [(clock(), time.time(), clock()) for _ in range(READINGS)]
    before_s, time_s, after_s = min(readings, key=lambda reading: reading[2] - reading[0])
    return time_s, (before_s + after_s) / 2


def _settling(device: torch.device) -> Callable[[], None]:
    """Waits until the device has done all it was given."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


def _since(origin_s: float, span: Span) -> Span:
    return span._replace(start_s=span.start_s - origin_s, end_s=span.end_s - origin_s)


def _read(file: Path) -> Lane:
    content = read_json(file)
    return Lane(content["rank"], content["stage"], [Span(*each) for each in content["spans"]])
