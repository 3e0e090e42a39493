"""When runs ran: from events to attempts, from attempts to a picture."""

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import fabricated
from dsv3 import lanes
from dsv3.config.compose import compose
from dsv3.report.blocks import Page
from dsv3.report.collect import collect
from dsv3.report.html import html
from dsv3.report.markdown import markdown
from dsv3.report.page import build
from dsv3.report.spells import spells
from dsv3.report.study import Ending, Spell, Study
from dsv3.report.timeline import timeline
from dsv3.report.verdicts import judge
from unit.report.made_runs import make_run, record, step_lines, write_lines
from unit.report.made_study import made_run, made_study
from unit.report.reader import Reader

BEGIN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def at(seconds: float) -> str:
    return (BEGIN + timedelta(seconds=seconds)).isoformat()


def event(seconds: float, name: str, **details: Any) -> dict[str, Any]:
    return {"time": at(seconds), "event": name, **details}


def started(seconds: float, attempt: int, step: int = 0) -> dict[str, Any]:
    return event(seconds, "started", attempt=attempt, step=step)


def seconds_of(found: tuple[Spell, ...]) -> list[tuple[int, float, float, Ending]]:
    return [
        (
            spell.attempt,
            (spell.begin - BEGIN).total_seconds(),
            (spell.end - BEGIN).total_seconds(),
            spell.ending,
        )
        for spell in found
    ]


def spell(begin: float, end: float, ending: Ending, attempt: int = 1) -> Spell:
    return Spell(attempt, BEGIN + timedelta(seconds=begin), BEGIN + timedelta(seconds=end), ending)


def test_each_attempt_ends_with_what_ended_it() -> None:
    events = [
        started(0, 1),
        event(5, "checkpoint", step=3),
        event(9, "stopped", step=3, exit_code=85),
        event(12, "job_ended", exit_code=85),
        event(20, "job_started", restart="1"),
        started(25, 2, step=3),
        event(40, "rank_lost", rank=0, signal="SIGKILL"),
        started(50, 3, step=3),
        event(60, "failed", exit_code=5),
        started(70, 4, step=3),
        event(75, "checkpoint", step=6),
        event(99, "job_ended", exit_code=0),
    ]
    found = spells(events, [], finished_at=at(80), running=False)
    assert seconds_of(found) == [
        (1, 0, 9, "stopped"),
        (2, 25, 40, "lost"),
        (3, 50, 60, "failed"),
        (4, 70, 80, "finished"),
    ]


def test_one_that_died_without_a_word_ends_with_its_last_sign() -> None:
    again = event(29, "job_started", restart="1")
    events = [started(0, 1), event(4, "checkpoint", step=2), again, started(30, 2, step=2)]
    steps = step_lines([4.0] * 6)  # half a second each; the first two are the first attempt's
    found = spells(events, steps, finished_at=None, running=False)
    assert seconds_of(found) == [(1, 0, 4, "lost"), (2, 30, 32, "lost")]
    later = [*events, event(33, "checkpoint", step=6)]
    assert seconds_of(spells(later, steps, finished_at=None, running=True))[1:] == [
        (2, 30, 33, "running")
    ]


def test_a_clock_that_was_put_back_makes_no_end_before_the_beginning() -> None:
    events = [started(10, 1), event(2, "stopped", step=3)]
    assert seconds_of(spells(events, [], finished_at=None, running=False)) == [
        (1, 10, 10, "stopped")
    ]


def test_times_come_from_the_files_of_a_run(tmp_path: Path) -> None:
    config = compose(["model=moe_nano"]).config
    for number in (1, 2, 3, 4):
        run = make_run(tmp_path, f"base-{number}", config, losses=[4.0, 3.0])
        if number == 1:
            write_lines(run / "events.jsonl", [started(0, 1), event(3, "stopped", step=2)])
        if number == 2:
            write_lines(run / "events.jsonl", [started(0, 1), {"event": "stopped"}])
        if number == 3:
            (run / "events.jsonl").write_text("{no\n")
    study = collect(record(tmp_path, {"base": [1, 2, 3, 4]}))
    assert seconds_of(study.runs[0].spells) == [(1, 0, 3, "stopped")]
    for run_of, said in zip(study.runs[1:3], ("without the times", "line 1"), strict=True):
        assert run_of.spells == () and run_of.status == "stopped"
        assert [problem for problem in run_of.problems if said in problem]
        assert len(run_of.curves["loss"].values) == 2  # the rest is read all the same
    assert study.runs[3].spells == () and study.runs[3].problems == ()


def test_what_a_finished_run_says_of_its_end_counts(tmp_path: Path) -> None:
    config = compose(["model=moe_nano"]).config
    run = make_run(tmp_path, "base-1", config, losses=[4.0], result={"loss": 1.0})
    write_lines(run / "events.jsonl", [started(0, 1)])
    done = json.loads((run / "DONE").read_text()) | {"finished_at": at(7)}
    (run / "DONE").write_text(json.dumps(done))
    study = collect(record(tmp_path, {"base": [1]}))
    assert seconds_of(study.runs[0].spells) == [(1, 0, 7, "finished")]


def study_of(*found: tuple[Spell, ...]) -> Study:
    return made_study(*(made_run("a", seed, spells=each) for seed, each in enumerate(found)))


def test_a_lane_for_each_run_and_a_box_for_each_attempt() -> None:
    hour = 3600
    study = study_of(
        (spell(0, 2 * hour, "stopped"), spell(3 * hour, 4 * hour, "finished", 2)),
        (spell(hour, 6 * hour, "lost"),),
        (),
    )
    figure = timeline(study)
    assert figure is not None and figure == timeline(study)
    assert figure.description == (
        "a, seed 0: 0.0 to 2.0 hours (stopped), 3.0 to 4.0 hours (finished);"
        " a, seed 1: 1.0 to 6.0 hours (lost)"
    )
    assert "hours since the first began" in figure.svg
    for said in ("to the end", "saved and stopped", "lost, to its last sign", "a, seed 1"):
        assert f">{said}<" in figure.svg
    assert ">failed<" not in figure.svg and "seed 2" not in figure.svg
    short = timeline(study_of((spell(0, 90, "finished"),)))
    assert short is not None and "minutes since the first began" in short.svg


def test_without_times_there_is_no_figure() -> None:
    assert timeline(study_of((), ())) is None
    assert timeline(study_of((spell(0, 0, "lost"),))) is None


def test_of_many_runs_the_first_are_shown_and_it_is_said() -> None:
    figure = timeline(study_of(*[(spell(n, n + 60, "finished"),) for n in range(61)]))
    assert figure is not None
    assert "The first 60 of 61 runs are shown." in figure.caption
    assert ">a, seed 59<" in figure.svg and ">a, seed 60<" not in figure.svg
    assert lanes.MOST_DRAWN == 60


@pytest.fixture(scope="module")
def page() -> Page:
    study = fabricated.study(arms=("none", fabricated.HOSTILE), seeds=(1, 2))
    runs = tuple(
        dataclasses.replace(run, spells=(spell(60 * number, 60 * number + 90, "finished"),))
        for number, run in enumerate(study.runs)
    )
    timed = dataclasses.replace(study, runs=runs)
    return build(timed, judge(timed))


def test_the_report_shows_it_with_the_cost(page: Page) -> None:
    cost = next(section for section in page.sections if section.name == "cost")
    assert [getattr(block, "name", "") for block in cost.blocks] == ["cost", "runs"]
    reader = Reader(html(page))
    reader.refuse_anything_loaded()
    assert not reader.all("script")
    assert "minutes since the first began" in reader.words()
    assert "(figures/runs.svg)" in markdown(page)
