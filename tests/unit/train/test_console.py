"""What a person sees, by the clock and by what the stream is."""

import io
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from dsv3.train.console import Bar, Lines, Quiet, open_console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_lines_come_by_time_with_the_first_and_the_last() -> None:
    stream, clock = io.StringIO(), Clock()
    shown = open_console(total_steps=20, done_steps=0, stream=stream, clock=clock)
    assert isinstance(shown, Lines)
    for step in range(1, 21):
        shown.step(step, loss=5.0 - step / 10, tokens_per_second=1234.5)
        clock.now_s += 2.0
    shown.close()
    assert stream.getvalue().splitlines() == [
        "step 1/20  loss 4.9000  1,234 tokens/s",
        "step 4/20  loss 4.6000  1,234 tokens/s  0:00:32 left",
        "step 7/20  loss 4.3000  1,234 tokens/s  0:00:26 left",
        "step 10/20  loss 4.0000  1,234 tokens/s  0:00:20 left",
        "step 13/20  loss 3.7000  1,234 tokens/s  0:00:14 left",
        "step 16/20  loss 3.4000  1,234 tokens/s  0:00:08 left",
        "step 19/20  loss 3.1000  1,234 tokens/s  0:00:02 left",
        "step 20/20  loss 3.0000  1,234 tokens/s",
    ]


def test_the_time_left_of_a_resumed_run_counts_its_own_steps_only() -> None:
    stream, clock = io.StringIO(), Clock()
    shown = open_console(total_steps=200, done_steps=100, stream=stream, clock=clock)
    for step in (101, 102):
        shown.step(step, loss=1.0, tokens_per_second=1.0)
        clock.now_s += 10.0
    assert stream.getvalue().splitlines()[1].endswith("0:16:20 left")  # 98 steps of 10 s


def test_notes_are_not_rate_limited() -> None:
    stream = io.StringIO()
    shown = open_console(total_steps=2, done_steps=0, stream=stream, clock=Clock())
    shown.note("one")
    shown.note("two")
    assert stream.getvalue() == "one\ntwo\n"


def test_a_terminal_gets_a_bar_with_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    stream, clock = Terminal(), Clock()
    shown = open_console(total_steps=10, done_steps=4, stream=stream, clock=clock)
    assert isinstance(shown, Bar)
    for step in range(5, 9):
        clock.now_s += 1.0
        shown.step(step, loss=2.5, tokens_per_second=4321.0)
    shown.note("checkpoint [bold]at[/bold] step 8")
    shown.close()
    shown.close()
    text = plain(stream.getvalue())
    assert "checkpoint [bold]at[/bold] step 8" in text
    last = text.strip().splitlines()[-1]
    assert re.search(r"step +8/10 .*loss 2\.5000 4,321 tokens/s 0:00:02", last), last
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h"), "cursor"


def test_a_bar_is_not_drawn_more_often_than_anyone_can_see(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream, clock = Terminal(), Clock()
    shown = open_console(total_steps=10_000, done_steps=0, stream=stream, clock=clock)
    for step in range(1, 1001):
        clock.now_s += 0.001
        shown.step(step, loss=1.0, tokens_per_second=1.0)
    drawn = plain(stream.getvalue()).count("tokens/s")
    shown.close()
    assert 3 <= drawn <= 7


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_terminal_that_cannot_move_its_cursor_gets_lines(
    monkeypatch: pytest.MonkeyPatch, term: str
) -> None:
    monkeypatch.setenv("TERM", term)
    assert isinstance(open_console(total_steps=1, done_steps=0, stream=Terminal()), Lines)


def test_quiet_shows_nothing() -> None:
    stream = Terminal()
    shown = open_console(total_steps=1, done_steps=0, quiet=True, stream=stream)
    shown.step(1, loss=1.0, tokens_per_second=1.0)
    shown.note("x")
    shown.close()
    assert isinstance(shown, Quiet)
    assert stream.getvalue() == ""


GONE = """
import sys
from dsv3.train.console import open_console
stdout = sys.stdout
shown = open_console(total_steps=3, done_steps=0, stream=stdout)
print("open", file=sys.__stderr__, flush=True)
sys.stdin.readline()
for step in (1, 2, 3):
    shown.note("x" * 100_000)
    shown.step(step, loss=1.0, tokens_per_second=1.0)
shown.close()
print(type(shown).__name__, sys.stdout is stdout, file=sys.__stderr__)
"""


def closed_pipe() -> tuple[int, Callable[[], None]]:
    reader, writer = os.pipe()
    return writer, lambda: os.close(reader)


def closed_terminal() -> tuple[int, Callable[[], None]]:
    terminal, inside = pty.openpty()
    return inside, lambda: os.close(terminal)


@pytest.mark.parametrize(("opened", "kind"), [(closed_pipe, "Lines"), (closed_terminal, "Bar")])
def test_a_reader_that_went_away_ends_nothing(
    opened: Callable[[], tuple[int, Callable[[], None]]], kind: str
) -> None:
    stdout, hang_up = opened()
    process = subprocess.Popen(
        [sys.executable, "-c", GONE],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"},
    )
    assert process.stderr.readline() == "open\n"
    hang_up()
    assert process.communicate("go\n")[1] == f"{kind} True\n", "and nothing else, as of exit"
    assert process.returncode == 0
    os.close(stdout)


def test_a_closed_stream_ends_nothing() -> None:
    stream = io.StringIO()
    shown = open_console(total_steps=1, done_steps=0, stream=stream)
    stream.close()
    shown.step(1, loss=1.0, tokens_per_second=1.0)
