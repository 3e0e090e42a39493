"""`--config-dir`: own options shadow shipped ones, hostile files are refused in words."""

from pathlib import Path

import pytest

from dsv3.config.compose import compose, compose_sweep
from dsv3.config.locations import shipped
from dsv3.config.options import catalogue
from dsv3.errors import ConfigError

OTHERS = """\
bias_update_rule: sign
sequence_aux_loss_coeff: 0.0
device_aux_loss_coeff: 0.0
communication_aux_loss_coeff: 0.0
batch_aux_loss_coeff: 0.0
aux_loss_selection: top_k_of_scores
aux_loss_scores: normalised
batch_counts: exact
"""
GOOD = f"strategy: none\nbias_update_speed: 0.0\n{OTHERS}"
DOUBLINGS = "".join(f"x{i + 1}: &x{i + 1} [*x{i}, *x{i}]\n" for i in range(40))


def own(root: Path, content: str | bytes, name: str = "balance/aux_free") -> Path:
    file = root / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def refused(root: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(overrides, config_dir=root)
    return str(caught.value)


def test_an_own_option_shadows_a_shipped_one_of_the_same_name(tmp_path: Path) -> None:
    own(tmp_path, GOOD)
    assert compose(["balance=aux_free"], config_dir=tmp_path).config.balance.strategy == "none"
    assert compose(["balance=aux_free"]).config.balance.strategy == "aux_free"


def test_an_own_option_stands_beside_the_shipped_ones(tmp_path: Path) -> None:
    own(tmp_path, f"strategy: aux_free\nbias_update_speed: 0.25\n{OTHERS}", "balance/mine")
    arms = compose_sweep(["balance=glob(*)"], config_dir=tmp_path)
    assert [arm.overrides for arm in arms] == [
        (f"balance={name}",) for name in sorted([*catalogue()["balance"], "mine"])
    ]
    (mine,) = (arm for arm in arms if arm.choices["balance"] == "mine")
    assert mine.config.balance.bias_update_speed == 0.25


def test_a_model_of_ones_own_is_one_file(tmp_path: Path) -> None:
    tiny = (shipped("conf") / "model" / "moe_tiny.yaml").read_text()
    own(tmp_path, tiny.replace("name: moe_tiny", "name: mine"), "model/mine")
    composed = compose(["model=mine"], config_dir=tmp_path)
    assert composed.config.model.name == "mine"
    assert composed.choices["schedule"] == compose(["model=moe_tiny"]).choices["schedule"]


def test_base_can_be_shadowed(tmp_path: Path) -> None:
    base = (shipped("conf") / "base.yaml").read_text()
    own(tmp_path, base.replace("run_root: runs", "run_root: elsewhere"), "base")
    assert compose(config_dir=tmp_path).config.run_root == "elsewhere"


@pytest.mark.parametrize("encoded", [b"\xef\xbb\xbf" + GOOD.encode(), GOOD.replace("\n", "\r\n")])
def test_marks_of_other_editors_do_not_matter(tmp_path: Path, encoded: bytes | str) -> None:
    assert compose(config_dir=own(tmp_path, encoded)).config.balance.strategy == "none"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "aux_free.yaml: is empty"),
        ("# nothing\n", "aux_free.yaml: is empty"),
        (GOOD + "strategy: none\n", "aux_free.yaml:11: the key 'strategy' stands twice"),
        ("a: {b: 1, b: 2}\n", "aux_free.yaml:1: the key 'b' stands twice"),
        (b"strategy: \xe9\n", "aux_free.yaml: is not UTF-8 text (byte 10)"),
        ("a: \0\n", "aux_free.yaml: is not valid YAML: unacceptable character"),
        ("- none\n", "aux_free.yaml:1: must hold `key: value` lines"),
        ("none\n", "aux_free.yaml:1: must hold `key: value` lines"),
        ("? [a]\n: 1\n", "aux_free.yaml:1: a key must be a name"),
        ("1: 2\n", "aux_free.yaml:1: a key must be a name"),
        ("a: [1\nb: 2\n", "aux_free.yaml:2: is not valid YAML"),
        ("a:\n\t- 1\n", "aux_free.yaml:2: is not valid YAML"),
        ("a: " + "[" * 2000 + "]" * 2000, "aux_free.yaml: is nested too deeply"),
        ("a: &x [*x]\n", "aux_free.yaml:1: an alias refers to a node that contains it"),
        ("x0: &x0 [1, 1]\n" + DOUBLINGS, "its aliases expand to more than 20000 values"),
        ("a: " + "x" * 300_000, "is larger than 262144 bytes"),
        ("strategy: !mine none\n", "aux_free.yaml:1: the tag '!mine' is not allowed"),
        ("a: !!python/object/apply:os.system ['x']\n", "os.system' is not allowed"),
        (GOOD + "_target_: os.system\n", "balance._target_=os.system: there is no such key"),
        (GOOD + "strateg: none\n", "balance.strateg=none: there is no such key; did you mean"),
        (
            f"strategy: none\n{OTHERS}",
            "balance.bias_update_speed: is missing; give it a number >= 0",
        ),
        (GOOD.replace("speed: 0.0", "speed: ???"), "balance.bias_update_speed=???: has no value"),
        (GOOD.replace("speed: 0.0", "speed: .nan"), "must be finite"),
        (GOOD.replace("none", "3"), "balance.strategy=3: must be one of none, aux_loss"),
        (GOOD.replace("none", "${no:1}"), "balance.strategy: Unsupported"),
        ("defaults: 3\n" + GOOD, "defaults must be a list"),
        ("defaults:\n  - nope\n" + GOOD, "Could not load 'balance/nope'"),
        (
            "# @package _global_\nhydra:\n  searchpath: [x]\nbalance:\n  strategy: none\n",
            "Overriding hydra.searchpath",
        ),
    ],
)
def test_unfit_files(tmp_path: Path, content: str | bytes, message: str) -> None:
    text = refused(own(tmp_path, content))
    assert message in text
    assert text.count("\n") == 0


def test_no_tag_is_executed(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    refused(own(tmp_path, f"a: !!python/object/apply:os.system ['touch {canary}']\n"))
    assert not canary.exists()


def test_a_file_that_is_not_chosen_is_not_read(tmp_path: Path) -> None:
    own(tmp_path, b"\xff\xff", "balance/broken")
    assert compose(config_dir=tmp_path).choices["balance"] == "aux_free"


def test_unfit_directories(tmp_path: Path) -> None:
    assert "does not exist; name the directory" in refused(tmp_path / "nowhere")
    own(tmp_path, GOOD)
    assert "is not a directory" in refused(tmp_path / "balance" / "aux_free.yaml")
    assert "holds neither base.yaml nor one of the groups" in refused(tmp_path / "balance")
    (tmp_path / "config.yaml").write_text("defaults: []\n")
    assert "the list of defaults cannot be replaced" in refused(tmp_path)
