"""Multi-token prediction against report eq. 21 to 25, written position by position."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from dsv3.model.transformer import Transformer
from numerics import mtp_oracle as oracle
from numerics.small_model import balance, batch, build, model_config, mtp

LAMBDA = 0.3
SETTINGS = [(1, "normed"), (2, "normed"), (1, "residual"), (2, "residual")]


def model_with(depth: int, read: str = "normed", **changes: object) -> Transformer:
    """A model with modules whose norms are not all ones, so that each is seen to be used."""
    model = build(model_config(**changes), mtp=mtp(depth, read=read))
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
    return model


def layer_of(model: Transformer, k: int) -> nn.Module:
    """Module k, counted from 1: the layer behind the last one of the main model."""
    return model.model.layers[str(model.config.num_hidden_layers + k - 1)]


def modules_of(model: Transformer, depth: int) -> list[oracle.Module]:
    out = []
    for k in range(1, depth + 1):
        layer = layer_of(model, k)

        def block(state_BSD: Tensor, layer: nn.Module = layer) -> Tensor:
            return layer(state_BSD, torch.zeros(()), model._rotation_for(state_BSD))[0]

        out.append(
            oracle.Module(
                layer.enorm.weight,
                layer.hnorm.weight,
                layer.eh_proj.weight,
                layer.shared_head.norm.weight,
                block,
            )
        )
    return out


def main_states(model: Transformer, embedded_BSD: Tensor) -> tuple[Tensor, Tensor]:
    """The main model's states before and after its final norm."""
    hidden_BSD = model.run_blocks(embedded_BSD)[0]
    return hidden_BSD, model.model.norm(hidden_BSD)


class Formula:
    """Every quantity of one pass, with copies of the shared weights, one for each use."""

    def __init__(
        self, model: Transformer, ids: Tensor, labels: Tensor, depth: int, read: str
    ) -> None:
        self.copies = {
            name: weight.detach().clone().requires_grad_()
            for name, weight in [
                ("main embedding", model.model.embed_tokens.weight),
                ("mtp embedding", model.model.embed_tokens.weight),
                ("main head", model.lm_head.weight),
                ("mtp head", model.lm_head.weight),
            ]
        }
        eps, copies = model.config.rms_norm_eps, self.copies
        modules = modules_of(model, depth)
        before, after = main_states(model, copies["main embedding"][ids])
        first = after if read == "normed" else before
        states = oracle.states(first, ids, copies["mtp embedding"], modules, eps)
        self.main_logits = after @ copies["main head"].t()
        self.lm = nn.functional.cross_entropy(self.main_logits.flatten(0, 1), labels.flatten())
        self.mtp = oracle.losses(states, labels, modules, copies["mtp head"], eps)
        self.logits = [
            oracle.logits(state, module, copies["mtp head"], eps)
            for state, module in zip(states, modules, strict=True)
        ]
        self.objective = self.lm + LAMBDA / depth * torch.stack(self.mtp).sum()


@pytest.mark.parametrize(("depth", "read"), SETTINGS)
@pytest.mark.parametrize(("sequences", "length"), [(2, 7), (3, 3)])
def test_losses_equal_the_formula(depth: int, read: str, sequences: int, length: int) -> None:
    model = model_with(depth, read)
    ids, labels = batch(model.config, sequences, length)
    losses = model(ids, labels, torch.tensor(LAMBDA))
    formula = Formula(model, ids, labels, depth, read)
    assert losses.mtp.shape == (depth,)
    assert losses.mtp.dtype == losses.objective.dtype == torch.float32
    # FP32, means of a few dozen logarithms.
    assert losses.mtp.tolist() == pytest.approx([loss.item() for loss in formula.mtp], rel=2e-6)
    assert losses.lm.item() == pytest.approx(formula.lm.item(), rel=2e-6)
    assert losses.objective.item() == pytest.approx(formula.objective.item(), rel=2e-6)


@pytest.mark.parametrize(("depth", "read"), SETTINGS)
def test_gradients_equal_the_formula_and_shared_weights_sum_both_uses(
    depth: int, read: str
) -> None:
    model = model_with(depth, read)
    ids, labels = batch(model.config, 2, 6)
    model(ids, labels, torch.tensor(LAMBDA)).objective.backward()
    actual = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    formula = Formula(model, ids, labels, depth, read)
    formula.objective.backward()
    wanted = {name: parameter.grad for name, parameter in model.named_parameters()}
    uses = {name: copy.grad for name, copy in formula.copies.items()}
    wanted["model.embed_tokens.weight"] = uses["main embedding"] + uses["mtp embedding"]
    wanted["lm_head.weight"] = uses["main head"] + uses["mtp head"]
    for name, gradient in actual.items():
        assert wanted[name].norm() > 0, name
        # FP32 through three blocks: a few dozen roundings of 2^-24.
        assert (gradient - wanted[name]).norm() < 1e-5 * wanted[name].norm(), name
    for name, gradient in uses.items():
        assert gradient.norm() > 0, f"{name} has no use"


@contextmanager
def head_inputs(model: Transformer, depth: int) -> Iterator[list[list[Tensor]]]:
    """What each module hands to the shared head in the passes inside, by module."""
    seen: list[list[Tensor]] = [[] for _ in range(depth)]
    handles = [
        layer_of(model, k + 1).shared_head.norm.register_forward_hook(
            lambda _, __, output, k=k: seen[k].append(output)
        )
        for k in range(depth)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def predictions(model: Transformer, ids: Tensor, labels: Tensor, depth: int) -> list[Tensor]:
    """Logits [B, T-k, X] of every module, as the model itself makes them."""
    with head_inputs(model, depth) as seen, torch.no_grad():
        model(ids, labels, torch.tensor(LAMBDA))
    batch_size = ids.shape[0]
    return [
        (states[0] @ model.lm_head.weight.t()).reshape(batch_size, -1, model.config.vocab_size)
        for states in seen
    ]


@pytest.mark.parametrize("depth", [1, 2])
def test_a_token_changes_no_prediction_that_must_not_know_it(depth: int) -> None:
    """Module k at position j reads tokens up to j + k, and no further."""
    model = model_with(depth)
    ids, labels = batch(model.config, 2, 8)
    before = predictions(model, ids, labels, depth)
    for first_changed in range(1, 8):
        changed_ids, changed_labels = ids.clone(), labels.clone()
        changed_ids[:, first_changed:] = (ids[:, first_changed:] + 1) % model.config.vocab_size
        changed_labels[:, first_changed - 1 :] = (labels[:, first_changed - 1 :] + 1) % 29
        after = predictions(model, changed_ids, changed_labels, depth)
        for k, (old, new) in enumerate(zip(before, after, strict=True), start=1):
            untouched = max(0, first_changed - k)
            # Other token counts per expert may sum a token's products in another order.
            torch.testing.assert_close(new[:, :untouched], old[:, :untouched], rtol=1e-5, atol=1e-5)
            reads_it = new[:, untouched : old.shape[1]] - old[:, untouched:]
            assert (reads_it.abs().amax(-1) > 1e-4).all(), "and those that may know it, do"


@pytest.mark.parametrize("depth", [1, 2])
def test_the_label_beyond_the_input_is_a_target_and_never_an_input(depth: int) -> None:
    """t_T, the last label, is predicted by the last position of each module and read by none."""
    model = model_with(depth)
    ids, labels = batch(model.config, 2, 6)
    other = labels.clone()
    other[:, -1] = (labels[:, -1] + 1) % model.config.vocab_size
    for old, new in zip(
        predictions(model, ids, labels, depth), predictions(model, ids, other, depth), strict=True
    ):
        assert torch.equal(old, new)
    coeff = torch.tensor(LAMBDA)
    assert (model(ids, labels, coeff).mtp != model(ids, other, coeff).mtp).all()


def test_evaluation_knows_nothing_of_the_modules() -> None:
    model = model_with(2).eval()
    ids, labels = batch(model.config, 3, 6)
    before = model.token_losses(ids, labels), model.logits(ids)
    with torch.no_grad():
        for k in (1, 2):
            for parameter in layer_of(model, k).parameters():
                parameter.fill_(float("nan"))
    after = model.token_losses(ids, labels), model.logits(ids)
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    plain = build(model_config())
    own = set(plain.state_dict())
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k in own})
    assert torch.equal(plain.eval().token_losses(ids, labels), before[0])


@pytest.mark.parametrize(("depth", "read"), SETTINGS)
def test_acceptance_equals_a_plain_count(depth: int, read: str) -> None:
    # Few words and a head that has learnt a little, so that some predictions agree.
    model = model_with(depth, read, vocab_size=5, initializer_range=0.6)
    ids, labels = batch(model.config, 4, 9)
    wanted = Formula(model, ids, labels, depth, read)
    rates = oracle.acceptance(wanted.main_logits, wanted.logits)
    assert model.eval().mtp_acceptance(ids).tolist() == pytest.approx(rates, rel=1e-6)
    assert all(0 < rate < 1 for rate in rates), "a draw that tells equal from different"


def test_the_balance_loss_of_a_module_counts_its_own_positions() -> None:
    arm = balance(strategy="aux_loss", sequence_aux_loss_coeff=1.0)
    model = build(model_config(), balance=arm, mtp=mtp(2))
    ids, labels = batch(model.config, 3, 6)
    model(ids, labels, torch.tensor(LAMBDA))
    top_k = model.config.num_experts_per_tok
    tokens = [int(moe.tokens_per_expert_E.sum()) // top_k for moe in model.moe_layers().values()]
    assert tokens == [3 * 6, 3 * 5, 3 * 4]
