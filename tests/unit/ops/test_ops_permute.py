"""Reordering by expert: where rows go, and that both directions are each other's transpose."""

import pytest
import torch

from dsv3.ops.permute import expert_rows, permute, permute_weights, token_of_rows, unpermute
from dsv3.ops.routing import count_tokens

IDS = torch.tensor([[3, 0], [0, 1], [3, 1], [0, 3], [3, 0]])


@pytest.mark.parametrize("row_multiple", [1, 2, 4])
def test_rows_are_sorted_by_expert_and_filled_up(row_multiple: int) -> None:
    counts = count_tokens(IDS, 5)
    row_TK, rows_per_expert = expert_rows(IDS, counts, row_multiple=row_multiple)
    assert rows_per_expert.tolist() == [
        -(-c // row_multiple) * row_multiple for c in (4, 2, 0, 4, 0)
    ]
    starts = rows_per_expert.cumsum(0) - rows_per_expert
    for expert in range(5):
        rows = row_TK[expert_ids_equal(expert)]
        assert rows.tolist() == list(range(starts[expert], starts[expert] + counts[expert]))


def expert_ids_equal(expert: int) -> torch.Tensor:
    return expert == IDS


def test_rows_without_an_assignment_hold_token_zero_and_no_weight() -> None:
    row_TK, rows_per_expert = expert_rows(IDS, count_tokens(IDS, 5), row_multiple=4)
    assert rows_per_expert.tolist() == [4, 4, 0, 4, 0]
    tokens = token_of_rows(row_TK, 12)
    weights = permute_weights(torch.ones(5, 2), row_TK, 12)
    assert tokens.tolist() == [0, 1, 3, 4, 1, 2, 0, 0, 0, 2, 3, 4]
    assert weights.tolist() == [1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("row_multiple", [1, 4])
def test_round_trip_and_gradients(row_multiple: int) -> None:
    row_TK, rows_per_expert = expert_rows(IDS, count_tokens(IDS, 5), row_multiple=row_multiple)
    num_rows = int(rows_per_expert.sum())
    tokens = token_of_rows(row_TK, num_rows)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(permute(x, tokens, row_TK), x[tokens])
    # A token's rows are copies of it: their sum is K times the token.
    assert torch.equal(unpermute(permute(x, tokens, row_TK), tokens, row_TK), 2 * x)

    rows = permute(x, tokens, row_TK)
    weight = permute_weights(torch.ones(5, 2), row_TK, num_rows).unsqueeze(1)
    upstream = torch.randn(num_rows, 3, dtype=torch.float64) * weight
    (grad,) = torch.autograd.grad((rows * upstream).sum(), x)
    expected = torch.zeros(5, 3, dtype=torch.float64).index_add_(0, tokens, upstream)
    torch.testing.assert_close(grad, expected)

    rows = torch.randn(num_rows, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: unpermute(r * weight, tokens, row_TK), rows)


def test_bf16_rows_are_summed_like_fp32_and_rounded_once() -> None:
    row_TK, _ = expert_rows(IDS, count_tokens(IDS, 5), row_multiple=1)
    rows = torch.randn(10, 8).bfloat16()
    exact = rows.float()[row_TK].sum(dim=1)
    summed = unpermute(rows, token_of_rows(row_TK, 10), row_TK)
    # Not bit-equal to torch's rounding: FBGEMM rounds ties away from zero.
    assert ((summed.float() - exact).abs() <= 2**-8 * exact.abs()).all()


def test_operators_are_well_formed_for_the_compiler() -> None:
    row_TK, _ = expert_rows(IDS, count_tokens(IDS, 5), row_multiple=4)
    tokens = token_of_rows(row_TK, 12)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    for operator, rows in ((torch.ops.dsv3.permute, 5), (torch.ops.dsv3.unpermute, 12)):
        x = torch.randn(rows, 3, requires_grad=True)
        torch.library.opcheck(operator, (x, tokens, row_TK), test_utils=tests)
