"""kill -9 of the launcher or any rank at random times: the run ends as if nobody had."""

import os

import pytest

from faults.storm import IN_A_SAVE, IN_TRAINING, DenseStorm, Storm

SEED = int(os.environ.get("STORM_SEED", "1"))
KILLS = int(os.environ.get("STORM_KILLS", "300"))


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("kills", [8, pytest.param(KILLS, marks=pytest.mark.faults, id="faults")])
def test_a_storm_of_kills_leaves_no_trace(tmp_path, kills):
    storm = Storm(tmp_path, seed=SEED)
    storm.run(kills)
    tally = storm.tally
    # Anything else has raised by now, with its seed.
    print(f"{tally}, HANG 0, SILENT-WRONG 0, LOST 0; 95 % bound {3 / kills:.1%}; seed {SEED}")
    assert tally.kills == tally.exact == kills
    assert tally.phases[IN_A_SAVE] >= kills // 8
    assert tally.phases[IN_TRAINING] >= 1
    assert len(tally.phases) >= 3


@pytest.mark.faults
def test_a_storm_over_a_pipeline_leaves_no_trace(tmp_path):
    kills = 30
    storm = Storm(tmp_path, seed=SEED, layout="pp2_ep2")
    storm.run(kills)
    print(f"pipeline: {storm.tally}, HANG 0, SILENT-WRONG 0, LOST 0; seed {SEED}")
    assert storm.tally.kills == storm.tally.exact == kills


@pytest.mark.faults
@pytest.mark.parametrize("seed", [SEED, SEED + 1, SEED + 2])
def test_a_run_that_is_killed_ten_times_gets_to_its_end(tmp_path, seed):
    steps = 120
    storm = DenseStorm(tmp_path, seed=seed, steps=steps)
    storm.run(10)
    assert storm.runs == 1, "ten kills were to hit one run"
    again = sum(storm.tally.lost_steps)
    print(f"{storm.tally}; {steps / (steps + again):.0%} of the steps useful; seed {seed}")
