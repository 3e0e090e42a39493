"""A whole model in every arm: losses, gradients, recomputation, and a short training."""

from collections.abc import Callable
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv3.engine.distributed import process_group
from dsv3.model.transformer import Transformer
from dsv3.ops.gemm_log import GemmLog, recording
from dsv3.train.build import build_engine, build_model
from gpu.conftest import configuration, tokens

pytestmark = pytest.mark.gpu

Build = Callable[..., Transformer]
REPORTED_LOSS_ERROR = 0.0025  # report section 3.3: below 0.25 %
STEPS, LAST = 200, 50


def step(model: Transformer, gpu: torch.device) -> tuple[float, dict[str, Tensor], GemmLog]:
    ids, labels = tokens(configuration("torch bf16"), gpu)
    with recording() as log:
        loss = model(ids, labels).objective
        loss.backward()
    gradients = {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients, log


@pytest.mark.parametrize(
    ("arm", "reference", "of_loss", "of_gradient"),
    [
        ("te bf16", "torch bf16", 1e-3, 0.15),
        ("te fp8", "emulated fp8", 1e-3, 0.15),
        ("te fp8, fp32 scales", "emulated fp8, fp32 scales", 1e-3, 0.15),
        ("te fp8", "te bf16", 5e-3, 0.60),
    ],
)
def test_losses_and_gradients(
    build: Build, gpu: torch.device, arm: str, reference: str, of_loss: float, of_gradient: float
) -> None:
    """A router's choice falls the other way for a token in many: norms, and not elements.

    Bounds are twice what a CPU showed at this seed with a stand-in for the engine: 0.07 between
    two orders of BF16 sums, 0.38 between FP8 and BF16, both mostly in routers.
    """
    loss, gradients, _ = step(build(arm), gpu)
    wanted_loss, wanted, _ = step(build(reference), gpu)
    assert loss == pytest.approx(wanted_loss, rel=of_loss)
    assert set(gradients) == set(wanted)
    mine, theirs = (torch.cat([g[n].flatten() for n in wanted]) for g in (gradients, wanted))
    assert (mine - theirs).norm() <= of_gradient * theirs.norm()


def test_initial_weights_and_names_are_those_of_torch(build: Build) -> None:
    ours, reference = build("te fp8").state_dict(), build("torch bf16").state_dict()
    assert list(ours) == list(reference)
    assert all(torch.equal(ours[name], reference[name]) for name in reference)


@pytest.mark.parametrize("policy", ["full", "moe", "norm_and_up_projection"])
def test_recomputation_is_in_fp8_and_changes_no_bit(
    build: Build, gpu: torch.device, policy: str
) -> None:
    loss, gradients, _ = step(build("te fp8"), gpu)
    again, gradients_again, log = step(build("te fp8", f"recompute={policy}"), gpu)
    assert again == loss
    different = [n for n in gradients if not torch.equal(gradients[n], gradients_again[n])]
    assert different == []
    assert {g.left.split()[0] for g in log.calls if "proj" in g.layer} == {"e4m3"}


@pytest.mark.slow
def test_fp8_trains_as_bf16_does(te: Any, gpu: torch.device) -> None:
    """The mean loss of the last 50 of 200 steps; a noise of seeds would have to be below it too."""
    ends = {}
    with process_group("cuda"):
        for arm in ("te bf16", "te fp8", "emulated fp8"):
            config = configuration(arm)
            engine = build_engine(build_model(config, gpu), config, gpu)
            batch = tokens(config, gpu, sequences=8, length=256)
            losses = [engine.train_step([batch], lr=1e-3).loss for _ in range(STEPS)]
            engine.close()
            ends[arm] = fmean(losses[-LAST:])
            print(f"{arm}: {losses[0]:.4f} -> {ends[arm]:.4f}")
            assert ends[arm] < 0.7 * losses[0]
    for arm in ("te fp8", "emulated fp8"):
        assert abs(ends[arm] / ends["te bf16"] - 1) < REPORTED_LOSS_ERROR
