"""Who is silent, by a clock that stands still while the launcher does."""

import pytest

from dsv3.launch import watchdog
from dsv3.launch.watchdog import Watchdog
from dsv3.runs.board import Board, Sign


class Clock:
    now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watchdog, "time", clock)
    return clock


@pytest.fixture
def board():
    board = Board.create(2, limit_s=30.0)
    yield board
    board.close()


def test_beyond_its_limit_a_rank_is_silent(clock: Clock, board: Board) -> None:
    board.write(0, Sign(1000.0, 8.0, "training", 3))
    board.write(1, Sign(1000.0, 60.0, "saving"))
    dog = Watchdog(board, timeout_s=8.0)
    for _ in range(4):
        clock.now_s += 2.0
        assert dog.look([0, 1]) == []
    clock.now_s += 2.0
    (silence,) = dog.look([0, 1])
    assert (silence.rank, silence.seconds) == (0, 10.0)
    assert str(silence.sign) == "training, after step 3"
    assert dog.look([1]) == []


def test_a_launcher_that_was_halted_gives_time_again(clock: Clock, board: Board) -> None:
    board.write(0, Sign(1000.0, 8.0, "training"))
    dog = Watchdog(board, timeout_s=8.0)
    clock.now_s += 500.0
    assert dog.look([0]) == []
    for _ in range(4):
        clock.now_s += dog.rest_s()
        assert dog.look([0]) == []
    clock.now_s += dog.rest_s()
    assert [silence.rank for silence in dog.look([0])] == [0]


def test_it_sleeps_between_looks(clock: Clock, board: Board) -> None:
    dog = Watchdog(board, timeout_s=8.0)
    assert dog.rest_s() == 2.0
    clock.now_s += 0.5
    assert dog.rest_s() == 1.5
    dog.look([0])
    assert dog.rest_s() == 2.0
