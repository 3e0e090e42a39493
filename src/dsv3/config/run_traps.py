"""Traps of model, MTP, schedule, arithmetic and evaluation; those of the load: `balance_traps`."""

import math
from collections.abc import Iterator

from dsv3.config.balance_traps import is_flat, largest
from dsv3.config.curves import Curve
from dsv3.config.finding import Finding
from dsv3.config.root import RunConfig

PAPER_WIDTH = 1024
"""hidden_size from which a model is one of the papers' (arXiv 2408.15664 has 1024, V3 7168)."""
LARGE_WIDTH = 2048
"""V2-Lite's hidden_size, the smallest of the report's scales."""
REPORT_STD, LARGEST_STD = 0.006, 0.012
PRE_TRAINING_LENGTH = 4096
LARGEST_THETA = 1e5
SCALE_TOLERANCE = 1.5
SMALLEST_LR, LARGEST_LR, LARGEST_PAPER_LR = 1e-5, 1e-2, 2e-3
LARGEST_FP32_MODEL = 10**9
SMALLEST_NORM, LARGEST_NORM = 0.01, 100.0
LONG_SCHEDULE = 10 * 10**12
FEWEST_SEQUENCES = 8
SHORT_RAMP = 0.05
"""Share of a run's tokens that a ramp may take until a pipeline is full."""


def large_initial_weights(config: RunConfig) -> Iterator[Finding]:
    """0.02 is a default of libraries; three public recipes have it."""
    std, width = config.model.initializer_range, config.model.hidden_size
    if width >= PAPER_WIDTH and std > LARGEST_STD:
        yield Finding(
            "initial-std-large",
            f"model.initializer_range={std:g}",
            f"all published models of this kind began with {REPORT_STD} (report section 4.2);"
            " 0.02 in released files is a default of the library",
            f"use {REPORT_STD}",
        )


def yarn_before_the_extension(config: RunConfig) -> Iterator[Finding]:
    """Megatron-Bridge pre-trains with a rotary scaling of 40."""
    yarn = config.model.rope_scaling
    if yarn is not None:
        yield Finding(
            "yarn-in-pre-training",
            f"model.rope_scaling.factor={yarn.factor:g}",
            "the report pre-trains on 4096 positions without YaRN and extends the context"
            " afterwards (section 4.3)",
            "use model.rope_scaling=null",
        )


def far_rotary_base(config: RunConfig) -> Iterator[Finding]:
    """FlagScale's 16B has 1e6."""
    theta, length = config.model.rope_theta, config.schedule.sequence_length
    if theta > LARGEST_THETA and length <= PRE_TRAINING_LENGTH:
        yield Finding(
            "rope-theta-large",
            f"model.rope_theta={theta:g}",
            f"a base for long contexts on sequences of {length}; V2 and V3 have 10000"
            " (arXiv 2412.19437, released configuration)",
            "use model.rope_theta=10000",
        )


def short_sequences(config: RunConfig) -> Iterator[Finding]:
    """NeMo Automodel's V3 recipe trains on 1024 tokens."""
    length = config.schedule.sequence_length
    if config.model.hidden_size >= LARGE_WIDTH and length < PRE_TRAINING_LENGTH:
        yield Finding(
            "short-sequences",
            f"schedule.sequence_length={length}",
            "models of the report's scales were pre-trained on 4096 tokens (section 4.2)",
            f"use {PRE_TRAINING_LENGTH}",
        )


def groups_without_limit(config: RunConfig) -> Iterator[Finding]:
    """MaxText's 671B configuration leaves group-limited routing off."""
    model = config.model
    if model.n_group > 1 and model.topk_group == model.n_group:
        yield Finding(
            "group-limit-off",
            f"model.topk_group={model.topk_group}",
            f"all of model.n_group={model.n_group} groups are chosen, so routing is not limited"
            " to some of them (report section 2.1.2: 4 of 8)",
            "lower model.topk_group, or use model.n_group=1",
        )


def unnormalised_gates(config: RunConfig) -> Iterator[Finding]:
    """Allowed as the auxiliary-loss-free paper has it: no normalisation, and no factor either."""
    model = config.model
    is_plain = model.scoring_func == "sigmoid" and not model.norm_topk_prob
    if is_plain and model.routed_scaling_factor != 1:
        yield Finding(
            "unnormalised-gates",
            "model.norm_topk_prob=false",
            "the report divides chosen sigmoid scores by their sum (eq. 13); without that"
            f" model.routed_scaling_factor={model.routed_scaling_factor:g} multiplies a sum of"
            " about half of top-k",
            "use model.norm_topk_prob=true, or a factor of 1 as arXiv 2408.15664 has it",
        )


def odd_routed_scale(config: RunConfig) -> Iterator[Finding]:
    """E[1/|p|] of k normalised sigmoid scores is a little below sqrt(k), its value for equal ones.

    By simulation 2.446, 2.448, 2.827 (6 of 64, 6 of 160, 8 of 256) beside 2.449, 2.449, 2.828. V3's
    published 2.5 is 0.88 of it.
    """
    model = config.model
    if model.scoring_func != "sigmoid" or not model.norm_topk_prob:
        return
    usual = math.sqrt(model.num_experts_per_tok)
    if not 1 / SCALE_TOLERANCE <= model.routed_scaling_factor / usual <= SCALE_TOLERANCE:
        yield Finding(
            "routed-scale",
            f"model.routed_scaling_factor={model.routed_scaling_factor:g}",
            f"{model.num_experts_per_tok} normalised gates need about {usual:.3g} to weigh as much"
            " as a shared expert (E[1/|p|], arXiv 2502.16982; V3 has 2.5 for 8)",
            f"use {usual:.3g}",
        )


def weight_of_mtp(config: RunConfig) -> Iterator[Finding]:
    """A sum in place of a mean, or a lost coefficient: both trained, neither said so."""
    mtp, curve = config.mtp, config.schedule.mtp_loss_coeff_curve
    if mtp.num_nextn_predict_layers == 0:
        return
    peak = mtp.loss_coeff * largest(curve)
    setting = "schedule.mtp_loss_coeff_curve"
    if mtp.loss_coeff == 0 or peak > 1:
        setting = f"mtp.loss_coeff={mtp.loss_coeff:g}"
    if peak == 0:
        reason = "the modules cost time and are never trained (report eq. 25)"
        yield Finding("mtp-weight-zero", setting, reason, "use 0.3, or choose mtp=off")
    if peak > 1:
        reason = f"lambda {peak:g} weighs the modules above the model itself (report: 0.3, eq. 25)"
        yield Finding("mtp-weight-large", setting, reason, "use mtp.loss_coeff=0.3")
    if peak > 0 and is_flat(curve) and config.schedule.reference_tokens >= LONG_SCHEDULE:
        yield Finding(
            "mtp-weight-constant",
            setting,
            "the report lowers lambda from 0.3 to 0.1 after 10T tokens (section 4.2)",
            "end a phase at 10_000_000_000_000 and go on with a third",
        )


def odd_learning_rate(config: RunConfig) -> Iterator[Finding]:
    """The zoo of Megatron-Core trains V3 at 3.9e-6, FlagScale a 16B at 3e-3."""
    peak = config.schedule.lr * largest(config.schedule.lr_curve)
    wide = config.model.hidden_size >= PAPER_WIDTH
    top = LARGEST_PAPER_LR if wide else LARGEST_LR
    if SMALLEST_LR <= peak <= top:
        return
    published = "2.2e-4 (report section 4.2) to 1e-3 (1B of arXiv 2408.15664)"
    yield Finding(
        "learning-rate",
        f"schedule.lr={config.schedule.lr:g}",
        f"its peak {peak:g} is {'below' if peak < SMALLEST_LR else 'above'} anything pre-training"
        f" of this kind is published with: {published}",
        f"use {SMALLEST_LR:g} to {top:g}",
    )


def skipped_phases(config: RunConfig) -> Iterator[Finding]:
    """Curves stretch with the run, steps do not."""
    schedule = config.schedule
    curves: dict[str, Curve] = {"lr_curve": schedule.lr_curve}
    if config.balance.has_expert_bias:
        curves["bias_update_speed_curve"] = schedule.bias_update_speed_curve
    if config.mtp.num_nextn_predict_layers > 0:
        curves["mtp_loss_coeff_curve"] = schedule.mtp_loss_coeff_curve
    for name, curve in curves.items():
        for number, tokens, step in _short_phases(config, curve):
            yield Finding(
                "phase-shorter-than-step",
                f"schedule.{name}.phases.{number}",
                f"{tokens:,.0f} tokens long where a step has {step:,}: stretched to"
                f" schedule.total_tokens={schedule.total_tokens}, the phase is skipped or a single"
                " step (report section 4.2: warm-up takes 2000)",
                "raise schedule.total_tokens, or lower the batch",
            )


def _short_phases(config: RunConfig, curve: Curve) -> Iterator[tuple[int, float, int]]:
    """Number, tokens in this run and tokens per step of each phase below one step."""
    schedule = config.schedule
    begin = 0
    for number, phase in enumerate(curve.phases):
        tokens = (phase.until - begin) * schedule.total_tokens / schedule.reference_tokens
        fraction = schedule.batch_size_curve.at(begin + 1)
        batch = max(schedule.batch_size_quantum, int(schedule.global_batch_size * fraction))
        step = batch * schedule.sequence_length
        if tokens < step:
            yield number, tokens, step
        begin = phase.until


def large_model_in_fp32(config: RunConfig) -> Iterator[Finding]:
    """Weights of experts, dense FFNs and embeddings alone: a lower bound of the parameters."""
    m = config.model
    experts = m.num_moe_layers * (m.n_routed_experts + m.n_shared_experts)
    ffn = experts * m.moe_intermediate_size + m.first_k_dense_replace * m.intermediate_size
    parameters = m.hidden_size * (3 * ffn + 2 * m.vocab_size)
    if config.precision.recipe == "fp32" and parameters > LARGEST_FP32_MODEL:
        yield Finding(
            "fp32-large-model",
            "precision.recipe=fp32",
            f"more than {parameters / 1e9:.3g}B parameters in FP32: several times the time, and"
            " not what any published model of this size was trained in (report section 3.3)",
            "use precision=bf16",
        )


def odd_clipping(config: RunConfig) -> Iterator[Finding]:
    """A norm that never binds, or always does."""
    norm = config.optimizer.gradient_clipping
    if not SMALLEST_NORM <= norm <= LARGEST_NORM:
        effect = "never clips" if norm > LARGEST_NORM else "rescales every gradient to nothing"
        yield Finding(
            "gradient-clipping",
            f"optimizer.gradient_clipping={norm:g}",
            f"a bound that {effect}; the report has 1.0 (section 4.2)",
            "use optimizer.gradient_clipping=1.0",
        )


def too_few_to_evaluate(config: RunConfig) -> Iterator[Finding]:
    """The error of a mean over n sequences is their spread over sqrt(n)."""
    sequences, shares = config.evaluation.sequences, config.data.domain_shares
    domains = 4 if shares is None else max(1, sum(share > 0 for share in shares.values()))
    fewest = FEWEST_SEQUENCES * domains
    if sequences < fewest:
        yield Finding(
            "few-evaluation-sequences",
            f"evaluation.sequences={sequences}",
            f"fewer than {FEWEST_SEQUENCES} for each of {domains} domains: the loss of a domain"
            f" is uncertain by over {1 / math.sqrt(FEWEST_SEQUENCES):.0%} of the spread between"
            " sequences, while arms differ by 0.005 nats (report section 4.5.3)",
            f"use at least {fewest}",
        )


def pipeline_that_is_never_full(config: RunConfig) -> Iterator[Finding]:
    """Steps with fewer micro batches than parts; a short ramp through them costs little."""
    layout, schedule = config.parallelism, config.schedule
    stages, fewest = layout.pipeline_parallel_size, layout.fewest_micro_batches
    shares = {s: s.batch_size // layout.data_parallel_size for s in schedule.stretches}
    short = [stretch for stretch, share in shares.items() if share < fewest]
    tokens = sum(s.steps * s.batch_size for s in short) * schedule.sequence_length
    if stages == 1 or tokens <= SHORT_RAMP * schedule.total_tokens:
        return
    bubble = (stages - 1) / (stages - 1 + min(shares[stretch] for stretch in short))
    yield Finding(
        "pipeline-bubble",
        f"parallelism.pipeline_parallel_size={stages}",
        f"{tokens / schedule.total_tokens:.0%} of the tokens come in steps of fewer than"
        f" {fewest} micro batches per rank; with 1f1b up to {bubble:.0%} of such a step is bubble,"
        " (PP - 1)(F + B) of it (report table 2)",
        "raise the batch, or use fewer stages",
    )


TRAPS = (
    large_initial_weights,
    yarn_before_the_extension,
    far_rotary_base,
    short_sequences,
    groups_without_limit,
    unnormalised_gates,
    odd_routed_scale,
    weight_of_mtp,
    odd_learning_rate,
    skipped_phases,
    large_model_in_fp32,
    odd_clipping,
    too_few_to_evaluate,
    pipeline_that_is_never_full,
)
