"""The all-to-all dispatcher: bit-equal to one process, every byte as theory says."""

import pytest

from dsv3.parallel.exchange import HOPS

pytestmark = pytest.mark.distributed

SENDING = {"dispatch", "combine", "combine_backward", "dispatch_backward"}


@pytest.mark.parametrize("world", [1, 2, 4])
def test_values_and_gradients_are_those_of_one_process_to_the_bit(reports, world):
    for report in reports(world)["tokens"]:
        assert [name for name, row in report.values.items() if row["different"]] == []
        assert all(row["finite"] for row in report.values.values())


@pytest.mark.parametrize("world", [1, 2, 4])
def test_bytes_are_those_of_theory(reports, world):
    for report in reports(world)["tokens"]:
        for name, row in report.values.items():
            assert row["sent"] == row["theory"], name
            passes = 2 if "recomputed" in name else 1  # the forward hops run again
            calls = {hop: 1 if "backward" in hop else passes for hop in HOPS}
            assert row["calls"] == calls, name
            assert row["emptied"]


@pytest.mark.parametrize("world", [2, 4])
def test_the_scenarios_are_what_they_are_called(reports, world):
    """Nobody would notice a scenario with an empty expert that has tokens after all."""
    rows = [report.values for report in reports(world)["tokens"]]
    sent = [{hop: row["one_rank fp32"]["sent"][hop] for hop in SENDING} for row in rows]
    assert sent[0]["dispatch"] == 0, "all experts in use are the first rank's own"
    assert sent[0]["combine"] > 0
    assert all(row["dispatch"] > 0 and row["combine"] == 0 for row in sent[1:])
    assert rows[1]["rank_empty fp32"]["sent"]["combine"] == 0, "rank 1 receives nothing"
    assert rows[-1]["nothing_to_send fp32"]["sent"]["dispatch"] == 0
    assert rows[-1]["nothing_to_send fp32"]["sent"]["combine"] > 0
    nobody = [row["nobody bf16 padded"]["sent"][hop] for row in rows for hop in SENDING]
    assert set(nobody) == {0}
    assert all(row["any fp32"]["rows_from_home"] > 0 for row in rows)
