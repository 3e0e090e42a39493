"""A sweep killed again and again, with everything it has started, ends with each run done once."""

import random
import time

import pytest

from faults.sweep_of_stubs import Home, events, kill_all, require_trained_once, steps

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

KILLS, SEED = 8, 7
PARALLEL, RUNS = 2, 6


@pytest.mark.parametrize("kills", [KILLS, pytest.param(20, marks=pytest.mark.faults, id="faults")])
def test_a_sweep_killed_at_random_moments(tmp_path, monkeypatch, kills):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    home = Home(tmp_path)
    # Slow enough that there is always something to kill: a kill lets through about two of 120 steps
    # that stay, on a fast machine too.
    home.environment["STUB_STEP_S"] = "0.3"
    first = ["train", "-m", *home.words(), f"launcher.parallel={PARALLEL}"]
    draw = random.Random(SEED)
    fired, moments = 0, {"before a run": 0, "between steps": 0}
    while fired < kills:
        # `train` composes and prepares; `resume` reads what is frozen. Both are killed.
        known = len(home.runs) == RUNS and any(home.path.glob("sweeps/*.json"))
        resuming = known and draw.random() < 0.7
        before = sum(len(steps(run)) for run in home.runs)
        process = home.start(*(["resume", home.sweep.stem] if resuming else first))
        began = time.monotonic()
        by_time = draw.random() < 0.4
        delay, made = draw.uniform(0, 4), draw.randint(1, 8)
        while process.poll() is None:
            now = sum(len(steps(run)) for run in home.runs)
            if time.monotonic() - began > delay if by_time else now >= before + made:
                break
            time.sleep(0.005)
        if process.poll() is not None:
            break  # it got to its end
        moments["between steps" if now > before else "before a run"] += 1
        kill_all(home, process)
        process.communicate()
        fired += 1
    assert process.returncode in (-9, 0), process.communicate()[1]
    assert fired == kills, f"{fired} kills, then it was done: {moments}"
    assert min(moments.values()) > 0, moments
    home.environment["STUB_STEP_S"] = "0.001"
    code, _, err = home.ask(*first)
    assert code == 0, err
    require_trained_once(home, RUNS)
    assert sum(len(events(run, "started")) for run in home.runs) > RUNS, "some were interrupted"
