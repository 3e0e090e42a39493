"""Each rule between keys: the message when it is broken, and silence when it is kept."""

from typing import Any

import pytest

from dsv3.config import launcher_rules, pipeline_rules, rules
from dsv3.config.compose import compose
from dsv3.config.root import RunConfig
from unit.config import precision_cases


@pytest.fixture(scope="module")
def valid() -> dict[str, Any]:
    return compose().config.model_dump(mode="json")


def changed(data: Any, settings: dict[str, Any]) -> RunConfig:
    """The configuration with some keys set; no rule is asked."""
    for path, value in settings.items():
        data = _with(data, path.split("."), value)
    return RunConfig.model_validate(data)


def _with(data: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    return {**data, path[0]: _with(data[path[0]], path[1:], value)}


YARN = {
    "factor": 4,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1,
    "mscale_all_dim": 1,
}
RAMP = {
    "schedule.micro_batch_size": 1,
    "schedule.global_batch_size": 24,
    "schedule.batch_size_quantum": 8,
}
CONSTANT = {"until": 500, "shape": "constant", "value": 1}
NO_OTHER_CURVES = {
    f"schedule.{name}_curve": {"start": 1, "phases": []}
    for name in ("bias_update_speed", "batch_size", "mtp_loss_coeff")
}
EXPERTS = {
    "model.n_routed_experts": 32,
    "model.n_group": 4,
    "model.topk_group": 2,
    "model.num_experts_per_tok": 4,
}
RANKS = {
    "parallelism.expert_parallel_size": 2,
    "parallelism.expert_data_parallel_size": 2,
    "schedule.micro_batch_size": 8,
    "schedule.global_batch_size": 32,
}
SLURM = {"launcher.kind": "slurm", "launcher.profile": "test"}
DUALPIPEV = {"parallelism.pipeline_schedule": "dualpipev"}
FULL_PIPELINE = DUALPIPEV | {
    "model.num_hidden_layers": 16,
    "parallelism.pipeline_parallel_size": 4,
    "parallelism.expert_data_parallel_size": 2,
    "schedule.global_batch_size": 16,
    "schedule.batch_size_quantum": 2,
}
JSONL = {"data.source": "jsonl", "data.path": "x.jsonl", "data.domain_shares": None}

# rule -> (a base that keeps it, what breaks it, the message)
CASES: list[tuple[Any, dict[str, Any], dict[str, Any], str]] = [
    (
        rules.experts_divide_into_groups,
        EXPERTS,
        {"model.n_group": 3},
        "model.n_group=3: must divide model.n_routed_experts=32; use one of 1, 2, 4, 8, 16",
    ),
    (
        rules.chosen_groups_exist,
        EXPERTS,
        {"model.topk_group": 5},
        "model.topk_group=5: must not exceed model.n_group=4; use 1 to 4",
    ),
    (
        rules.groups_hold_two_experts,
        {"model.n_routed_experts": 32, "model.n_group": 16},
        {"model.n_group": 32},
        "model.n_group=32: leaves one of model.n_routed_experts=32 in a group, but a group"
        " is rated by its two best experts; use one of 1, 2, 4, 8, 16",
    ),
    (
        rules.chosen_groups_hold_top_k,
        EXPERTS | {"model.num_experts_per_tok": 16},
        {"model.num_experts_per_tok": 17},
        "model.num_experts_per_tok=17: must not exceed the 16 experts in model.topk_group=2 of"
        " model.n_group=4 groups (model.n_routed_experts=32); use at most 16, or raise"
        " model.topk_group",
    ),
    (
        rules.dense_layers_exist,
        {"model.num_hidden_layers": 4, "model.first_k_dense_replace": 4},
        {"model.first_k_dense_replace": 5},
        "model.first_k_dense_replace=5: must not exceed model.num_hidden_layers=4; use 0 to 4",
    ),
    (
        rules.rotary_width_is_even,
        {"model.qk_rope_head_dim": 8},
        {"model.qk_rope_head_dim": 7},
        "model.qk_rope_head_dim=7: must be even, because rotary positions turn pairs of channels;"
        " use 6 or 8",
    ),
    (
        rules.yarn_reaches_the_context,
        {"model.rope_scaling": YARN, "model.max_position_embeddings": 16384},
        {"model.max_position_embeddings": 32768},
        "model.max_position_embeddings=32768: must not exceed model.rope_scaling.factor=4 x"
        " original_max_position_embeddings=4096; use a factor of at least 8",
    ),
    (
        rules.yarn_reaches_the_context,
        {"model.rope_scaling": YARN},
        {"model.rope_scaling.beta_fast": 1},
        "model.rope_scaling.beta_fast=1: must be greater than model.rope_scaling.beta_slow=1;"
        " the report uses 32 and 1",
    ),
    (
        rules.experts_divide_over_ranks,
        EXPERTS | RANKS,
        {"parallelism.expert_parallel_size": 6},
        "parallelism.expert_parallel_size=6: must divide model.n_routed_experts=32; use one of"
        " 1, 2, 4, 8, 16, 32",
    ),
    (
        rules.batch_divides_over_ranks,
        RANKS,
        {"schedule.global_batch_size": 30},
        "schedule.global_batch_size=30: must be a multiple of the 4 data-parallel ranks;"
        " use 28 or 32",
    ),
    (
        rules.batch_divides_over_ranks,
        RANKS,
        {"schedule.global_batch_size": 2},
        "schedule.global_batch_size=2: must be a multiple of the 4 data-parallel ranks; use 4",
    ),
    (
        pipeline_rules.parts_have_layers,
        {"model.num_hidden_layers": 4, "parallelism.pipeline_parallel_size": 4},
        {"parallelism.pipeline_parallel_size": 5},
        "parallelism.pipeline_parallel_size=5: must not exceed model.num_hidden_layers=4;"
        " use 1 to 4",
    ),
    (
        pipeline_rules.parts_have_layers,
        {"model.num_hidden_layers": 5, "parallelism.pipeline_parallel_size": 3},
        DUALPIPEV,
        "parallelism.pipeline_parallel_size=3: makes 6 parts under"
        " parallelism.pipeline_schedule=dualpipev, more than model.num_hidden_layers=5;"
        " use 1 to 2, or parallelism.pipeline_schedule=1f1b",
    ),
    (
        pipeline_rules.parts_have_layers,
        {"model.num_hidden_layers": 1},
        DUALPIPEV,
        "parallelism.pipeline_parallel_size=1: makes 2 parts under"
        " parallelism.pipeline_schedule=dualpipev, more than model.num_hidden_layers=1;"
        " parallelism.pipeline_schedule=1f1b",
    ),
    (
        pipeline_rules.pipelines_keep_whole_gradients,
        {"parallelism.pipeline_parallel_size": 2},
        {"parallelism.zero_stage": 2},
        "parallelism.zero_stage=2: must be 1 with a pipeline"
        " (parallelism.pipeline_parallel_size=2): its gradients stay on the rank until the step"
        " ends; use parallelism.zero_stage=1",
    ),
    (
        pipeline_rules.a_full_step_fills_the_pipeline,
        FULL_PIPELINE,
        {"parallelism.pipeline_parallel_size": 5},
        "parallelism.pipeline_schedule=dualpipev: needs 10 micro batches per rank"
        " (2 x parallelism.pipeline_parallel_size=5), but a rank's share of"
        " schedule.global_batch_size=16 is 8; use schedule.global_batch_size=20 at least,"
        " parallelism.pipeline_parallel_size=4 at most, or parallelism.pipeline_schedule=1f1b",
    ),
    (
        pipeline_rules.a_full_step_fills_the_pipeline,
        FULL_PIPELINE,
        {"schedule.global_batch_size": 2},
        "parallelism.pipeline_schedule=dualpipev: needs 8 micro batches per rank"
        " (2 x parallelism.pipeline_parallel_size=4), but a rank's share of"
        " schedule.global_batch_size=2 is 1; use schedule.global_batch_size=16 at least,"
        " or parallelism.pipeline_schedule=1f1b",
    ),
    (
        rules.sequence_fits_the_positions,
        {"schedule.sequence_length": 512, "model.max_position_embeddings": 512},
        {"schedule.sequence_length": 513},
        "schedule.sequence_length=513: must not exceed model.max_position_embeddings=512;"
        " use at most 512, or raise model.max_position_embeddings",
    ),
    (
        rules.curves_end_with_the_axis,
        {
            "schedule.reference_tokens": 500,
            "schedule.lr_curve": {"start": 1, "phases": [CONSTANT]},
            **NO_OTHER_CURVES,
        },
        {"schedule.reference_tokens": 1000},
        "schedule.lr_curve.phases.0.until=500: must be schedule.reference_tokens=1000, the end of"
        " the curve's axis; use 1000; schedule.total_tokens stretches the axis",
    ),
    (
        rules.curves_end_with_the_axis,
        {
            "schedule.reference_tokens": 500,
            "schedule.lr_curve": {"start": 1, "phases": [CONSTANT]},
            **NO_OTHER_CURVES,
        },
        {
            "schedule.bias_update_speed_curve": {
                "start": 1,
                "phases": [CONSTANT, CONSTANT | {"until": 600}],
            }
        },
        "schedule.bias_update_speed_curve.phases.1.until=600: must be"
        " schedule.reference_tokens=500, the end of the curve's axis; use 500;"
        " schedule.total_tokens stretches the axis",
    ),
    (
        rules.vocabulary_fits_the_embedding,
        {"data.tokenizer": None, "data.tokenizer_vocab_size": 300, "model.vocab_size": 300},
        {"data.tokenizer_vocab_size": 301},
        "data.tokenizer_vocab_size=301: must not exceed model.vocab_size=300; use at most 300,"
        " or leave it out: it follows model.vocab_size",
    ),
    (
        rules.vocabulary_fits_the_embedding,
        {"data.tokenizer_vocab_size": 261, "model.vocab_size": 261},
        {"data.tokenizer_vocab_size": 260, "model.vocab_size": 260},
        "data.tokenizer_vocab_size=260: must be at least 261: 256 bytes and 5 special tokens;"
        " raise model.vocab_size, which it follows",
    ),
    (
        rules.source_has_its_path,
        JSONL,
        {"data.path": None},
        "data.path=null: data.source=jsonl needs a path; add data.path=FILE_OR_DIRECTORY",
    ),
    (
        rules.source_has_its_path,
        JSONL,
        {"data.source": "installed_text"},
        "data.path=x.jsonl: data.source=installed_text finds its text by itself; add data=jsonl"
        " to train on the path, or leave the path out",
    ),
    (
        rules.source_has_its_shares,
        JSONL,
        {"data.domain_shares": {"python": 1.0}},
        "data.domain_shares: for data.source=installed_text only; set it to null",
    ),
    (
        rules.source_has_its_shares,
        {},
        {"data.domain_shares": None},
        "data.domain_shares: data.source=installed_text needs a positive share of a domain;"
        " set data.domain_shares.python=1, say",
    ),
    (
        rules.source_has_its_shares,
        {},
        {"data.domain_shares": {"math": 0.0}},
        "data.domain_shares: data.source=installed_text needs a positive share of a domain;"
        " set data.domain_shares.python=1, say",
    ),
    (
        rules.an_arm_has_only_its_own_knobs,
        {"balance.strategy": "none", "balance.bias_update_speed": 0},
        {"balance.bias_update_speed": 0.25},
        "balance.bias_update_speed=0.25: balance.strategy=none has no expert bias to update;"
        " choose balance=aux_free, or leave the speed out",
    ),
    (
        rules.an_arm_has_only_its_own_knobs,
        {"balance.strategy": "aux_free_seq", "balance.sequence_aux_loss_coeff": 0.5},
        {"balance.strategy": "aux_free"},
        "balance.sequence_aux_loss_coeff=0.5: balance.strategy=aux_free has no such loss;"
        " choose an arm that has it",
    ),
    (
        rules.an_arm_has_only_its_own_knobs,
        {"balance.strategy": "aux_batch", "balance.bias_update_speed": 0},
        {"balance.device_aux_loss_coeff": 0.5},
        "balance.device_aux_loss_coeff=0.5: balance.strategy=aux_batch has no such loss;"
        " set balance.batch_aux_loss_coeff, or choose another arm",
    ),
    (
        rules.there_are_experts_to_balance,
        {
            "balance.strategy": "aux_free",
            "model.num_hidden_layers": 4,
            "model.first_k_dense_replace": 3,
        },
        {"model.first_k_dense_replace": 4},
        "balance.strategy=aux_free: a model without MoE blocks (model.first_k_dense_replace=4)"
        " has nothing to balance; choose balance=none, or lower model.first_k_dense_replace",
    ),
    (
        rules.batch_loss_counts_what_is_routed,
        {"balance.strategy": "aux_batch", "balance.aux_loss_selection": "routed"},
        {"balance.aux_loss_selection": "top_k_of_scores"},
        "balance.aux_loss_selection=top_k_of_scores: balance.strategy=aux_batch counts where the"
        " tokens of a batch went; use balance.aux_loss_selection=routed",
    ),
    (
        rules.mtp_leaves_tokens_to_predict,
        {"mtp.num_nextn_predict_layers": 3, "schedule.sequence_length": 4},
        {"mtp.num_nextn_predict_layers": 4},
        "mtp.num_nextn_predict_layers=4: must be less than schedule.sequence_length=4; use 0 to 3",
    ),
    (
        rules.mtp_weight_has_its_modules,
        {"mtp.num_nextn_predict_layers": 1, "mtp.loss_coeff": 0.3},
        {"mtp.num_nextn_predict_layers": 0},
        "mtp.loss_coeff=0.3: mtp.num_nextn_predict_layers=0 has no loss to weigh;"
        " choose mtp=depth1, or leave the coefficient out",
    ),
    (
        rules.moments_can_decay,
        {"optimizer.moment_dtype": "bf16", "optimizer.beta1": 0.996},
        {"optimizer.beta2": 0.999},
        "optimizer.beta2=0.999: is too near to 1 for optimizer.moment_dtype=bf16: rounding undoes"
        " the decay; use at most 0.996, or optimizer.moment_dtype=fp32",
    ),
    (
        rules.numbers_fit_fp32,
        {"schedule.lr": 3.4e38},
        {"schedule.lr": 3.41e38},
        "schedule.lr=3.41e+38: is beyond the range of FP32, in which it is used;"
        " use 1.2e-38 to 3.4e+38",
    ),
    (
        rules.numbers_fit_fp32,
        {"optimizer.eps": 1.2e-38, "optimizer.beta1": 0.0},
        {"optimizer.eps": 1e-38},
        "optimizer.eps=1e-38: is beyond the range of FP32, in which it is used;"
        " use 1.2e-38 to 3.4e+38",
    ),
    (
        rules.batch_is_whole_quanta,
        RAMP,
        {"schedule.batch_size_quantum": 7},
        "schedule.global_batch_size=24: must be a multiple of schedule.batch_size_quantum=7;"
        " use 21 or 28, or schedule.batch_size_quantum out of 1, 2, 3, 4, 6, 8, 12, 24",
    ),
    (
        rules.batch_is_whole_quanta,
        RAMP,
        {"schedule.batch_size_quantum": 9, "parallelism.expert_data_parallel_size": 5},
        "schedule.global_batch_size=24: must be a multiple of schedule.batch_size_quantum=9;"
        " use 18 or 27",
    ),
    (
        rules.batch_is_whole_quanta,
        RAMP,
        {"schedule.batch_size_quantum": 48},
        "schedule.global_batch_size=24: must be a multiple of schedule.batch_size_quantum=48;"
        " use 48, or schedule.batch_size_quantum out of 1, 2, 3, 4, 6, 8, 12, 24",
    ),
    (
        rules.quanta_divide_over_ranks,
        RAMP | {"parallelism.expert_data_parallel_size": 4},
        {"schedule.batch_size_quantum": 6},
        "schedule.batch_size_quantum=6: must be a multiple of the 4 data-parallel ranks;"
        " use one of 4, 8, 12, 24",
    ),
    (
        rules.quanta_divide_over_ranks,
        RAMP,
        {"parallelism.expert_data_parallel_size": 5},
        "schedule.batch_size_quantum=8: must be a multiple of the 5 data-parallel ranks;"
        " use a multiple of 5",
    ),
    (
        rules.a_recorded_step_is_made,
        {"schedule.total_tokens": 100_000, "run.timeline_step": 13},
        {"run.timeline_step": 10_000},
        "run.timeline_step=10000: must not exceed the 51 steps of the run; use 1 to 51",
    ),
    (
        rules.recomputed_parts_are_not_compiled,
        {"launcher.compile": True, "recompute": "full"},
        {"recompute": "moe"},
        "recompute=moe: drops parts of a block, which launcher.compile=true compiles whole; use"
        " recompute=full or none, or launcher.compile=false",
    ),
    *precision_cases.CASES,
    (
        launcher_rules.a_cluster_has_its_profile,
        SLURM,
        {"launcher.profile": None},
        "launcher=slurm: needs launcher.profile: what a node of the cluster has, and whose account"
        " it is; write launcher.profile=NAME; that is launchers/profiles/NAME.yaml, shipped or in"
        " --config-dir",
    ),
    (
        launcher_rules.this_machine_has_no_profile,
        SLURM,
        {"launcher.kind": "local"},
        "launcher.profile=test: names a cluster, but launcher.kind=local trains on this machine;"
        " add launcher=slurm",
    ),
    (
        launcher_rules.a_profile_is_a_name,
        SLURM,
        {"launcher.profile": "../test"},
        "launcher.profile=../test: must be a name: letters, digits, `_`, `.` and `-`; it is the"
        " NAME of launchers/profiles/NAME.yaml, shipped or in --config-dir",
    ),
    (
        launcher_rules.a_time_limit_is_one,
        SLURM | {"launcher.time": "2-00:00:00"},
        {"launcher.time": "4 hours"},
        "launcher.time=4 hours: must be minutes, or [days-]hours:minutes:seconds; as in"
        " launcher.time=4:00:00 or 2-00:00:00",
    ),
    (
        rules.no_value_holds_a_secret,
        {"run.tag": "mine", "data.path": "/data/part-?.jsonl"},
        {"data.path": "https://me:password@example.org/text.jsonl"},
        "data.path=***: holds credentials in an address, and configurations are kept and shown;"
        " give another value; programs that need the secret find it in the environment",
    ),
]


def test_every_rule_has_a_case() -> None:
    assert {case[0] for case in CASES} == set(rules.RULES)
    assert len(rules.RULES) == len(set(rules.RULES))


@pytest.mark.parametrize(("rule", "base", "breaking", "message"), CASES)
def test_rule(rule: Any, base: Any, breaking: Any, message: str, valid: dict[str, Any]) -> None:
    assert list(rule(changed(valid, base))) == []
    broken = changed(valid, base | breaking)
    assert [str(problem) for problem in rule(broken)] == [message]
    assert message in [str(problem) for problem in rules.broken(broken)]


def test_a_secret_of_the_environment_is_named_by_its_variable(
    valid: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hunter2-hunter2")
    broken = changed(valid, {"run.tag": "x-hunter2-hunter2", "tracking.tags": ["hunter2-hunter2"]})
    problems = list(rules.no_value_holds_a_secret(broken))
    assert [problem.setting for problem in problems] == ["run.tag=***", "tracking.tags.0=***"]
    assert "environment variable HF_TOKEN," in problems[0].rule


def test_suggestions_do_not_count_to_a_billion(valid: dict[str, Any]) -> None:
    broken = changed(valid, {"model.n_routed_experts": 2**61 - 1, "model.n_group": 7})
    [problem] = rules.experts_divide_into_groups(broken)
    assert problem.remedy == "use one of 1"


def test_the_default_configuration_keeps_every_rule(valid: dict[str, Any]) -> None:
    assert rules.broken(RunConfig.model_validate(valid)) == []


def test_a_given_tokenizer_is_not_measured_by_the_size_of_one_to_train(valid: Any) -> None:
    own = {"data.tokenizer": "t.json", "data.tokenizer_vocab_size": 301, "model.vocab_size": 300}
    assert list(rules.vocabulary_fits_the_embedding(changed(valid, own))) == []


def test_softmax_scores_may_be_balanced_by_the_bias(valid: Any) -> None:
    softmax = {"model.scoring_func": "softmax", "balance.strategy": "aux_free"}
    assert rules.broken(changed(valid, softmax)) == []
