"""Phases nest, the thread that works is the one that beats, and a lost peer is told apart."""

import threading
from pathlib import Path

import pytest

from dsv3.errors import CapacityError, DataError
from dsv3.runs.board import Board
from dsv3.runs.directory import RunDirectory
from dsv3.runs.rank import Place
from dsv3.train.heartbeat import Heartbeat
from dsv3.train.worker import peer_error


@pytest.fixture
def board():
    board = Board.create(2, limit_s=600.0)
    yield board
    board.close()


def now(board: Board) -> tuple[str, float, int]:
    sign = board.read(1)
    return sign.phase, sign.limit_s, sign.step


def test_phases_have_limits_and_give_way_to_what_was_before(board: Board) -> None:
    heartbeat = Heartbeat(board, 1, 30.0)
    with heartbeat.phase("loading", 1800.0):
        assert now(board) == ("loading", 1800.0, -1)
    assert now(board) == ("starting", 600.0, -1)
    heartbeat.beat(1)
    assert now(board) == ("training", 30.0, 1)
    with heartbeat.phase("saving", 1800.0):
        before = board.read(1).at_s
        heartbeat.beat()
        assert board.read(1).at_s > before
        assert now(board) == ("saving", 1800.0, 1)
        with heartbeat.phase("evaluating", 60.0):
            assert now(board)[0] == "evaluating"
        assert now(board) == ("saving", 1800.0, 1)
    assert now(board) == ("training", 30.0, 1)
    heartbeat.end(600.0)
    assert now(board) == ("ending", 600.0, 1)


def test_another_thread_cannot_beat(board: Board) -> None:
    heartbeat = Heartbeat(board, 1, 30.0)
    caught = []

    def beat() -> None:
        try:
            heartbeat.beat(1)
        except AssertionError as error:
            caught.append(error)

    thread = threading.Thread(target=beat)
    thread.start()
    thread.join()
    assert len(caught) == 1
    assert now(board)[0] == "starting"


def test_the_first_error_of_a_rank_stands(board: Board) -> None:
    heartbeat = Heartbeat(board, 1, 30.0)
    assert heartbeat.fail(DataError("first"), lasting=True)
    assert heartbeat.fail(CapacityError("second"), lasting=False)
    failure = board.failure(1)
    assert failure is not None and failure.lasting
    assert str(failure.error) == "first"


def test_without_a_launcher_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSV3_BOARD", raising=False)
    heartbeat = Heartbeat.attach(Place(0, 1))
    heartbeat.beat(3)
    with heartbeat.phase("saving", 1.0):
        heartbeat.beat()
    assert not heartbeat.fail(DataError("x"), lasting=False)


def test_a_broken_connection_is_no_defect_of_a_rank(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    gloo = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]")
    lost = peer_error(gloo, Place(1, 2), run)
    assert lost is not None and lost.exit_code == 8
    assert "rank 1: lost touch" in str(lost) and "rank-1.log" in str(lost)
    assert peer_error(gloo, Place(0, 1), run) is None
    assert peer_error(RuntimeError("shapes differ"), Place(1, 2), run) is None
    assert peer_error(ValueError("Connection closed by peer"), Place(1, 2), run) is None
