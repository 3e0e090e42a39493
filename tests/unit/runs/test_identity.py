"""Every key of the schema is on one side of the identity, and the hash agrees."""

import re
import subprocess
import sys
import warnings
from typing import Any

import pytest
from pydantic import BaseModel

from dsv3.config.root import RunConfig
from dsv3.config.section import Section
from dsv3.runs.identity import HASH_DIGITS, identity, identity_digest, run_id

# A new key of the schema has to go on one of these lists: does it change what is computed?
INSIDE = """
seed run.tag
model.name model.vocab_size model.hidden_size model.num_hidden_layers model.first_k_dense_replace
model.intermediate_size model.moe_intermediate_size model.n_routed_experts model.n_shared_experts
model.num_experts_per_tok model.n_group model.topk_group model.scoring_func model.norm_topk_prob
model.routed_scaling_factor model.num_attention_heads model.q_lora_rank model.kv_lora_rank
model.qk_nope_head_dim model.qk_rope_head_dim model.v_head_dim model.max_position_embeddings
model.rope_theta model.rope_scaling model.rms_norm_eps model.initializer_range
precision.recipe precision.backend precision.dispatch precision.scales precision.dgrad_tiling
precision.accumulate_bits precision.promote_every
schedule.total_tokens schedule.reference_tokens schedule.sequence_length schedule.global_batch_size
schedule.lr schedule.lr_curve.start schedule.lr_curve.phases
schedule.bias_update_speed_curve.start schedule.bias_update_speed_curve.phases
schedule.batch_size_quantum schedule.batch_size_curve.start schedule.batch_size_curve.phases
schedule.mtp_loss_coeff_curve.start schedule.mtp_loss_coeff_curve.phases
balance.strategy balance.bias_update_speed balance.bias_update_rule
balance.sequence_aux_loss_coeff balance.device_aux_loss_coeff
balance.communication_aux_loss_coeff balance.batch_aux_loss_coeff
balance.aux_loss_selection balance.aux_loss_scores balance.batch_counts
mtp.num_nextn_predict_layers mtp.loss_coeff mtp.input
data.source data.path data.tokenizer data.tokenizer_vocab_size data.max_bytes
data.validation_fraction data.domain_shares
optimizer.beta1 optimizer.beta2 optimizer.eps optimizer.weight_decay optimizer.gradient_clipping
optimizer.moment_dtype
ema.decay
health.on_non_finite health.on_spike health.spike_window_steps health.spike_deviations
health.largest_skips health.largest_rollbacks
""".split()  # noqa: SIM905 - a list of keys reads better without quotes

OUTSIDE = """
run_root sweep_root recompute run.heartbeat_timeout run.startup_timeout run.storage_timeout
run.digests run.timeline_step
parallelism.pipeline_parallel_size parallelism.expert_parallel_size
parallelism.expert_data_parallel_size parallelism.pipeline_schedule parallelism.zero_stage
schedule.micro_batch_size
data.cache_dir
model.balance_strengths.bias_update_speed model.balance_strengths.sequence
model.balance_strengths.device model.balance_strengths.communication
evaluation.every_steps evaluation.sequences
health.window_steps health.lowest_load_entropy health.largest_bias_spread health.largest_saturation
health.replica_check_steps health.largest_fp8_overflow health.largest_fp8_underflow
checkpoint.every_steps checkpoint.keep checkpoint.resume
tracking.backend tracking.project tracking.group tracking.name tracking.tags tracking.mode
tracking.every_steps
launcher.kind launcher.device launcher.threads_per_rank launcher.parallel launcher.keep_memory
launcher.compile launcher.profile launcher.time launcher.ranks_by launcher.save_seconds
launcher.fruitless_starts
""".split()  # noqa: SIM905 - a list of keys reads better without quotes


def keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            found += keys(inner, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


def changed(config: BaseModel, key: str) -> Any:
    """`config` with another value at `key`, valid or not: only the hash is asked."""
    name, _, rest = key.partition(".")
    old = getattr(config, name)
    if rest:
        new = changed(old, rest)
    elif isinstance(old, bool):
        new = not old
    elif isinstance(old, int | float):
        new = old + 1
    elif isinstance(old, tuple):
        new = (*old, "more")
    else:
        new = f"{old} changed"
    return config.model_copy(update={name: new})


def test_every_key_of_the_schema_is_classified_once() -> None:
    assert sorted(keys(RunConfig)) == sorted(INSIDE + OUTSIDE)
    assert len(INSIDE) > 40


@pytest.mark.parametrize("key", INSIDE)
def test_a_key_inside_changes_the_id(shipped_config: RunConfig, key: str) -> None:
    with warnings.catch_warnings(action="ignore"):  # pydantic: a value its type would refuse
        assert identity_digest(changed(shipped_config, key)) != identity_digest(shipped_config)


@pytest.mark.parametrize("key", OUTSIDE)
def test_a_key_outside_leaves_the_id_alone(shipped_config: RunConfig, key: str) -> None:
    with warnings.catch_warnings(action="ignore"):
        other = changed(shipped_config, key)
        assert other != shipped_config
        assert run_id(other) == run_id(shipped_config)


def test_the_id_is_the_same_in_every_process(shipped_config: RunConfig) -> None:
    code = (
        "import sys; from dsv3.config.root import RunConfig\n"
        "from dsv3.runs.identity import run_id\n"
        "print(run_id(RunConfig.model_validate_json(sys.stdin.read())))"
    )
    for hash_seed in ("1", "2"):
        printed = subprocess.run(
            [sys.executable, "-c", code],
            input=shipped_config.model_dump_json(),
            text=True,
            capture_output=True,
            check=True,
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout.strip()
        assert printed == run_id(shipped_config)


def test_the_id_reads_well_and_ends_in_the_hash(shipped_config: RunConfig) -> None:
    assert re.fullmatch(rf"moe_nano-aux_free-s1-[0-9a-f]{{{HASH_DIGITS}}}", run_id(shipped_config))


def test_names_of_users_cannot_leave_the_directory(shipped_config: RunConfig) -> None:
    model = shipped_config.model.model_copy(update={"name": "../../etc/$(touch x)\n" + "y" * 300})
    run = shipped_config.run.model_copy(update={"tag": "a b/c"})
    identifier = run_id(shipped_config.model_copy(update={"model": model, "run": run}))
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", identifier)
    assert "-a-b-c-" in identifier
    assert len(identifier) < 128


def test_a_name_without_letters_still_gives_an_id(shipped_config: RunConfig) -> None:
    model = shipped_config.model.model_copy(update={"name": "..."})
    assert run_id(shipped_config.model_copy(update={"model": model})).startswith("aux_free-s1-")


def test_identity_holds_no_path_of_this_machine(shipped_config: RunConfig) -> None:
    assert "run_root" not in identity(shipped_config)
    assert "cache_dir" not in identity(shipped_config)["data"]
