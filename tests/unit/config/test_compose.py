"""Composition of one run: what comes out, and what is refused with which words."""

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from dsv3.config.compose import compose
from dsv3.config.locations import shipped
from dsv3.errors import ConfigError


def refused(*overrides: str) -> list[str]:
    """The messages with which a configuration is refused."""
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert caught.value.exit_code == 2
    return [str(problem) for problem in caught.value.problems]


def test_defaults_come_from_the_files() -> None:
    composed = compose()
    assert composed.overrides == ()
    assert composed.config.seed == 1
    assert composed.choices["model"] == "moe_tiny"
    assert composed.choices["balance"] == "aux_free"


def test_a_model_brings_its_schedule_and_the_command_line_still_wins() -> None:
    assert compose(["model=moe_nano"]).choices["schedule"] == "moe_nano"
    assert compose(["model=moe_nano", "schedule=moe_tiny"]).choices["schedule"] == "moe_tiny"
    assert compose(["schedule=moe_tiny", "model=moe_nano"]).choices["schedule"] == "moe_tiny"


def test_the_last_override_of_a_key_wins_and_is_recorded_once() -> None:
    composed = compose(["seed=1", "run.tag=a", "seed=2"])
    assert composed.config.seed == 2
    assert composed.overrides == ("run.tag=a", "seed=2")


def test_an_alias_is_recorded_under_the_group() -> None:
    composed = compose(["balancing=aux_free", "balancing.bias_update_speed=0.5"])
    assert composed.overrides == ("balance=aux_free", "balance.bias_update_speed=0.5")
    assert composed.config.balance.bias_update_speed == 0.5


@pytest.mark.parametrize("written", ["+seed=3", "++seed=3", "seed=3"])
def test_a_plus_before_a_known_key_changes_nothing(written: str) -> None:
    assert compose([written]).overrides == ("seed=3",)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("run.tag=7", "7"),
        ("run.tag=007", "007"),
        ("run.tag=1e3", "1e3"),
        ("run.tag=true", "true"),
        ("run.tag='a, b'", "a, b"),
        ("run.tag=a b", "a b"),
        ("run.tag=\u00e9t\u00e9", "\u00e9t\u00e9"),
        ("run.tag=x(1)[2]{3", "x(1)[2]{3"),
        ("run.tag=$(touch x)", "$(touch x)"),
        ("run.tag=null", None),
    ],
)
def test_a_text_need_not_obey_the_grammar(written: str, value: str | None) -> None:
    composed = compose([written])
    assert composed.config.run.tag == value
    assert compose(composed.overrides).config == composed.config


def test_home_is_expanded_behind_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/a/home/me")
    assert compose(["data=jsonl", "data.path=~/x.jsonl"]).config.data.path == "/a/home/me/x.jsonl"


def test_a_null_section_is_filled_key_by_key() -> None:
    yarn = {
        "factor": 4,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1,
        "mscale_all_dim": 1,
    }
    words = [f"model.rope_scaling.{key}={value}" for key, value in yarn.items()]
    config = compose(words).config
    assert config.model.rope_scaling is not None
    assert config.model.rope_scaling.model_dump() == yarn
    assert refused(words[0])[0] == (
        "model.rope_scaling.original_max_position_embeddings: is missing;"
        " give it a whole number > 0"
    )


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            "model=moe_tyny",
            "model=moe_tyny: model has no option 'moe_tyny'; did you mean moe_tiny? (options: ",
        ),
        (
            "balance=x",
            "balance=x: balance has no option 'x'; options: aux_batch, aux_free, aux_free_seq,"
            " aux_loss, aux_loss_v2, none",
        ),
        ("model=null", "model=null: model has no option 'null'"),
        ("model={a:1}", "model={a:1}: model has no option '{a:1}'"),
        (
            "balance=[none,aux_free]",
            "balance=[none,aux_free]: a list would merge several options of balance into one"
            " configuration; to run an arm for each write -m balance=none,aux_free",
        ),
        ("balnce=none", "there is no key 'balnce'; did you mean balance=none?"),
        ("lr=1e-3", "lr=1e-3: there is no key 'lr'; did you mean schedule.lr=1e-3?"),
        ("model.hidden_sze=3", "did you mean model.hidden_size=3?"),
        ("model.topk=3", "there is no key 'model.topk'"),
        ("+foo=3", "+foo=3: there is no key 'foo'; `dsv3 config show` prints all"),
        ("++model.foo.bar=3", "there is no key 'model.foo.bar'"),
        ("moe_tiny", "moe_tiny: is not of the form key=value; did you mean model=moe_tiny"),
        ("=3", "there is no key ''"),
        ("model@x=moe_tiny", "model@x=moe_tiny: an option has one place; write model=moe_tiny"),
        ("~balance", "~balance: no part of a configuration can be taken out; write balance=none"),
        ("~mtp=off", "no part of a configuration can be taken out; write mtp=off"),
        ("~seed", "set it to null where the key allows it"),
        ("hydra/launcher=x", "dsv3 only composes with Hydra; write launcher=NAME (options: local"),
        ("hydra/sweeper=optuna", "write -m with key=a,b or key=range(1,4)"),
        ("hydra.run.dir=x", "write run_root=DIR"),
        ("hydra.searchpath=[x]", "write --config-dir DIR"),
        ("hydra.verbose=true", "leave it out"),
        ("seed=1,2", "seed=1,2: stands for 2 values; add -m to run one arm for each value"),
        ("seed=range(1,4)", "stands for 3 values; add -m"),
        ("data.path=a,b", "or quote it to mean one text: \"data.path='a,b'\""),
        ("seed=abc", "seed=abc: must be a whole number >= 0 and < 2^63"),
        ("seed=", "seed=: must be a whole number"),
        ("seed==3", "seed==3: must be a whole number >= 0 and < 2^63; quote what is special"),
        ("seed=null", "seed=null: must be a whole number"),
        ("seed=true", "seed=true: must be a whole number"),
        ("seed=1.5", "seed=1.5: must be a whole number"),
        ("seed=-1", "seed=-1: must be a whole number >= 0"),
        ("seed=nan", "seed=nan: must be finite"),
        ("schedule.lr=inf", "schedule.lr=inf: must be finite; give it a number > 0"),
        ("schedule.lr=1e999", "schedule.lr=inf: must be finite"),
        ("schedule.lr=0", "schedule.lr=0: must be a number > 0"),
        ("model.norm_topk_prob=maybe", "model.norm_topk_prob=maybe: must be true or false"),
        ("model.q_lora_rank=0", "model.q_lora_rank=0: must be a whole number > 0, or null"),
        ("model.name=''", "model.name=: must be a text that is not empty"),
        ("launcher.device=gpu", "must be one of auto, cpu, cuda; did you mean cpu?"),
        ("model.rope_scaling=3", "must be a section with keys of its own, or null"),
        ("seed=???", "seed=???: has no value yet; give it one"),
        ("seed=${seed}", "seed: Recursive interpolation detected"),
        ("seed=${nothing}", "seed: Interpolation key 'nothing' not found"),
        ("seed=${oc.env:DSV3_NOT_SET}", "Environment variable 'DSV3_NOT_SET' not found"),
        ("schedule.lr_curve.phases.0.until=0", "must be a whole number > 0"),
        ("schedule.lr_curve.phases.99.until=3", "list index out of range"),
        ("schedule.lr_curve.phases.0.until=900000", "phases must end in rising order"),
    ],
)
def test_refusals(written: str, message: str) -> None:
    messages = refused(written)
    assert len(messages) == 1
    assert message in messages[0]


def test_all_problems_at_once() -> None:
    messages = refused("foo=1", "seed=abc", "balance=zz", "model.hidden_size=0")
    assert [message.split(":")[0] for message in messages] == [
        "foo=1",
        "balance=zz",
        "seed=abc",
        "model.hidden_size=0",
    ]


def test_rules_are_told_along_with_wrong_values() -> None:
    messages = refused("seed=abc", "foo=1", "model.qk_rope_head_dim=7")
    assert [message.split(":")[0] for message in messages] == [
        "foo=1",
        "seed=abc",
        "model.qk_rope_head_dim=7",
    ]


def test_a_wrong_option_hides_the_rules_of_what_stands_in_its_place() -> None:
    messages = refused("model=zz", "model.qk_rope_head_dim=7")
    assert [message.split(":")[0] for message in messages] == ["model=zz"]


def test_a_rule_about_a_key_with_a_wrong_value_is_not_told() -> None:
    messages = refused("model.n_group=abc", "model.n_routed_experts=31")
    assert [message.split(":")[0] for message in messages] == ["model.n_group=abc"]


def test_hydra_is_left_as_it_was_found() -> None:
    GlobalHydra.instance().clear()
    compose()
    refused("seed=abc")
    assert not GlobalHydra.instance().is_initialized()
    with initialize_config_dir(str(shipped("conf")), version_base="1.3"):
        mine = GlobalHydra.instance().hydra
        compose(["seed=2"])
        assert GlobalHydra.instance().hydra is mine
