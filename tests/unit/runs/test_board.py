"""What a rank writes is what its launcher reads, whole or not at all."""

import pytest

from dsv3.errors import DataError, Problem
from dsv3.runs import board as board_module
from dsv3.runs.board import Board, Sign


@pytest.fixture
def board():
    board = Board.create(3, limit_s=600.0)
    yield board
    board.close()


def test_every_rank_begins_by_starting(board: Board) -> None:
    for rank in range(3):
        sign = board.read(rank)
        assert (sign.phase, sign.limit_s, str(sign)) == ("starting", 600.0, "starting")
        assert board.failure(rank) is None


def test_a_sign_is_read_from_another_mapping(board: Board) -> None:
    rank = Board(board.descriptor, 3)
    rank.write(1, Sign(12.5, 30.0, "saving", 7))
    assert board.read(1) == Sign(12.5, 30.0, "saving", 7)
    assert board.read(0).phase == board.read(2).phase == "starting"


def test_a_sign_half_written_is_not_read(board: Board) -> None:
    good = board.read(1)
    begin = board_module._REGION
    board._memory[begin : begin + 4] = b"\xff" * 4
    assert board.read(1) == good


def test_a_failure_comes_over_as_it_was(board: Board) -> None:
    error = DataError([Problem("data.path=x", "is gone", "bring it back"), Problem("", "and so")])
    board.fail(2, error, lasting=True)
    failure = board.failure(2)
    assert failure is not None and failure.lasting
    assert failure.error.problems == error.problems
    assert (failure.error.id, failure.error.exit_code) == ("data", 6)
    assert board.failure(1) is None


def test_a_failure_that_is_too_long_is_cut(board: Board) -> None:
    board.fail(0, DataError([Problem("x", "y" * 100_000)] * 9), lasting=False)
    failure = board.failure(0)
    assert failure is not None
    assert failure.error.problems[0].rule == "y" * 2000
    assert board.read(1).phase == "starting", "the next region is untouched"
