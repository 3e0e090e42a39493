"""An arm with a second difference is refused, whatever it is and wherever it comes from."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsv3.config.compose import compose
from dsv3.config.diff import leaves
from dsv3.config.recipe import Recipe
from dsv3.config.root import RunConfig
from dsv3.errors import ConfigError
from dsv3.sweep.arms import Arm, Sweep
from dsv3.sweep.confound import derived, derived_differences, refuse_confounded
from dsv3.sweep.expand import sweep_of

NANO = compose(["model=moe_nano"]).config
NONE = compose(["model=moe_nano", "balance=none"]).config
KEYS = [key for key, _ in leaves(NANO.model_dump(mode="json"))]
BESIDE = [key for key in KEYS if not key.startswith("balance.") and key != "seed"]


def recipe(**changes: object) -> Recipe:
    content: dict[str, object] = {
        "question": "Which?",
        "axis": ["balance"],
        "baseline": "free",
        "arms": {"free": ["balance=aux_free"], "none": ["balance=none"]},
        "seeds": [1],
        "metric": "loss",
        "rule": {"better": "lower"},
    }
    return Recipe.model_validate(content | changes)


def sweep(
    *others: RunConfig, base: RunConfig = NANO, name: str = "none", of: Recipe | None = None
) -> Sweep:
    arms = [Arm("free", base, ()), *(Arm(name, other, ()) for other in others)]
    return Sweep("mine", of or recipe(), "free", tuple(arms))


def problems(one: Sweep) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        refuse_confounded(one)
    return [str(problem) for problem in caught.value.problems]


def with_another(config: RunConfig, key: str) -> RunConfig:
    """`config` with another value at `key`, valid or not: arms are only compared."""

    def change(data: object, path: list[str]) -> object:
        if not path:
            return data + 1 if type(data) in (int, float) else f"not {data}"  # type: ignore[operator]
        if isinstance(data, list):
            return [change(v, path[1:]) if i == int(path[0]) else v for i, v in enumerate(data)]
        assert isinstance(data, dict)
        return {**data, path[0]: change(data[path[0]], path[1:])}

    changed = change(config.model_dump(mode="json"), key.split("."))
    return SimpleNamespace(  # type: ignore[return-value]
        seed=config.seed,
        model=config.model,
        mtp=config.mtp,
        schedule=config.schedule,
        model_dump=lambda **_: changed,
    )


def test_arms_that_differ_in_the_axis_alone_pass() -> None:
    refuse_confounded(sweep(NONE))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(key=st.sampled_from(BESIDE))
def test_any_second_difference_is_refused_naming_both_keys(key: str) -> None:
    other = with_another(NONE, key)
    with pytest.MonkeyPatch.context() as patch:  # ids are of real configurations; this is none
        patch.setattr("dsv3.sweep.confound.identity_digest", id)
        (message,) = problems(sweep(other))
    assert "recipe=mine, arm none: varies balance.strategy (aux_free -> none)" in message
    assert f", and differs from the baseline free in {key} (" in message


SETTABLE = [
    "schedule.lr=0.125",
    "schedule.global_batch_size=16",
    "schedule.total_tokens=2048",
    "model.num_hidden_layers=3",
    "mtp=depth1",
    "optimizer.beta2=0.5",
    "data.max_bytes=1000000",
    "precision=bf16",
    "parallelism=ep2",
    "launcher.threads_per_rank=1",
    "run.tag=other",
    "evaluation.sequences=32",
    "schedule/lr_curve=cosine",
    "recompute=full",
]


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(words=st.lists(st.sampled_from(SETTABLE), min_size=1, max_size=3, unique=True))
def test_a_second_word_of_an_arm_is_refused_naming_both(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "recipe").mkdir(exist_ok=True)
    arms = f"{{free: [balance=aux_free], none: [balance=none, {', '.join(words)}]}}"
    (tmp_path / "recipe" / "mine.yaml").write_text(
        f"question: q\naxis: [balance]\nbaseline: free\narms: {arms}\nseeds: [1]\nmetric: loss\n"
        "rule: {better: lower}\n"
    )
    with pytest.raises(ConfigError) as caught:
        sweep_of(["recipe=mine", "model=moe_nano"], multirun=False, config_dir=tmp_path)
    found = [str(problem) for problem in caught.value.problems]
    assert len(found) == len(words)
    for word, message in zip(words, found, strict=True):
        assert f"arms.none: {word}: is a second difference beside balance=none: " in message


def test_what_a_file_brings_along_is_a_second_difference(tmp_path: Path) -> None:
    """No word of the arm says so: the option of the group that it chooses changes more."""
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text(
        "question: q\naxis: [model]\nbaseline: small\nseeds: [1]\nmetric: loss\n"
        "arms: {small: [model=moe_nano], large: [model=moe_tiny]}\nrule: {better: lower}\n"
        "derived: [parameters.total, parameters.active, flops_per_token, tokens, steps]\n"
    )
    with pytest.raises(ConfigError) as caught:
        sweep_of(["recipe=mine"], multirun=False, config_dir=tmp_path)
    found = [str(problem) for problem in caught.value.problems]
    assert all("arm large: varies model.name (moe_nano -> moe_tiny), " in each for each in found)
    second = {each.partition("differs from the baseline small in ")[2].split()[0] for each in found}
    assert {"schedule.total_tokens", "schedule.lr", "data.tokenizer_vocab_size"} <= second
    assert found[0].endswith(
        ", too: an arm is one marked difference (axis: model); set schedule.total_tokens"
        " for every arm"
        " in `setup`, or put it into the axis"
    )


def test_what_follows_has_to_be_declared() -> None:
    mtp = compose(["model=moe_nano", "mtp=depth1"]).config
    of = recipe(axis=["mtp"])
    found = problems(sweep(mtp, name="mtp", of=of))
    assert found[0] == (
        "recipe=mine, arm mtp: varies mtp.num_nextn_predict_layers (0 -> 1), mtp.loss_coeff"
        " (0.0 -> 0.3), from which parameters.total (1524992 -> 1918880) follows; declare"
        " parameters.total in `derived`, if that difference is meant"
    )
    assert len(found) == 3
    declared = ["parameters.total", "parameters.active", "flops_per_token"]
    refuse_confounded(sweep(mtp, name="mtp", of=recipe(axis=["mtp"], derived=declared)))
    assert len(problems(sweep(mtp, name="mtp", of=recipe(axis=["mtp"], derived=declared[1:])))) == 1


def test_steps_and_tokens_are_derived_too() -> None:
    longer = compose(["model=moe_nano", "schedule.total_tokens=1048576"]).config
    found = problems(sweep(longer, of=recipe(axis=["schedule.total_tokens"])))
    assert ["tokens (524288 -> 1048576) follows" in found[0], "steps (" in found[1]] == [True, True]
    declared = recipe(axis=["schedule.total_tokens"], derived=["tokens", "steps"])
    refuse_confounded(sweep(longer, of=declared))


def test_an_arm_that_is_the_baseline_is_refused() -> None:
    (message,) = problems(sweep(NANO, name="same"))
    assert message.startswith("arms free and same: are the same run moe_nano-aux_free-s1-")
    assert message.endswith("; take one of them out")


def test_two_arms_that_are_the_same_are_refused() -> None:
    arms = (Arm("free", NANO, ()), Arm("a", NONE, ()), Arm("b", NONE, ()))
    (message,) = problems(Sweep("mine", recipe(), "free", arms))
    assert message.startswith("arms a and b: are the same run ")


def test_an_axis_that_changes_no_run_is_refused() -> None:
    other = compose(["model=moe_nano", "parallelism=ep2"]).config
    (message,) = problems(sweep(other, name="ep2", of=recipe(axis=["parallelism"])))
    assert "differ in parallelism.expert_parallel_size alone, which is no part" in message


def test_each_seed_is_compared_with_the_baselines_run_of_that_seed() -> None:
    runs = [
        Arm(name, compose(["model=moe_nano", f"balance={balance}", f"seed={seed}"]).config, ())
        for seed in (1, 2)
        for name, balance in (("free", "aux_free"), ("none", "none"))
    ]
    refuse_confounded(Sweep("mine", recipe(), "free", tuple(runs)))
    other = runs[3].config.model_copy(update={"run_root": "elsewhere"})
    (message,) = problems(Sweep("mine", recipe(), "free", (*runs[:3], Arm("none", other, ()))))
    assert "in run_root (runs -> elsewhere)" in message


def test_differences_that_follow_are_told() -> None:
    mtp = compose(["model=moe_nano", "mtp=depth1"]).config
    table = derived_differences(sweep(mtp, name="mtp"))
    assert table["free"] == {}
    assert set(table["mtp"]) == {"parameters.total", "parameters.active", "flops_per_token"}
    assert table["mtp"]["parameters.total"] == (1_524_992, derived(mtp)["parameters.total"])
