"""The grouped SwiGLU networks against a loop over rows."""

import pytest
import torch
from torch import Tensor

from dsv3.ops import grouped
from dsv3.ops.experts import fusible_grouped_mlp, grouped_mlp
from dsv3.ops.grouped import grouped_outer, grouped_product

D, F_WIDTH, E = 6, 5, 4
COUNTS = {
    "all used": [3, 1, 4, 2],
    "first empty": [0, 3, 2, 4],
    "one empty": [3, 0, 4, 2],
    "last empty": [3, 2, 4, 0],
    "one used": [0, 0, 7, 0],
    "all empty": [0, 0, 0, 0],
}


def inputs(counts: list[int], dtype: torch.dtype, spare: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    shapes = [
        (sum(counts) + spare, D),
        (sum(counts) + spare,),
        (E, 2 * F_WIDTH, D),
        (E, D, F_WIDTH),
    ]
    drawn = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    return [x.to(dtype).requires_grad_() for x in drawn]


def by_row(rows: Tensor, weights: Tensor, counts: list[int], w1: Tensor, w2: Tensor) -> Tensor:
    """The definition, one row at a time; touches every weight, so that all have a gradient."""
    experts = [e for e, count in enumerate(counts) for _ in range(count)]
    out = [rows[:0] + 0 * (weights.sum() + w1.sum() + w2.sum())]
    for row, weight, e in zip(rows, weights, experts, strict=True):
        gate, up = (w1[e] @ row).chunk(2)
        out.append((weight * (w2[e] @ (gate / (1 + torch.exp(-gate)) * up))).unsqueeze(0))
    return torch.cat(out)


@pytest.mark.parametrize("implementation", [grouped_mlp, fusible_grouped_mlp])
@pytest.mark.parametrize("name", COUNTS)
def test_values_and_gradients_equal_the_definition(name: str, implementation: object) -> None:
    counts = COUNTS[name]
    rows, weights, w1, w2 = inputs(counts, torch.float64)
    expected = by_row(rows, weights, counts, w1, w2)
    upstream = torch.randn(expected.shape, dtype=torch.float64)
    reference = torch.autograd.grad((expected * upstream).sum(), (rows, weights, w1, w2))

    assert callable(implementation)
    out = implementation(rows, weights, torch.tensor(counts), w1, w2)
    torch.testing.assert_close(out, expected)
    gradients = torch.autograd.grad((out * upstream).sum(), (rows, weights, w1, w2))
    for gradient, wanted in zip(gradients, reference, strict=True):
        torch.testing.assert_close(gradient, wanted)  # FP64: equal to rounding
    for empty in (e for e, count in enumerate(counts) if count == 0):
        assert not gradients[2][empty].any()
        assert not gradients[3][empty].any()


@pytest.mark.parametrize("name", ["all used", "last empty", "all empty"])
def test_rows_beyond_the_last_expert_have_no_effect(name: str) -> None:
    counts = COUNTS[name]
    rows, weights, w1, w2 = inputs(counts, torch.float64, spare=3)
    used = sum(counts)
    with torch.no_grad():
        rows[used:] = float("nan")
    out = grouped_mlp(rows, weights, torch.tensor(counts), w1, w2)
    gradients = torch.autograd.grad(out[:used].sum(), (rows, weights, w1, w2))
    short = grouped_mlp(rows[:used], weights[:used], torch.tensor(counts), w1, w2)
    expected = torch.autograd.grad(short.sum(), (rows, weights, w1, w2))
    assert torch.equal(out[:used], short)
    assert torch.equal(gradients[0][:used], expected[0][:used])
    assert torch.equal(gradients[1][:used], expected[1][:used])
    assert torch.equal(gradients[2], expected[2])
    assert torch.equal(gradients[3], expected[3])


def test_rows_of_weight_zero_add_nothing_to_the_weights_gradients() -> None:
    rows, weights, w1, w2 = inputs([3, 0, 4, 2], torch.float64)
    with torch.no_grad():
        weights[2] = 0.0
    out = grouped_mlp(rows, weights, torch.tensor([3, 0, 4, 2]), w1, w2)
    assert not out[2].any()
    kept = torch.tensor([0, 1, 3, 4, 5, 6, 7, 8])
    less = grouped_mlp(rows[kept], weights[kept], torch.tensor([2, 0, 4, 2]), w1, w2)
    for mine, wanted in zip(
        torch.autograd.grad(out.sum(), (w1, w2)),
        torch.autograd.grad(less.sum(), (w1, w2)),
        strict=True,
    ):
        torch.testing.assert_close(mine, wanted)


def test_gradcheck() -> None:
    counts = torch.tensor(COUNTS["one empty"])
    rows, weights, w1, w2 = inputs(counts.tolist(), torch.float64)
    assert torch.autograd.gradcheck(
        lambda r, w, a, b: grouped_mlp(r, w, counts, a, b), (rows, weights, w1, w2)
    )
    assert torch.autograd.gradcheck(
        lambda r, a: grouped_product(r, a.transpose(1, 2), counts), (rows, w1)
    )


@pytest.mark.parametrize("name", ["all used", "one empty", "last empty", "all empty"])
def test_bf16_stays_near_fp64(name: str) -> None:
    """Six roundings of 2^-9 in a row, averaged over sums: within 2 % of the norm."""
    counts = torch.tensor(COUNTS[name])
    narrow = inputs(counts.tolist(), torch.bfloat16)
    wide = [x.detach().double().requires_grad_() for x in narrow]
    out, expected = (
        grouped_mlp(*with_counts(narrow, counts)),
        grouped_mlp(*with_counts(wide, counts)),
    )
    assert out.dtype == torch.bfloat16
    gradients = torch.autograd.grad(out.sum(), narrow)
    references = torch.autograd.grad(expected.sum(), wide)
    for mine, wanted in zip((out, *gradients), (expected, *references), strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.double() - wanted).norm() <= 0.02 * wanted.norm()


def with_counts(tensors: list[Tensor], counts: Tensor) -> tuple[Tensor, ...]:
    rows, weights, w1, w2 = tensors
    return rows, weights, counts, w1, w2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", COUNTS)
def test_torchs_kernel_and_the_loop_agree(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    """Rows of whole 16 bytes go to torch's grouped product: same products, same bits on a CPU."""
    counts = torch.tensor(COUNTS[name])
    generator = torch.Generator().manual_seed(6)
    rows, left = (
        torch.randn(int(counts.sum()) + 2, n, generator=generator).to(dtype) for n in (16, 8)
    )
    weights = torch.randn(E, 8, 16, generator=generator).to(dtype)
    used = int(counts.sum())

    def products() -> tuple[Tensor, Tensor, Tensor]:
        return (
            grouped_product(rows, weights.transpose(1, 2), counts)[:used],
            grouped_product(left, weights, counts)[:used],
            grouped_outer(left, rows, counts),
        )

    assert grouped._has_kernel(rows, weights.transpose(1, 2), left, left.t())
    kernel = products()
    monkeypatch.setattr(grouped, "_has_kernel", lambda *_: False)
    for mine, wanted in zip(kernel, products(), strict=True):
        assert torch.equal(mine, wanted)


def test_operators_are_well_formed_for_the_compiler() -> None:
    counts = torch.tensor([2, 0, 1])
    rows, weights = torch.randn(4, 3, requires_grad=True), torch.randn(3, 3, 5, requires_grad=True)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.dsv3.grouped_product, (rows, weights, counts), test_utils=tests)
    left = torch.randn(4, 5)
    torch.library.opcheck(
        torch.ops.dsv3.grouped_outer, (left, torch.randn(4, 3), counts), test_utils=tests[:2]
    )
    assert torch.equal(grouped_outer(left, rows, counts)[1], torch.zeros(5, 3))
