"""The timeline of real ranks: one file for all, on one clock."""

from itertools import pairwise

import pytest

from distributed.timeline_cases import WORK_S

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_are_recorded_on_one_clock(reports, world):
    for report in reports(world)["timeline"]:
        assert report.values == reports(world)["timeline"][0].values
    found = report.values
    assert found["files"] == ["step-1.json", "step-1.svg"]
    passes = [e for e in found["trace"]["traceEvents"] if e.get("cat") in ("forward", "backward")]
    assert [e["pid"] for e in passes] == [rank for rank in range(world) for _ in range(2)]
    # Each rank begins after the one before has ended: a millisecond for reading two clocks.
    for earlier, later in pairwise(passes):
        assert later["ts"] >= earlier["ts"] + earlier["dur"] - 1000
        assert later["dur"] >= WORK_S * 1e6
    waits = [e for e in found["trace"]["traceEvents"] if e.get("cat") == "wait"]
    assert [e["pid"] for e in waits] == list(range(1, world))
    # One rank after the other: of each, all but its own passes are bubble.
    bubble = found["trace"]["otherData"]["bubble"]["measured"]
    assert bubble >= (world - 1) / world - 1e-6
