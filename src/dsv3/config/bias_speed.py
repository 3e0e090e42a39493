"""Estimates about the speed of the expert bias (gamma): how far it gets, how much it shakes."""

import math
from statistics import NormalDist

from dsv3.config.root import RunConfig
from dsv3.config.schedule import ScheduleConfig

SCORE_SPREAD = 0.12
"""Standard deviation of sigmoid scores: std x sqrt(width) = 0.51 of the shipped models gives logits
of that spread at initial weights, and a sigmoid has slope 1/4 at zero."""

NORMAL = NormalDist()
SWING_PER_ROOT = 1 / (4 * NORMAL.pdf(0.0))
"""0.63: see `swing`."""


def travel(config: RunConfig) -> float:
    """How far the sign rule can move a bias at most in the whole run: the sum of its steps.

    Measured with `moe_nano` (256 steps, seed 1): with 0.0001, a travel of 0.03, the last layer ends
    at a MaxVio of 5.6; with 0.001 (0.26) at 5.9; with 0.01 (2.6) at 0.6.
    """
    schedule = config.schedule
    mean = _mean_fraction(schedule)
    return config.balance.bias_update_speed * mean * schedule.num_steps


def swing(config: RunConfig) -> float:
    """Relative change from step to step that the sign rule itself causes in the load of an expert.

    A step of gamma changes the load of an expert by x = gamma * h / SCORE_SPREAD, h the hazard of
    the normal distribution where k of E experts are chosen: near balance the bias flips by that
    much. Besides, n = tokens * k / E tokens of an expert are counted with a relative noise of
    1 / sqrt(n), so that the sign of a small imbalance is nearly a coin: the bias walks until the
    imbalance outweighs the noise. The drift back is 2 pdf(0) gamma b sqrt(n) h / SCORE_SPREAD, the
    walk gains gamma^2 a step; where they are even the load has the variance 0.63 x / sqrt(n).
    Together sqrt(x^2 + 0.63 x / sqrt(n)).

    An estimate: scores are taken as normal, tokens as independent. Tokens of a text are not, so
    that the walk is rather longer. It gives 2 % for the report (0.001, 63M tokens a step), 15 % for
    the 0.01 that arXiv 2408.15664, figure 4, finds noisy, and 16 %, 43 %, 139 % for `moe_nano` at
    0.01, 0.03, 0.1; measured there (seed 1, steps 100 to 150, mean over layers) MaxVio of a batch
    is 0.73, 0.86 and 1.65.
    """
    x, root = _flip_per_gamma(config) * config.balance.bias_update_speed, _root_n(config)
    return math.sqrt(x * x + SWING_PER_ROOT * x / root)


def speed_of_swing(config: RunConfig, largest: float) -> float:
    """The speed at which `swing` is `largest`: the positive root of its square."""
    half = SWING_PER_ROOT / _root_n(config) / 2
    return (math.sqrt(half * half + largest * largest) - half) / _flip_per_gamma(config)


def tokens_per_expert(config: RunConfig) -> float:
    """n: tokens an expert gets in one step of a balanced model."""
    model = config.model
    share = model.num_experts_per_tok / model.n_routed_experts
    return config.schedule.global_batch_size * config.schedule.sequence_length * share


def _root_n(config: RunConfig) -> float:
    return math.sqrt(tokens_per_expert(config))


def _flip_per_gamma(config: RunConfig) -> float:
    """Relative change of an expert's load per unit of bias, at balance."""
    chosen = config.model.num_experts_per_tok / config.model.n_routed_experts
    hazard = NORMAL.pdf(NORMAL.inv_cdf(1 - chosen)) / chosen if chosen < 1 else 0.0
    return hazard / SCORE_SPREAD


def _mean_fraction(schedule: ScheduleConfig) -> float:
    """Mean of the speed's curve over the run; a cosine has the mean of its ends."""
    begin, value, area = 0, schedule.bias_update_speed_curve.start, 0.0
    for phase in schedule.bias_update_speed_curve.phases:
        held = phase.value if phase.shape == "constant" else (value + phase.value) / 2
        area += held * (phase.until - begin)
        begin, value = phase.until, phase.value
    return (area + value * (schedule.reference_tokens - begin)) / schedule.reference_tokens
