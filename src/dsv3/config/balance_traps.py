"""Traps of load balancing: public stacks shipped most of them, and nothing failed when they did.

Each is a small pure function from a configuration to warnings; `linter` asks them all.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import yaml

from dsv3.config.bias_speed import (
    SCORE_SPREAD,
    speed_of_swing,
    swing,
    tokens_per_expert,
    travel,
)
from dsv3.config.curves import Curve
from dsv3.config.finding import Finding
from dsv3.config.locations import shipped
from dsv3.config.root import RunConfig
from dsv3.config.yaml_text import read_vetted

REPORT_SEQUENCE_COEFF = 1e-4
STRONG_BESIDE_BIAS = 10 * REPORT_SEQUENCE_COEFF
LARGEST_SWING = 0.3
"""Twice what arXiv 2408.15664, figure 4, found noisy."""
SMALLEST_TRAVEL = 2.5 * SCORE_SPREAD
"""An expert that is scored 2.5 standard deviations above the others has to be held back."""


def bias_that_never_moves(config: RunConfig) -> Iterator[Finding]:
    """MaxText's 671B configuration has the bias on and its rate at 0.0: no balancing at all."""
    balance, curve = config.balance, config.schedule.bias_update_speed_curve
    if not balance.has_expert_bias:
        return
    reason = "the expert bias never moves, so it balances nothing (report section 2.1.2)"
    if balance.bias_update_speed == 0:
        yield Finding(
            "bias-rate-zero",
            "balance.bias_update_speed=0",
            reason,
            "the report has 0.001; choose balance=none to leave the load alone",
        )
    if largest(curve) == 0:
        yield Finding(
            "bias-rate-zero",
            "schedule.bias_update_speed_curve",
            f"it is 0 from begin to end: {reason}",
            "the report has 1 until 14.3T of 14.8T tokens, then 0",
        )


def bias_too_fast_for_the_batch(config: RunConfig) -> Iterator[Finding]:
    """Public stacks collapsed at 0.01 on small batches; `bias_speed.swing` is the estimate."""
    balance = config.balance
    if not _has_sign_rule(config) or (shaken := swing(config)) <= LARGEST_SWING:
        return
    yield Finding(
        "bias-rate-large",
        f"balance.bias_update_speed={balance.bias_update_speed:g}",
        f"an estimate says that the bias alone swings the load of an expert by {shaken:.0%} from"
        f" step to step ({tokens_per_expert(config):,.0f} tokens per expert and step); arXiv"
        " 2408.15664, figure 4, finds 0.01 noisy",
        f"use at most {speed_of_swing(config, LARGEST_SWING):.2g}, or a larger batch",
    )


def bias_too_slow_for_the_run(config: RunConfig) -> Iterator[Finding]:
    """A speed made for 200,000 steps does little in 200: see `bias_speed.travel`."""
    balance, steps = config.balance, config.schedule.num_steps
    if not _has_sign_rule(config) or not 0 < (reach := travel(config)) < SMALLEST_TRAVEL:
        return
    yield Finding(
        "bias-rate-small",
        f"balance.bias_update_speed={balance.bias_update_speed:g}",
        f"in {steps:,} steps the bias moves by {reach:.2g} at most, scores of one expert differ by"
        f" {SCORE_SPREAD:g} (standard deviation): it cannot hold an expert back; the report's"
        " 0.001 (section 4.2) is for over 200,000 steps",
        f"use more than {balance.bias_update_speed * SMALLEST_TRAVEL / reach:.2g}, or more tokens",
    )


def loss_without_strength(config: RunConfig) -> Iterator[Finding]:
    """Megatron-Bridge lost the loss of its configuration to a coefficient of 0 and went on."""
    for key, value in config.balance.coeffs.items():
        if value == 0:
            yield Finding(
                "aux-coefficient-zero",
                f"balance.{key}=0",
                f"balance.strategy={config.balance.strategy} is there to train with this loss"
                " (report section 4.5.2: the strengths of V2 or V2-Lite)",
                f"set balance.{key}, or choose an arm that does not have it",
            )


def losses_over_one_group(config: RunConfig) -> Iterator[Finding]:
    """V2's device and communication losses compare groups (arXiv 2405.04434, eq. 26 to 31).

    With one group both loads are 1, and the sum of normalised scores is 1 as well: a constant.
    """
    balance, model = config.balance, config.model
    if balance.strategy != "aux_loss_v2" or model.n_group != 1:
        return
    if balance.device_aux_loss_coeff == 0 and balance.communication_aux_loss_coeff == 0:
        return
    is_constant = balance.aux_loss_scores == "normalised" or model.scoring_func == "softmax"
    effect = "are constants without gradient" if is_constant else "only push all scores down"
    yield Finding(
        "aux-loss-without-groups",
        "model.n_group=1",
        f"the device and communication losses {effect}: they compare groups (arXiv 2405.04434,"
        " section 2.2.3)",
        "set model.n_group > 1, or both coefficients to 0",
    )


def strong_loss_beside_the_bias(config: RunConfig) -> Iterator[Finding]:
    """FlagScale's 16B has a loss of 0.02 on top of the bias; the report's is a safeguard."""
    coeff = config.balance.sequence_aux_loss_coeff
    if config.balance.has_expert_bias and coeff > STRONG_BESIDE_BIAS:
        yield Finding(
            "strong-loss-beside-bias",
            f"balance.sequence_aux_loss_coeff={coeff:g}",
            f"more than 10 times the report's {REPORT_SEQUENCE_COEFF:g} (section 4.2): the loss"
            " balances, and the arm no longer shows what the bias does",
            f"use {REPORT_SEQUENCE_COEFF:g}, or balance=aux_loss for a loss alone",
        )


def bias_on_softmax_scores(config: RunConfig) -> Iterator[Finding]:
    """The auxiliary-loss-free paper measures it (arXiv 2408.15664); the report does not use it."""
    if config.balance.has_expert_bias and config.model.scoring_func == "softmax":
        yield Finding(
            "bias-on-softmax",
            "model.scoring_func=softmax",
            "the expert bias is added to scores that lie near 1/experts, while the report's gate"
            " and its speed 0.001 are for sigmoid scores (eq. 15 and 16)",
            "use model.scoring_func=sigmoid, or a smaller balance.bias_update_speed",
        )


def load_of_another_batch(config: RunConfig) -> Iterator[Finding]:
    """The batch-wise loss of section 4.5.3 is about this batch."""
    if config.balance.strategy == "aux_batch" and config.balance.batch_counts == "previous_step":
        yield Finding(
            "previous-batch-counts",
            "balance.batch_counts=previous_step",
            "the loss per global batch uses the load of the step before, not of this batch"
            " (report section 4.5.3 balances each training batch)",
            "use balance.batch_counts=exact, which costs a pass without gradients",
        )


def other_loss_than_shipped(config: RunConfig) -> Iterator[Finding]:
    """Which selection f counts and which scores P averages makes another loss of the same name."""
    balance = config.balance
    for key in ("aux_loss_selection", "aux_loss_scores"):
        value, usual = getattr(balance, key), _shipped_arm(balance.strategy)[key]
        if value == usual:
            continue
        reason = (
            f"another loss than the {usual} of the shipped arm (report eq. 18 and 19): results"
            " under the name of this arm are not comparable"
            if balance.coeffs
            else f"balance.strategy={balance.strategy} has no balance loss (report eq. 17)"
            " to obey it"
        )
        yield Finding("other-aux-loss", f"balance.{key}={value}", reason, f"use {usual}")


def _has_sign_rule(config: RunConfig) -> bool:
    """The estimates are for steps of gamma; the proportional rule takes smaller ones."""
    return config.balance.has_expert_bias and config.balance.bias_update_rule != "proportional"


def largest(curve: Curve) -> float:
    """The largest value a curve takes after the first token."""
    return max(_corners(curve))


def is_flat(curve: Curve) -> bool:
    """Whether a curve has one value throughout."""
    return len(set(_corners(curve))) == 1


def _corners(curve: Curve) -> list[float]:
    """Values between which a curve moves; a constant first phase leaves its start unused."""
    values = [phase.value for phase in curve.phases]
    starts_at_once = bool(curve.phases) and curve.phases[0].shape == "constant"
    return values if starts_at_once else [curve.start, *values]


@cache
def _shipped_arm(strategy: str) -> dict[str, Any]:
    """The option of conf/balance of that name."""
    arm = yaml.safe_load(read_vetted(shipped("conf") / "balance" / f"{strategy}.yaml"))
    assert isinstance(arm, dict), f"{strategy} is not an option"
    return arm


TRAPS = (
    bias_that_never_moves,
    bias_too_fast_for_the_batch,
    bias_too_slow_for_the_run,
    loss_without_strength,
    losses_over_one_group,
    strong_loss_beside_the_bias,
    bias_on_softmax_scores,
    load_of_another_batch,
    other_loss_than_shipped,
)
