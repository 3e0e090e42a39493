"""The timeline of a step: recorded on request, by one clock, as a trace and a picture."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from dsv3.checkpoint.collective import Solo
from dsv3.config.compose import compose
from dsv3.config.parallelism import PipelineSchedule
from dsv3.config.root import RunConfig
from dsv3.errors import CapacityError
from dsv3.parallel import spans
from dsv3.parallel.schedule import simulate
from dsv3.parallel.spans import Span, span
from dsv3.train.timeline import READINGS, Recorder, common_origin, lane_ranks
from dsv3.train.timeline_figures import Lane, bubble, heading
from dsv3.train.timeline_picture import KINDS, draw

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _stopped() -> Iterator[None]:
    yield
    spans.stop()


def run(*overrides: str) -> RunConfig:
    return compose(["model=moe_tiny", *overrides]).config


def layout(schedule: PipelineSchedule, stages: int) -> Any:
    return run().parallelism.model_copy(
        update={"pipeline_schedule": schedule, "pipeline_parallel_size": stages}
    )


def ticking(step_s: float = 1.0, begin_s: float = 0.0) -> Callable[[], float]:
    """A clock that goes on by `step_s` whenever it is read."""
    times = iter(begin_s + step_s * tick for tick in range(10_000))
    return lambda: next(times)


class Same:
    """One of several ranks that all say the same."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size

    def all_gather(self, value: Any) -> list[Any]:
        return [value] * self.size

    def broadcast(self, value: Any) -> Any:
        return value


def do_a_step(*, refused: bool = False) -> None:
    with span("forward", "forward", part=0, micro_batch=0), span("all_to_all", "dispatch"):
        pass
    with span("backward", "backward", part=0, micro_batch=0):
        pass
    if refused:
        raise ValueError("refused")
    with span("optimizer", "update"):
        pass


def events(file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(file.read_text())["traceEvents"]
    return found


def test_a_step_is_written_as_a_trace_of_microseconds(tmp_path: Path) -> None:
    recorder = Recorder(run("run.timeline_step=3"), Solo(), tmp_path, CPU, ticking(0.5, 100.0))
    for step in (2, 3, 4):
        with recorder.step(step):
            do_a_step()
    names = {file.name for file in (tmp_path / "timeline").iterdir()}
    assert names == {"step-3.json", "step-3.svg"}
    about, order, *passes = events(tmp_path / "timeline" / "step-3.json")
    assert (about["ph"], about["args"]) == ("M", {"name": "rank 0 (stage 0)"})
    assert (order["name"], order["args"]) == ("process_sort_index", {"sort_index": 0})
    first = passes[0]["ts"]
    # After the readings for the origin, which lies between the first two; two for each.
    assert first == 1e6 * 0.5 * (2 * READINGS - 0.5)
    found = [(e["name"], e["cat"], e["ph"], e["ts"] - first, e["dur"]) for e in passes]
    assert found == [  # outer spans come first
        ("forward", "forward", "X", 0, 1_500_000),
        ("dispatch", "all_to_all", "X", 500_000, 500_000),
        ("backward", "backward", "X", 2_000_000, 500_000),
        ("update", "optimizer", "X", 3_000_000, 500_000),
    ]
    assert passes[0]["args"] == {"part": 0, "micro_batch": 0}
    assert {event["pid"] for event in passes} == {0}


def test_without_the_key_nothing_is_exchanged_or_written(tmp_path: Path) -> None:
    class Nobody:
        rank, size = 0, 1

        def all_gather(self, value: Any) -> Any:
            raise AssertionError

        broadcast = all_gather

    recorder = Recorder(run(), Nobody(), tmp_path, CPU)
    with recorder.step(1):
        do_a_step()
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_is_refused_leaves_nothing_and_the_next_try_is_recorded(tmp_path: Path) -> None:
    recorder = Recorder(run("run.timeline_step=3"), Solo(), tmp_path, CPU)
    with pytest.raises(ValueError, match="refused"), recorder.step(3):
        do_a_step(refused=True)
    assert list(tmp_path.iterdir()) == []
    with recorder.step(3):
        do_a_step()
    assert len(events(tmp_path / "timeline" / "step-3.json")) == 2 + 4


def test_every_rank_has_its_process_in_the_trace(tmp_path: Path) -> None:
    config = run("run.timeline_step=1", "parallelism=pp2")
    for rank in (1, 0):  # the first one writes last
        with Recorder(config, Same(rank, 2), tmp_path, CPU, ticking()).step(1):
            do_a_step()
    found = events(tmp_path / "timeline" / "step-1.json")
    assert [e["pid"] for e in found if e["ph"] == "X"] == [0] * 4 + [1] * 4
    assert [e["args"]["name"] for e in found if e["name"] == "process_name"] == [
        "rank 0 (stage 0)",
        "rank 1 (stage 1)",
    ]
    assert len(list((tmp_path / "timeline").iterdir())) == 2


def test_a_directory_that_refuses_is_a_capacity_error(tmp_path: Path) -> None:
    (tmp_path / "timeline").write_text("in the way")
    recorder = Recorder(run("run.timeline_step=1"), Solo(), tmp_path, CPU)
    with pytest.raises(CapacityError, match="timeline: file exists"), recorder.step(1):
        do_a_step()


def test_a_large_world_shows_one_rank_of_each_stage() -> None:
    assert lane_ranks(run("parallelism=pp2_ep2").parallelism) == [0, 1, 2, 3]
    large = compose(["model=moe_671b"]).config.parallelism
    assert lane_ranks(large) == [128 * stage for stage in range(16)]


@pytest.mark.parametrize(("host", "origin_s"), [("here", 7.0 - 0.25), ("elsewhere", 7.0)])
def test_ranks_agree_on_when_it_began(
    monkeypatch: pytest.MonkeyPatch, host: str, origin_s: float
) -> None:
    """On one machine by its time of day, on several by leaving the exchange together."""

    class Second(Same):
        def all_gather(self, value: Any) -> list[Any]:
            return [{"host": "here", "time_s": 1000.0, "clock_s": 3.0}, value]

    monkeypatch.setattr(socket, "gethostname", lambda: host)
    monkeypatch.setattr(time, "time", lambda: 1000.25)
    assert common_origin(Second(1, 2), lambda: 7.0) == origin_s
    assert common_origin(Same(0, 2), lambda: 7.0) == 7.0


def test_the_closest_reading_of_both_clocks_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of five: in all others the rank was put aside between its clocks."""
    clock = iter([0.0, 0.9, 1.0, 1.1, 2.0, 2.9, 3.0, 3.9, 4.0, 4.9])
    of_day = iter([500.8, 501.05, 502.1, 503.1, 504.8])
    monkeypatch.setattr(time, "time", lambda: next(of_day))

    class Second(Same):
        def all_gather(self, value: Any) -> list[Any]:
            return [{"host": socket.gethostname(), "time_s": 501.0, "clock_s": 0.0}, value]

    assert common_origin(Second(1, 2), lambda: next(clock)) == pytest.approx(1.0)


def lanes_of(
    schedule: PipelineSchedule, stages: int, micro_batches: int, *, slower: float = 1.0
) -> list[Lane]:
    """What a pipeline of passes of 1 and 2 ms would be recorded as; its waits are spans too."""
    ideal = simulate(schedule, stages, micro_batches, 1e-3 * slower, 2e-3 * slower)
    lanes = []
    for stage, rank in enumerate(ideal.ranks):
        found: list[Span] = []
        for (kind, part, micro_batch), start_s, end_s in rank:
            before_s = found[-1].end_s if found else 0.0
            found.append(Span("wait", "receive", before_s, start_s, {}))
            args = {"part": part, "micro_batch": micro_batch}
            found.append(Span(kind, kind, start_s, end_s, args))
        lanes.append(Lane(stage, stage, found))
    return lanes


@pytest.mark.parametrize(("stages", "micro_batches"), [(1, 1), (2, 4), (4, 8), (4, 2)])
def test_the_bubble_of_a_perfect_machine_is_the_published_one(
    stages: int, micro_batches: int
) -> None:
    found = bubble(layout("1f1b", stages), lanes_of("1f1b", stages, micro_batches))
    formula = (stages - 1) / (stages - 1 + micro_batches)  # (PP - 1)(F + B) of all
    assert found.measured == pytest.approx(formula)
    assert found.of_schedule == pytest.approx(formula)
    assert found.micro_batches == micro_batches
    assert (found.forward_s, found.backward_s) == (pytest.approx(1e-3), pytest.approx(2e-3))


def test_idle_time_beyond_the_schedule_is_measured() -> None:
    """2 stages of DualPipeV whose passes take half of the time that they hold their place."""
    lanes = [
        Lane(rank, stage, [each._replace(end_s=(each.start_s + each.end_s) / 2) for each in of])
        for rank, stage, of in lanes_of("dualpipev", 2, 6, slower=2.0)
    ]
    found = bubble(layout("dualpipev", 2), lanes)
    busy_s, bubble_s, last_s = 6 * 2 * 3e-3, 3e-3, 1e-3  # half of the last pass is cut off
    whole_s = 2 * (busy_s + bubble_s) - 2 * last_s
    assert found.of_schedule == pytest.approx(bubble_s / (busy_s + bubble_s))
    assert found.measured == pytest.approx(1 - busy_s / whole_s)
    text = heading(layout("dualpipev", 2), 7, found)
    assert text == (
        f"step 7: dualpipev, 2 stages, 6 micro batches; bubble {found.measured:.1%} measured,"
        f" {found.of_schedule:.1%} of the schedule"
    )


def test_a_wait_in_a_pass_is_idle_and_one_beside_it_is_not_counted_twice() -> None:
    held = [
        Span("forward", "f", 0.0, 4.0, {"part": 0, "micro_batch": 0}),
        Span("wait", "receive", 1.0, 2.0, {}),
        Span("wait", "receive", 4.0, 5.0, {}),
        Span("backward", "b", 5.0, 10.0, {"part": 0, "micro_batch": 0}),
    ]
    assert Lane(0, 0, held).busy_s == 8.0
    assert bubble(layout("1f1b", 1), [Lane(0, 0, held)]).measured == pytest.approx(0.2)


def test_the_picture_has_a_box_for_each_span_and_none_for_a_wait() -> None:
    lanes = lanes_of("dualpipev", 2, 4)
    text = draw("two stages", lanes)
    assert text == draw("two stages", lanes)
    root = ElementTree.fromstring(text)
    styles = [each.get("style", "") for each in root.iter() if each is not root]
    for key, kind in KINDS.items():
        boxes = sum(
            (each.category, each.args.get("part", 0)) == key
            for lane in lanes
            for each in lane.spans
        )
        drawn = sum(kind.colour in style and "fill:" in style for style in styles)
        assert drawn == boxes + (1 if boxes > 0 else 0), kind.label  # and one in the legend
