"""The local dispatcher's side of the protocol, and that the MoE layer asks as its backend wants."""

import pytest
import torch
from torch import Tensor, nn

from dsv3.config.compose import compose
from dsv3.model.backends.torch import TorchBackend
from dsv3.model.init import materialise
from dsv3.model.transformer import Transformer
from dsv3.parallel.dispatch import LocalDispatcher, LocalHandle


@pytest.mark.parametrize("row_multiple", [1, 4])
def test_rows_carry_their_token_and_weight(row_multiple: int) -> None:
    ids = torch.tensor([[2, 0], [0, 3], [2, 3], [0, 2]])
    x, scores = torch.randn(4, 5), torch.rand(4, 2)
    dispatcher = LocalDispatcher(4)
    rows, weights, rows_per_expert, handle = dispatcher.dispatch(
        x, ids, scores, row_multiple=row_multiple
    )
    expected = torch.tensor([-(-n // row_multiple) * row_multiple for n in (3, 0, 3, 2)])
    assert rows_per_expert.dtype == torch.int64
    assert torch.equal(rows_per_expert, expected)
    assert rows.shape[0] == weights.shape[0] >= rows_per_expert.sum()
    for token in range(4):
        for k in range(2):
            row = int(handle.row_TK[token, k])
            assert torch.equal(rows[row], x[token])
            assert weights[row] == scores[token, k]
            ends = rows_per_expert.cumsum(0)
            assert int((ends <= row).sum()) == ids[token, k]
    combined = dispatcher.combine(rows * weights.unsqueeze(1), handle)
    torch.testing.assert_close(combined, x * scores.sum(dim=1, keepdim=True))
    torch.testing.assert_close(weights.sum(), scores.sum())  # filling rows weigh nothing


class Recording(LocalDispatcher):
    """Notes what it is asked for."""

    def dispatch(
        self, x_TD: Tensor, ids_TK: Tensor, scores_TK: Tensor, *, row_multiple: int
    ) -> tuple[Tensor, Tensor, Tensor, LocalHandle]:
        self.asked = row_multiple
        return super().dispatch(x_TD, ids_TK, scores_TK, row_multiple=row_multiple)


class Padding(TorchBackend):
    """A backend whose experts take rows in sixteens, as FP8 kernels do."""

    def row_multiple(self, experts: nn.Module) -> int:
        return 16


def test_a_backend_gets_the_row_multiple_it_asks_for_and_values_do_not_change() -> None:
    config = compose(["model=moe_nano"]).config.model
    tokens = torch.randint(config.vocab_size, (2, 33), generator=torch.Generator().manual_seed(1))
    losses, gradients = [], []
    for backend in (TorchBackend(), Padding()):
        dispatcher = Recording(config.n_routed_experts)
        with torch.device("meta"):
            model = Transformer(config, backend=backend, dispatcher=dispatcher)
        materialise(model, config, seed=1, device=torch.device("cpu"), dtype=torch.float32)
        loss = model(tokens[:, :-1], tokens[:, 1:]).objective
        loss.backward()
        assert dispatcher.asked == (16 if isinstance(backend, Padding) else 1)
        losses.append(loss.item())
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    # Other shapes may be summed in another order.
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    for name, plain in gradients[0].items():
        assert (gradients[1][name] - plain).norm() < 1e-5 * plain.norm(), name


def test_bf16_experts_on_a_cpu_ask_for_rows_in_32s() -> None:
    experts = TorchBackend().experts(2, 8, 4)
    assert TorchBackend().row_multiple(experts) == 1
    assert TorchBackend().row_multiple(experts.bfloat16()) == 32
