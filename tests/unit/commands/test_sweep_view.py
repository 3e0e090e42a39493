"""What is shown of a sweep, and how its verbs find what is meant."""

import io
import json
import shutil
from pathlib import Path

import pytest

import dsv3
from dsv3 import cli
from dsv3.commands import cancel, sweep_view
from dsv3.commands.progress_table import COLUMNS, figures, row, summary
from dsv3.runs.directory import RunDirectory
from dsv3.runs.lock import Holder
from dsv3.runs.provenance import Provenance
from dsv3.sweep.arms import BASE, Arm
from dsv3.sweep.progress import Progress
from dsv3.sweep.record import SweepRun, keep, new_record
from dsv3.sweep.runner import Job, Outcome, exit_code_of


@pytest.fixture
def jobs(config) -> list[Job]:
    made = []
    for number, seed in enumerate((1, 2, 3), start=1):
        arm = Arm("two words" if seed > 1 else BASE, config.model_copy(update={"seed": seed}), ())
        record = {"data_fingerprint": "d", "numerics_version": dsv3.NUMERICS_VERSION}
        provenance = Provenance(record, "")
        run = RunDirectory.create_or_open(arm.config, overrides=(), provenance=provenance)
        made.append(Job(number, 3, arm, run))
    return made


@pytest.fixture
def sweep(jobs, tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    runs = [
        SweepRun(id=job.directory.id, arm=job.arm.name, seed=job.config.seed, overrides=("seed=1",))
        for job in jobs
    ]
    record = new_record(
        name="seeds",
        recipe=None,
        baseline=BASE,
        model="moe_nano",
        run_root=Path("runs"),
        command=["dsv3"],
        runs=runs,
    )
    return keep(record, Path("sweeps")).id


def progress(status: str, **more: object) -> Progress:
    return Progress("id", "arm", 1, Path("runs/id"), status, **more)


def test_rows_and_sentences() -> None:
    known = progress(
        "running",
        step=20,
        total_steps=262,
        loss=3.14159,
        validation_loss=3.2,
        tokens_per_second=9000.4,
        seconds_left=80.2,
    )
    cells = ("arm", "1", "running", "20/262", "3.1416", "3.2000", "9,000", "0:01:20")
    assert row(known) == cells
    assert len(cells) == len(COLUMNS)
    assert figures(known) == "step 20/262  loss 3.1416  9,000 tokens/s  0:01:20 left"
    assert row(progress("new"))[3:] == ("0/?", "-", "-", "-", "-")
    assert figures(progress("running")) == "starting"
    every = [progress(status) for status in ("done", "running", "failed", "done", "running")]
    assert summary(every) == "2 of 5 done, 1 failed, 2 running"


@pytest.mark.parametrize(
    ("codes", "runs", "stop", "wanted"),
    [
        ([0, 0], 2, None, 0),
        ([0, 5, 0], 3, None, 7),
        ([5], 1, None, 5),
        ([0, 85], 3, 85, 85),
        ([0, 85], 3, 130, 130),
        ([0], 3, 130, 130),
        ([], 3, 85, 85),
        ([0, 0], 2, 130, 0),
        ([0, 5], 2, 85, 7),
        ([5, 85, 0], 3, None, 85),
    ],
)
def test_the_exit_code_of_a_sweep(codes, runs, stop, wanted) -> None:
    assert exit_code_of(codes, runs, stop) == wanted


def test_lines_say_who_is_how_far_and_what_failed(jobs, capsys, tmp_path) -> None:
    now = [0.0]
    lines = sweep_view.Lines(clock=lambda: now[0])
    lines.starts(jobs[1])
    lines.look(jobs)
    now[0] = 11.0
    jobs[0].directory.metrics_path.write_text('{"step": 3, "tokens": 9, "loss": 2.5}\n')
    lines.look(jobs[:2])
    said = tmp_path / "said"
    said.write_text("old\nerror[x]: before\nstep 1\nerror[numeric]: NaN \x1b[31m\nbye\n")
    lines.ended(Outcome(jobs[1], 5, trained=True), said, said.read_text().index("step 1"))
    lines.waits(jobs[2:])
    lines.waits(jobs[2:])
    lines.ended(Outcome(jobs[2], 85, trained=True), None, 0)
    first, _, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith("[2/3] two words seed 2: moe_nano: ")
    assert rest == [
        "[1/3] seed 1: step 3/262  loss 2.5000",
        "[2/3] two words seed 2: starting",
        "[2/3] two words seed 2: error[numeric]: NaN \\x1b[31m",
        "[2/3] two words seed 2: failed, exit code 5",
        f"waiting for another process that trains {jobs[2].directory.path}",
        "[3/3] two words seed 3: stopped, and saved",
    ]


def test_the_table_of_a_terminal(jobs, monkeypatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "30")
    with sweep_view.view("seeds-1", jobs, side_by_side=True, quiet=False) as table:
        assert isinstance(table, sweep_view.Table)
        jobs[0].directory.metrics_path.write_text('{"step": 3, "tokens": 9, "loss": 2.5}\n')
        table.starts(jobs[0])
        table.look(jobs[:1])
        table.ended(Outcome(jobs[0], 0, trained=True), None, 0)
    shown = terminal.getvalue()
    assert "seeds-1: 0 of 3 done, 2 new, 1 stopped" in shown
    assert "3/262" in shown and "two words" in shown and "[1/3] seed 1: done" in shown
    terminal.close()
    table.look(jobs)  # a terminal that went away ends no sweep
    with sweep_view.view("s", jobs, side_by_side=False, quiet=False) as watcher:
        assert type(watcher) is sweep_view.OneByOne
    with sweep_view.view("s", jobs, side_by_side=True, quiet=True) as watcher:
        assert type(watcher) is sweep_view.Errors


def test_what_words_mean(sweep, jobs, capsys) -> None:
    def ids(*words: str) -> tuple[list[str], list[str]]:
        assert cli.run(["status", *words, "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
        return [each["id"] for each in data["sweeps"]], [each["id"] for each in data["runs"]]

    run = jobs[0].directory
    assert ids() == ids(sweep) == ids("seeds") == ids(f"sweeps/{sweep}.json") == ([sweep], [])
    assert ids(run.id) == ids(str(run.path)) == ids(f"runs/{run.id}") == ([], [run.id])
    assert ids(run.id[:-3], sweep) == ([sweep], [run.id])
    assert ids("sweep_root=nowhere") == ([], [])
    for words, said in {
        ("nonsense",): "no such sweep in sweeps, nor such a run in runs",
        (run.id[:-1] + "_",): f"did you mean {run.id}",
        ("moe_nano-",): "several runs begin so",
        ("seed=1", run.id): "only run_root=, sweep_root= can be given here",
        ("--watch",): "leave one out",
    }.items():
        assert cli.run(["status", *words, "--json"]) == 2
        captured = capsys.readouterr()
        assert said in captured.err and captured.err.startswith("error[config]: ")
    for verb in ("logs", "resume", "cancel"):
        assert cli.run([verb]) == 2
        assert "a sweep or a run is missing; dsv3" in capsys.readouterr().err
    assert cli.run(["status", "sweep_root=nowhere"]) == 0
    assert "no sweeps yet" in capsys.readouterr().out


def test_logs_show_the_last_lines(sweep, jobs, capsys) -> None:
    run = jobs[1].directory
    assert cli.run(["logs", sweep]) == 2
    assert "no rank of it has started yet" in capsys.readouterr().err
    (run.logs / "rank-0.log").write_text("one\ntwo \x1b[2J\tthree\nfour\ntorn")
    assert cli.run(["logs", run.id, "-n", "2"]) == 0
    assert capsys.readouterr().out == "two \\x1b[2J\tthree\nfour\n"
    assert cli.run(["logs", sweep, "-n", "1", "--follow"]) == 0, "ends: nobody trains"
    assert capsys.readouterr().out == f"==> two words seed 2 {run.logs / 'rank-0.log'} <==\nfour\n"
    assert cli.run(["logs", run.id, "--rank", "3"]) == 2
    assert "there are rank-0.log" in capsys.readouterr().err
    assert cli.run(["logs", run.id, "-n", "1", "--json"]) == 0
    (log,) = json.loads(capsys.readouterr().out)["logs"]
    assert (log["run"], log["lines"]) == (run.id, ["four"])


def test_a_record_is_not_composed_into_another_run(sweep, jobs, capsys) -> None:
    shutil.rmtree(jobs[0].directory.path)
    assert cli.run(["resume", sweep]) == 2
    said = capsys.readouterr().err
    assert (
        "its directory is gone, and `seed=1` is moe_" in said and "ask for the sweep anew" in said
    )


def test_ranks_of_a_sweep_that_ends_at_once_are_asked_by_it_alone(sweep, monkeypatch, capsys):
    asked: list[int] = []

    def holder(path: Path) -> Holder:
        return Holder("here", 1 if path.parent.name == "sweeps" else 2, "now")

    def ask(what: str, who: Holder, *_: object) -> cancel.Told:
        asked.append(who.pid)
        return cancel.Told(what, True, "asked")

    monkeypatch.setattr(cancel, "current_holder", holder)
    monkeypatch.setattr(cancel, "_ask", ask)
    monkeypatch.setattr(cancel, "_descendants", lambda pid: set() if asked else {2})
    assert cancel.cancel([sweep], as_json=True) == 0
    assert [told["said"] for told in json.loads(capsys.readouterr().out)["cancelled"]] == ["asked"]
    assert asked == [1]
