"""Rules between keys: what is impossible on every machine. Each is a small pure function."""

from collections.abc import Iterator

from dsv3.config import launcher_rules, pipeline_rules, precision_rules
from dsv3.config.curves import Curve
from dsv3.config.data import SMALLEST_VOCABULARY
from dsv3.config.diff import leaves
from dsv3.config.root import RunConfig
from dsv3.config.secret_rules import no_value_holds_a_secret
from dsv3.config.suggest import listed
from dsv3.errors import Problem

LARGEST_SUGGESTION = 4096
LARGEST_BF16_BETA = 0.996  # BF16 has 8 bits: half a last place is up to 2^-8 of a number
SMALLEST_FP32, LARGEST_FP32 = 2.0**-126, (2 - 2.0**-23) * 2.0**127


def broken(config: RunConfig) -> list[Problem]:
    """Every rule that `config` breaks, in the order of RULES."""
    return [problem for rule in RULES for problem in rule(config)]


def experts_divide_into_groups(config: RunConfig) -> Iterator[Problem]:
    """Groups have the same number of experts (report section 2.1.2, node-limited routing)."""
    m = config.model
    if m.n_routed_experts % m.n_group != 0:
        yield Problem(
            f"model.n_group={m.n_group}",
            f"must divide model.n_routed_experts={m.n_routed_experts}",
            f"use one of {listed(_group_counts(m.n_routed_experts))}",
        )


def chosen_groups_exist(config: RunConfig) -> Iterator[Problem]:
    """A token cannot be sent to more groups than there are."""
    m = config.model
    if m.topk_group > m.n_group:
        yield Problem(
            f"model.topk_group={m.topk_group}",
            f"must not exceed model.n_group={m.n_group}",
            f"use 1 to {m.n_group}",
        )


def groups_hold_two_experts(config: RunConfig) -> Iterator[Problem]:
    """A group is rated by the sum of its two best scores."""
    m = config.model
    if m.n_group > 1 and m.n_group == m.n_routed_experts:
        yield Problem(
            f"model.n_group={m.n_group}",
            f"leaves one of model.n_routed_experts={m.n_routed_experts} in a group,"
            " but a group is rated by its two best experts",
            f"use one of {listed(_group_counts(m.n_routed_experts))}",
        )


def chosen_groups_hold_top_k(config: RunConfig) -> Iterator[Problem]:
    """The experts of a token all lie in its chosen groups."""
    m = config.model
    reachable = min(m.topk_group, m.n_group) * (m.n_routed_experts // m.n_group)
    if m.num_experts_per_tok > reachable:
        yield Problem(
            f"model.num_experts_per_tok={m.num_experts_per_tok}",
            f"must not exceed the {reachable} experts in model.topk_group={m.topk_group} of"
            f" model.n_group={m.n_group} groups (model.n_routed_experts={m.n_routed_experts})",
            f"use at most {reachable}, or raise model.topk_group" if reachable > 0 else "",
        )


def dense_layers_exist(config: RunConfig) -> Iterator[Problem]:
    """Leading dense blocks are blocks of the model."""
    m = config.model
    if m.first_k_dense_replace > m.num_hidden_layers:
        yield Problem(
            f"model.first_k_dense_replace={m.first_k_dense_replace}",
            f"must not exceed model.num_hidden_layers={m.num_hidden_layers}",
            f"use 0 to {m.num_hidden_layers}",
        )


def rotary_width_is_even(config: RunConfig) -> Iterator[Problem]:
    """Rotary positions turn pairs of channels."""
    width = config.model.qk_rope_head_dim
    if width % 2 != 0:
        yield Problem(
            f"model.qk_rope_head_dim={width}",
            "must be even, because rotary positions turn pairs of channels",
            f"use {width - 1} or {width + 1}" if width > 1 else "use 2",
        )


def yarn_reaches_the_context(config: RunConfig) -> Iterator[Problem]:
    """YaRN makes positions up to factor x the original context."""
    yarn, longest = config.model.rope_scaling, config.model.max_position_embeddings
    if yarn is None:
        return
    if longest > yarn.factor * yarn.original_max_position_embeddings:
        yield Problem(
            f"model.max_position_embeddings={longest}",
            f"must not exceed model.rope_scaling.factor={yarn.factor:g} x"
            f" original_max_position_embeddings={yarn.original_max_position_embeddings}",
            f"use a factor of at least {longest / yarn.original_max_position_embeddings:g}",
        )
    if yarn.beta_fast <= yarn.beta_slow:
        yield Problem(
            f"model.rope_scaling.beta_fast={yarn.beta_fast:g}",
            f"must be greater than model.rope_scaling.beta_slow={yarn.beta_slow:g}",
            "the report uses 32 and 1",
        )


def experts_divide_over_ranks(config: RunConfig) -> Iterator[Problem]:
    """Every rank of an expert-parallel group holds the same number of experts."""
    experts, ranks = config.model.n_routed_experts, config.parallelism.expert_parallel_size
    if experts % ranks != 0:
        yield Problem(
            f"parallelism.expert_parallel_size={ranks}",
            f"must divide model.n_routed_experts={experts}",
            f"use one of {listed(_divisors(experts))}",
        )


def batch_divides_over_ranks(config: RunConfig) -> Iterator[Problem]:
    """Every data-parallel rank has the same share of a step; micro batches follow from it."""
    batch, ranks = config.schedule.global_batch_size, config.parallelism.data_parallel_size
    if batch % ranks != 0:
        near = [size for size in (batch // ranks * ranks, -(-batch // ranks) * ranks) if size]
        yield Problem(
            f"schedule.global_batch_size={batch}",
            f"must be a multiple of the {ranks} data-parallel ranks",
            f"use {' or '.join(map(str, near))}",
        )


def sequence_fits_the_positions(config: RunConfig) -> Iterator[Problem]:
    """There are positions for every token of a sample."""
    length, longest = config.schedule.sequence_length, config.model.max_position_embeddings
    if length > longest:
        yield Problem(
            f"schedule.sequence_length={length}",
            f"must not exceed model.max_position_embeddings={longest}",
            f"use at most {longest}, or raise model.max_position_embeddings",
        )


def curves_end_with_the_axis(config: RunConfig) -> Iterator[Problem]:
    """The phases of a curve cover the reference axis: no phase is lost, no stretch is unsaid."""
    axis = config.schedule.reference_tokens
    for name, value in config.schedule:
        if not isinstance(value, Curve) or not value.phases or value.phases[-1].until == axis:
            continue
        last = len(value.phases) - 1
        yield Problem(
            f"schedule.{name}.phases.{last}.until={value.phases[last].until}",
            f"must be schedule.reference_tokens={axis}, the end of the curve's axis",
            f"use {axis}; schedule.total_tokens stretches the axis",
        )


def vocabulary_fits_the_embedding(config: RunConfig) -> Iterator[Problem]:
    """A tokenizer trained on the data has all bytes, and no id beyond the embedding."""
    entries, rows = config.data.tokenizer_vocab_size, config.model.vocab_size
    if config.data.tokenizer is not None:
        return
    if entries < SMALLEST_VOCABULARY:
        remedy = "raise model.vocab_size, which it follows" if entries == rows else "raise it"
        yield Problem(
            f"data.tokenizer_vocab_size={entries}",
            f"must be at least {SMALLEST_VOCABULARY}: 256 bytes and 5 special tokens",
            remedy,
        )
    if entries > rows:
        yield Problem(
            f"data.tokenizer_vocab_size={entries}",
            f"must not exceed model.vocab_size={rows}",
            f"use at most {rows}, or leave it out: it follows model.vocab_size",
        )


def source_has_its_path(config: RunConfig) -> Iterator[Problem]:
    """Only the user's own files have a path."""
    source, path = config.data.source, config.data.path
    if source == "jsonl" and path is None:
        yield Problem(
            "data.path=null", "data.source=jsonl needs a path", "add data.path=FILE_OR_DIRECTORY"
        )
    if source == "installed_text" and path is not None:
        yield Problem(
            f"data.path={path}",
            "data.source=installed_text finds its text by itself",
            "add data=jsonl to train on the path, or leave the path out",
        )


def source_has_its_shares(config: RunConfig) -> Iterator[Problem]:
    """Installed text is shared out over domains; the domains of files keep their proportions."""
    source, shares = config.data.source, config.data.domain_shares
    if source == "jsonl" and shares is not None:
        yield Problem("data.domain_shares", "for data.source=installed_text only", "set it to null")
    if source == "installed_text" and (not shares or sum(shares.values()) <= 0):
        yield Problem(
            "data.domain_shares",
            "data.source=installed_text needs a positive share of a domain",
            "set data.domain_shares.python=1, say",
        )


def an_arm_has_only_its_own_knobs(config: RunConfig) -> Iterator[Problem]:
    """A speed or strength that the arm does not use would be believed to work.

    The expert bias is allowed with both scoring functions: the auxiliary-loss-free paper
    (arXiv 2408.15664) also measures it on softmax scores.
    """
    balance = config.balance
    if not balance.has_expert_bias and balance.bias_update_speed != 0:
        yield Problem(
            f"balance.bias_update_speed={balance.bias_update_speed:g}",
            f"balance.strategy={balance.strategy} has no expert bias to update",
            "choose balance=aux_free, or leave the speed out",
        )
    for key, value in balance.foreign_coeffs.items():
        own = listed([f"balance.{name}" for name in balance.coeffs])
        yield Problem(
            f"balance.{key}={value:g}",
            f"balance.strategy={balance.strategy} has no such loss",
            f"set {own}, or choose another arm" if own else "choose an arm that has it",
        )


def there_are_experts_to_balance(config: RunConfig) -> Iterator[Problem]:
    """A model without MoE blocks has no load."""
    if config.balance.strategy != "none" and config.model.num_moe_layers == 0:
        yield Problem(
            f"balance.strategy={config.balance.strategy}",
            f"a model without MoE blocks (model.first_k_dense_replace="
            f"{config.model.first_k_dense_replace}) has nothing to balance",
            "choose balance=none, or lower model.first_k_dense_replace",
        )


def batch_loss_counts_what_is_routed(config: RunConfig) -> Iterator[Problem]:
    """The load of a whole batch is that of the step's own counters, and these count routing."""
    balance = config.balance
    if balance.strategy == "aux_batch" and balance.aux_loss_selection != "routed":
        yield Problem(
            f"balance.aux_loss_selection={balance.aux_loss_selection}",
            "balance.strategy=aux_batch counts where the tokens of a batch went",
            "use balance.aux_loss_selection=routed",
        )


def mtp_leaves_tokens_to_predict(config: RunConfig) -> Iterator[Problem]:
    """Module k has sequence_length - k positions; all of them need one at least."""
    depth, length = config.mtp.num_nextn_predict_layers, config.schedule.sequence_length
    if depth >= length:
        yield Problem(
            f"mtp.num_nextn_predict_layers={depth}",
            f"must be less than schedule.sequence_length={length}",
            f"use 0 to {length - 1}",
        )


def mtp_weight_has_its_modules(config: RunConfig) -> Iterator[Problem]:
    """A weight of a loss that nothing makes would be believed to work."""
    if config.mtp.num_nextn_predict_layers == 0 and config.mtp.loss_coeff != 0:
        yield Problem(
            f"mtp.loss_coeff={config.mtp.loss_coeff:g}",
            "mtp.num_nextn_predict_layers=0 has no loss to weigh",
            "choose mtp=depth1, or leave the coefficient out",
        )


def moments_can_decay(config: RunConfig) -> Iterator[Problem]:
    """Rounded to BF16, a moment that shrinks by less than half a last place stays for ever."""
    optimizer = config.optimizer
    if optimizer.moment_dtype != "bf16":
        return
    for name in ("beta1", "beta2"):
        if getattr(optimizer, name) > LARGEST_BF16_BETA:
            yield Problem(
                f"optimizer.{name}={getattr(optimizer, name):g}",
                "is too near to 1 for optimizer.moment_dtype=bf16: rounding undoes the decay",
                f"use at most {LARGEST_BF16_BETA}, or optimizer.moment_dtype=fp32",
            )


def numbers_fit_fp32(config: RunConfig) -> Iterator[Problem]:
    """Beyond these bounds a number is infinite or zero by the time it meets a tensor."""
    for key, value in leaves(config.model_dump(mode="json")):
        if not isinstance(value, float) or value == 0:
            continue
        if not SMALLEST_FP32 <= abs(value) <= LARGEST_FP32:
            yield Problem(
                f"{key}={value:g}",
                "is beyond the range of FP32, in which it is used",
                f"use {SMALLEST_FP32:.2g} to {LARGEST_FP32:.2g}",
            )


def batch_is_whole_quanta(config: RunConfig) -> Iterator[Problem]:
    """The batch follows its curve in equal portions, up to the whole."""
    batch, quantum = config.schedule.global_batch_size, config.schedule.batch_size_quantum
    if batch % quantum == 0:
        return
    near = [size for size in (batch // quantum * quantum, -(-batch // quantum) * quantum) if size]
    fitting = listed(_quanta(config))
    yield Problem(
        f"schedule.global_batch_size={batch}",
        f"must be a multiple of schedule.batch_size_quantum={quantum}",
        f"use {' or '.join(map(str, near))}"
        + (f", or schedule.batch_size_quantum out of {fitting}" if fitting else ""),
    )


def quanta_divide_over_ranks(config: RunConfig) -> Iterator[Problem]:
    """Every rank has the same share of every batch on the way up.

    A batch of one quantum throughout is the matter of `batch_divides_over_ranks`.
    """
    s, ranks = config.schedule, config.parallelism.data_parallel_size
    if s.batch_size_quantum == s.global_batch_size or s.batch_size_quantum % ranks == 0:
        return
    fitting = listed(_quanta(config))
    yield Problem(
        f"schedule.batch_size_quantum={s.batch_size_quantum}",
        f"must be a multiple of the {ranks} data-parallel ranks",
        f"use one of {fitting}" if fitting else f"use a multiple of {ranks}",
    )


def a_recorded_step_is_made(config: RunConfig) -> Iterator[Problem]:
    """A timeline that never comes would be waited for."""
    step, last = config.run.timeline_step, config.schedule.num_steps
    if step is not None and step > last:
        yield Problem(
            f"run.timeline_step={step}",
            f"must not exceed the {last} steps of the run",
            f"use 1 to {last}",
        )


def recomputed_parts_are_not_compiled(config: RunConfig) -> Iterator[Problem]:
    """A compiler takes a block whole: what is recomputed inside of it, it would not see."""
    if config.launcher.compile and config.recompute not in ("none", "full"):
        yield Problem(
            f"recompute={config.recompute}",
            "drops parts of a block, which launcher.compile=true compiles whole",
            "use recompute=full or none, or launcher.compile=false",
        )


RULES = (
    experts_divide_into_groups,
    chosen_groups_exist,
    groups_hold_two_experts,
    chosen_groups_hold_top_k,
    dense_layers_exist,
    rotary_width_is_even,
    yarn_reaches_the_context,
    experts_divide_over_ranks,
    batch_divides_over_ranks,
    *pipeline_rules.RULES,
    sequence_fits_the_positions,
    curves_end_with_the_axis,
    vocabulary_fits_the_embedding,
    source_has_its_path,
    source_has_its_shares,
    an_arm_has_only_its_own_knobs,
    there_are_experts_to_balance,
    batch_loss_counts_what_is_routed,
    mtp_leaves_tokens_to_predict,
    mtp_weight_has_its_modules,
    moments_can_decay,
    numbers_fit_fp32,
    batch_is_whole_quanta,
    quanta_divide_over_ranks,
    a_recorded_step_is_made,
    recomputed_parts_are_not_compiled,
    *precision_rules.RULES,
    *launcher_rules.RULES,
    no_value_holds_a_secret,
)


def _group_counts(experts: int) -> list[int]:
    """Numbers of groups with at least two experts each; 1 always goes."""
    return [count for count in _divisors(experts) if count == 1 or count < experts]


def _quanta(config: RunConfig) -> list[int]:
    """Portions of the batch that divide it and divide over the ranks."""
    batch, ranks = config.schedule.global_batch_size, config.parallelism.data_parallel_size
    return [size * ranks for size in _divisors(batch // ranks)] if batch % ranks == 0 else []


def _divisors(number: int) -> list[int]:
    """Divisors worth suggesting: not beyond what anybody has, however large the number."""
    largest = min(number, LARGEST_SUGGESTION)
    return [divisor for divisor in range(1, largest + 1) if number % divisor == 0]
