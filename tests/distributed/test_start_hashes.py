"""start.json is the same in every layout and for every arm of a seed, and nothing else is."""

import pytest

from distributed.start_cases import LAYOUTS, PLANTED, START_CASES, name_of

pytestmark = pytest.mark.distributed

WORLDS = {name: world for world, cases in START_CASES.items() for name in cases}


@pytest.fixture
def found(reports):
    """The hashes of a case, of which every rank has the same."""

    def of(name: str, world: int | None = None):
        of_ranks = reports(WORLDS[name] if world is None else world)[name]
        assert all(report.values == of_ranks[0].values for report in of_ranks)
        return of_ranks[0].values

    return of


@pytest.fixture
def alone(found):
    return found("start single zero1")


@pytest.mark.parametrize("row", LAYOUTS[1:], ids=lambda row: name_of(*row))
def test_every_layout_has_the_hashes_of_one_process(row, found, alone):
    assert alone.keys() == {"weights.model", "weights.mtp", "data_order"}
    assert len({*alone.values()}) == 3
    assert found(name_of(*row)) == alone


@pytest.mark.parametrize("arm", ["aux_batch", "bf16", "other batch"])
def test_arms_of_a_seed_start_alike(arm, found, alone):
    assert found(f"start {arm}") == alone


def test_without_mtp_the_model_is_the_same_and_its_part_is_missing(found, alone):
    expected = {name: value for name, value in alone.items() if name != "weights.mtp"}
    assert found("start mtp off") == expected


def test_another_seed_has_nothing_in_common(found, alone):
    other = found("start seed 2")
    assert other.keys() == alone.keys()
    assert not {*other.values()} & {*alone.values()}


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(
    ("fault", "differs"),
    [
        ("bit of model", "weights.model"),
        ("bit of mtp", "weights.mtp"),
        ("two samples", "data_order"),
        ("text", "data_order"),
        ("undone", None),
    ],
)
def test_a_planted_difference_shows_in_its_hash_alone(world, fault, differs, found, alone):
    cases = found(PLANTED, world)
    assert cases["sound"] == alone
    different = [name for name, value in cases[fault].items() if value != alone[name]]
    assert different == ([] if differs is None else [differs])
