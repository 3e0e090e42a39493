"""The model as a sequence of layers: stages, losses, meta construction."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dsv3.config.model import ModelConfig
from dsv3.model.transformer import Transformer

Build = Callable[..., Transformer]
Batch = tuple[Tensor, Tensor]


def test_stages_in_a_row_are_the_whole_bit_for_bit(
    config: ModelConfig, build: Build, batch: Batch
) -> None:
    whole = build(config)
    stages = [build(config, parts=[range(*cut)]) for cut in ((0, 1), (1, 3), (3, 4))]
    embedded = hidden = stages[0].embed(batch[0])
    balance_loss = torch.zeros(())
    for stage in stages:
        hidden, of_stage = stage.run_blocks(hidden)
        balance_loss = balance_loss + of_stage
    loss = stages[-1].losses(hidden, embedded, balance_loss, batch[1], None).objective
    expected = whole(*batch).objective
    assert torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    gradients = {name: p.grad for name, p in whole.named_parameters()}
    for stage in stages:
        assert all(torch.equal(p.grad, gradients[name]) for name, p in stage.named_parameters())


def test_a_rank_may_hold_parts_that_do_not_meet(
    config: ModelConfig, build: Build, batch: Batch
) -> None:
    whole, ends = build(config), build(config, parts=[range(1), range(3, 4)])
    middle = build(config, parts=[range(1, 3)])
    assert ends.holds_embedding and ends.holds_head
    assert not middle.holds_embedding and not middle.holds_head
    embedded = ends.embed(batch[0])
    hidden = middle.run_blocks(ends.run_blocks(embedded, 0)[0])[0]
    hidden = ends.run_blocks(hidden, 1)[0]
    loss = ends.losses(hidden, embedded, torch.zeros(()), batch[1], None).lm
    assert torch.equal(loss, whole(*batch).lm)
    names = [{*dict(model.named_parameters())} for model in (ends, middle, whole)]
    assert names[0] | names[1] == names[2]
    assert not names[0] & names[1]


def test_losses_agree_with_the_logits(config: ModelConfig, build: Build, batch: Batch) -> None:
    model = build(config)
    logits = model.logits(batch[0])
    by_token = F.cross_entropy(logits.transpose(1, 2), batch[1], reduction="none")
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda _: None):
        losses = model.token_losses(*batch)
    assert not saved, "evaluation keeps activations"
    assert losses.shape == batch[1].shape
    assert not losses.requires_grad
    torch.testing.assert_close(losses, by_token.detach())
    torch.testing.assert_close(model(*batch).lm, by_token.mean())


def test_no_token_sees_the_future(config: ModelConfig, build: Build, batch: Batch) -> None:
    model = build(config)
    changed = batch[0].clone()
    changed[:, 9] = (changed[:, 9] + 1) % config.vocab_size
    before, after = model.logits(batch[0]), model.logits(changed)
    # Batched products may take another path for other rows, hence no bit-equality.
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert (before[:, 9:] - after[:, 9:]).abs().amax(dim=(0, 2)).min() > 1e-6


def test_an_evaluation_without_autograd_does_not_spoil_the_next_step(
    config: ModelConfig, build: Build, batch: Batch
) -> None:
    model = build(config)
    with torch.inference_mode():
        model.eval().token_losses(*batch)
    model.train()(*batch).objective.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_other_lengths_after_each_other(config: ModelConfig, build: Build, batch: Batch) -> None:
    model = build(config)
    long = model.logits(batch[0])
    torch.testing.assert_close(model.logits(batch[0][:, :5]), long[:, :5])
    assert torch.equal(model.logits(batch[0]), long)


def test_a_model_too_large_for_this_machine_is_built_on_meta(config: ModelConfig) -> None:
    from dsv3.model.backends.torch import TorchBackend
    from dsv3.parallel.dispatch import LocalDispatcher

    huge = config.model_copy(
        update={"hidden_size": 7168, "moe_intermediate_size": 2048, "n_routed_experts": 256}
    )
    with torch.device("meta"):
        model = Transformer(huge, backend=TorchBackend(), dispatcher=LocalDispatcher(256))
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert sum(p.numel() for p in model.parameters()) > 30e9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_follow_the_weights_and_the_loss_is_fp32(
    config: ModelConfig, build: Build, batch: Batch, dtype: torch.dtype
) -> None:
    model = build(config, dtype=dtype)
    assert model.logits(batch[0]).dtype == dtype
    loss = model(*batch).objective
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in model.parameters())
