"""A fault on one rank of two is a decision of both (F20), and a flipped bit has a name (F23)."""

import pytest

from distributed.health_cases import FAULTY, FLIPS, LAYOUTS, PIPELINE_SITES, PIPELINES
from numerics.poison import GRADIENTS, NAMED, SITES

pytestmark = pytest.mark.distributed


@pytest.fixture(params=LAYOUTS)
def non_finite(request, reports):
    return [report.values for report in reports(2)[f"health non-finite {request.param}"]]


@pytest.fixture(params=LAYOUTS)
def flips(request, reports):
    return [report.values for report in reports(2)[f"health flips {request.param}"]]


@pytest.mark.parametrize("site", SITES)
def test_no_rank_makes_the_update(non_finite, site):
    other, faulty = (of_rank[site] for of_rank in non_finite)
    assert (other["fired"], faulty["fired"] > 0) == (0, True)
    assert other["line"] == faulty["line"]
    assert "skipped True" in other["line"]
    assert other["events"] == faulty["events"]
    assert other["changed"] == faulty["changed"] == []
    assert other["next"] and faulty["next"], "the next step is not that of a run without the batch"


@pytest.mark.parametrize("site", SITES)
def test_one_event_says_why(non_finite, site):
    [[name, fields]] = non_finite[0][site]["events"]
    assert name == "step_skipped"
    assert fields["figure"] == ("grad_norm" if site in GRADIENTS else "loss")
    if site in GRADIENTS:
        assert fields["names"] == [GRADIENTS[site]]
    elif site in ("balance loss", "loss"):
        assert fields["names"] == fields["ranks"] == []  # no layer's output, in evaluation
    elif site in NAMED:
        assert NAMED[site] in fields["names"]
        assert FAULTY in fields["ranks"]


@pytest.mark.parametrize("layout", PIPELINES)
@pytest.mark.parametrize("site", PIPELINE_SITES)
def test_no_stage_makes_the_update(reports, layout, site):
    of_ranks = [report.values[site] for report in reports(2)[f"health non-finite {layout}"]]
    assert sorted(bool(of_rank["fired"]) for of_rank in of_ranks) == [False, True]
    first, second = of_ranks
    assert first["line"] == second["line"]
    assert "skipped True" in first["line"]
    assert [name for name, _ in first["events"]] == ["step_skipped"]
    assert first["events"] == second["events"]
    for of_rank in of_ranks:
        assert of_rank["changed"] == []
        assert of_rank["next"], "the next step is not that of a run without the batch"


def test_every_flipped_bit_is_found_and_placed_by_every_rank(flips):
    done = flips[0]["done"]
    assert len(done) == 4 * FLIPS
    for of_rank in flips:
        assert of_rank["clean"] == []
        assert of_rank["found"] == [[one] for one in done]


def test_a_wrong_master_is_told_from_wrong_weights(flips):
    assert flips[0]["masters"] == flips[1]["masters"]
    [[rank, part, *_]] = flips[0]["masters"]
    assert (rank, part) == (FAULTY, "masters")


@pytest.mark.parametrize(("every", "step"), [(1, 2), (3, 3)])
def test_the_run_stops_before_the_update(reports, every, step):
    texts = [report.values["text"] for report in reports(2)[f"health stopped {every}"]]
    assert texts[0] == texts[1]
    assert texts[0].startswith(f"5 step {step}: rank {FAULTY}: 1 of its weights differ")
    assert "first element 5 of model.layers.0.mlp.down_proj.weight" in texts[0]
    assert [r.values["step"] for r in reports(2)[f"health stopped {every}"]] == [step - 1] * 2
