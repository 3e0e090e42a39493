"""Two ranks prove their precision together, and end together if one of them has another."""

import pytest

from distributed.proof_cases import FAULTY, IDLE, LAYOUTS

pytestmark = pytest.mark.distributed


@pytest.fixture(params=LAYOUTS)
def of_ranks(request, reports):
    return [report.values for report in reports(2)[f"proof {request.param}"]]


def test_the_products_are_those_of_all_ranks(of_ranks):
    first, second = of_ranks
    assert first["products"] == second["products"]
    assert first["promised"] == second["promised"]
    assert first["broken"] == second["broken"] == {}
    layers = {name.removesuffix(".weight") for rank in of_ranks for name in rank["own"]}
    seen = {product.split()[0] for product in first["products"]}
    for layer in layers:
        has_products = "norm" not in layer and "embed" not in layer
        assert (layer in seen) == has_products, layer
    in_fp8 = {tuple(product.split()[:2]) for product in first["products"] if "e4m3" in product}
    assert in_fp8 == set(map(tuple, first["promised"]))


def test_both_have_the_ranges_of_both(of_ranks):
    first, second = of_ranks
    assert first["ranges"] == second["ranges"]
    assert {layer for layer, _ in first["promised"]} == first["ranges"].keys()


def test_a_layer_that_one_rank_broke_ends_both(of_ranks):
    first, second = of_ranks
    assert first["text"] == second["text"]
    layer = of_ranks[FAULTY]["layer"]
    assert f"{layer}: fprop ran in bf16 x bf16 (rank {FAULTY})" in first["text"]
    assert "rank 0" not in first["text"]


def test_experts_without_tokens_were_there(reports):
    """Else the case above proved nothing about them."""
    of_ranks = [report.values for report in reports(2)["proof ep2"]]
    assert f"{IDLE}.experts.down_proj" in of_ranks[FAULTY]["own"]
    assert of_ranks[FAULTY]["idle"] and not of_ranks[1 - FAULTY]["idle"]
