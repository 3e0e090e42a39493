"""Sweeps: Hydra's grammar, the arms it stands for, and the problems of all arms at once."""

import pytest

from dsv3.config import compose as module
from dsv3.config.compose import compose_sweep
from dsv3.errors import ConfigError


def refused(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose_sweep(overrides)
    return [str(problem) for problem in caught.value.problems]


def test_lists_are_multiplied_and_the_last_varies_fastest() -> None:
    arms = compose_sweep(["balance=none,aux_free", "model=moe_nano", "seed=1,2"])
    assert [arm.overrides for arm in arms] == [
        ("balance=none", "model=moe_nano", "seed=1"),
        ("balance=none", "model=moe_nano", "seed=2"),
        ("balance=aux_free", "model=moe_nano", "seed=1"),
        ("balance=aux_free", "model=moe_nano", "seed=2"),
    ]
    assert [arm.config.seed for arm in arms] == [1, 2, 1, 2]
    assert [arm.config.balance.strategy for arm in arms] == ["none"] * 2 + ["aux_free"] * 2


@pytest.mark.parametrize(
    ("written", "settings"),
    [
        ("seed=range(1,4)", ["seed=1", "seed=2", "seed=3"]),
        ("seed=choice(5,3)", ["seed=5", "seed=3"]),
        ("seed=3", ["seed=3"]),
        ("seed=1,1,2", ["seed=1", "seed=2"]),
        ("model=glob(moe_n*)", ["model=moe_nano"]),
        ("schedule.lr=range(0.1,0.3,0.1)", ["schedule.lr=0.1", "schedule.lr=0.2"]),
        ("balancing=none,aux_free", ["balance=none", "balance=aux_free"]),
    ],
)
def test_grammar(written: str, settings: list[str]) -> None:
    assert [arm.overrides for arm in compose_sweep([written])] == [(s,) for s in settings]


def test_a_later_override_replaces_a_sweep() -> None:
    assert [arm.overrides for arm in compose_sweep(["seed=1,2", "seed=3"])] == [("seed=3",)]


def test_texts_stay_texts() -> None:
    assert [arm.config.run.tag for arm in compose_sweep(["run.tag=1,b"])] == ["1", "b"]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("seed=interval(0,1)", "interval() is for a search; give values, range() or choice()"),
        ("seed=range(0,10000000000)", "more than 1000 values"),
        ("seed=range(0,3,0)", "must not be zero"),
        ("seed=range(a)", "while evaluating 'range(a)'"),
        ("model=glob(zz*)", "stands for no value at all"),
        ("balance=[none,aux_free]", "write -m balance=none,aux_free"),
    ],
)
def test_refusals(written: str, message: str) -> None:
    messages = refused(written)
    assert len(messages) == 1
    assert message in messages[0]


def test_too_many_arms_are_refused_before_any_is_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_build", lambda *_: pytest.fail("an arm was composed"))
    assert refused("seed=range(0,40)", "model.vocab_size=range(300,340)") == [
        "the sweep has more than 1000 arms; split it into several"
    ]


def test_problems_of_all_arms_each_once_and_named() -> None:
    messages = refused("seed=1,abc", "foo=1", "run.tag=a,b", "schedule.lr=0")
    assert messages == [
        "foo=1: there is no key 'foo'; `dsv3 config show` prints all",
        "schedule.lr=0: must be a number > 0",
        "seed=abc: must be a whole number >= 0 and < 2^63 [arm seed=abc run.tag=a and 1 more]",
    ]


def test_a_problem_of_every_arm_names_none() -> None:
    messages = refused("seed=1,2", "model.qk_rope_head_dim=7")
    assert len(messages) == 1
    assert "[arm" not in messages[0]


def test_a_rule_broken_in_one_arm_names_it() -> None:
    messages = refused("seed=1,2", "model.qk_rope_head_dim=8,7")
    assert len(messages) == 1
    assert "[arm seed=1 model.qk_rope_head_dim=7 and 1 more]" in messages[0]
