"""`schedule/lr_curve=`: a shape of the learning rate on top of any schedule."""

import math
from pathlib import Path

import pytest

from dsv3.config.compose import compose, compose_sweep
from dsv3.config.options import catalogue
from dsv3.config.schedule import ScheduleConfig
from dsv3.errors import ConfigError

GROUP = "schedule/lr_curve"
SHAPES = ("constant", "cosine", "multistep", "v3", "wsd")


def composed(*overrides: str) -> ScheduleConfig:
    return compose(overrides).config.schedule


def fractions(config: ScheduleConfig, *shares: float) -> list[float]:
    """The learning rate over its peak at shares of the run."""
    return [config.lr_at(round(config.total_tokens * share)) / config.lr for share in shares]


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    return str(caught.value)


def test_the_group_has_its_shapes_and_the_schedules_do_not_list_them() -> None:
    assert tuple(catalogue()[GROUP]) == SHAPES
    assert not any("/" in name for name in catalogue()["schedule"])


def test_without_a_choice_the_schedule_keeps_its_own_curve() -> None:
    assert GROUP not in compose(["model=moe_1b"]).choices
    assert composed("model=moe_1b").lr_curve.phases[-1].shape == "cosine"


@pytest.mark.parametrize("model", ["moe_671b", "moe_3b", "moe_1b"])
def test_a_published_curve_is_the_shape_on_its_own_axis(model: str) -> None:
    own = {"moe_671b": "v3", "moe_3b": "multistep", "moe_1b": "cosine"}[model]
    assert composed(f"model={model}", f"{GROUP}={own}") == composed(f"model={model}")


@pytest.mark.parametrize("model", ["moe_nano", "moe_16b", "moe_228b"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_changes_the_curve_of_the_learning_rate_only(model: str, shape: str) -> None:
    before, after = composed(f"model={model}"), composed(f"model={model}", f"{GROUP}={shape}")
    assert after.lr_curve.phases[-1].until == after.reference_tokens
    assert after.lr_curve != before.lr_curve
    assert after == before.model_copy(update={"lr_curve": after.lr_curve})


def test_the_shapes_at_shares_of_the_run() -> None:
    def of(shape: str, *shares: float) -> list[float]:
        config = composed("model=moe_16b", f"{GROUP}={shape}")
        # Shares are rounded to whole tokens, of which there are 1e12.
        return [pytest.approx(value, rel=1e-9) for value in fractions(config, *shares)]

    assert of("cosine", 0.0125, 0.025, 0.5125, 1) == [0.5, 1, 0.55, 0.1]
    quarter = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))
    assert of("cosine", 0.025 + 0.975 / 4) == [quarter]
    ratio = 2.47e-4 / 7.8e-4
    assert of("multistep", 0.04, 0.79, 0.81, 0.89, 0.91, 1) == [1, 1, ratio, ratio, 0.1, 0.1]
    assert of("wsd", 0.01, 0.02, 0.8, 0.9, 1) == [0.5, 1, 1, 0.55, 0.1]
    assert of("constant", 0.01, 0.02, 0.5, 1) == [0.5, 1, 1, 1]
    assert of("v3", 0.5, 10 / 14.8, 14.3 / 14.8, 14.5 / 14.8, 1) == [1, 1, 0.1, 0.1, 7.3 / 220]


def test_any_axis_will_do() -> None:
    config = composed(
        "model=moe_nano",
        f"{GROUP}=wsd",
        "schedule.reference_tokens=12345",
        "schedule.bias_update_speed_curve.phases=[]",
        "schedule.batch_size_curve.phases=[]",
        "schedule.mtp_loss_coeff_curve.phases=[]",
    )
    assert [phase.until for phase in config.lr_curve.phases] == [247, 9876, 12345]


@pytest.mark.parametrize("swap", [False, True])
def test_order_does_not_matter_and_the_command_line_wins(swap: bool) -> None:
    words = [f"{GROUP}=wsd", "model=moe_16b", "schedule=moe_nano", "schedule.lr_curve.start=0.5"]
    config = composed("parallelism=single", *(reversed(words) if swap else words))
    assert config.global_batch_size == composed("model=moe_nano").global_batch_size
    assert config.lr_curve.start == 0.5
    assert config.lr_curve.phases == composed("model=moe_nano", f"{GROUP}=wsd").lr_curve.phases


def test_shapes_can_be_swept() -> None:
    arms = compose_sweep([f"{GROUP}=wsd,cosine", "seed=1,2"])
    assert [arm.overrides[0] for arm in arms] == [
        f"{GROUP}={s}" for s in ("wsd", "wsd", "cosine", "cosine")
    ]
    assert len({arm.config.schedule.lr_curve for arm in arms}) == 2
    assert arms[0].choices[GROUP] == "wsd"


def test_a_wrong_shape_is_refused_like_any_option() -> None:
    assert f"{GROUP}=wsdd: {GROUP} has no option 'wsdd'; did you mean wsd?" in refused(
        f"{GROUP}=wsdd"
    )
    assert f"did you mean {GROUP}=wsd?" in refused("schedule/lr_curv=wsd")
    assert refused("schedule.lr_curve=wsd") == (
        "schedule.lr_curve=wsd: wsd is an option of a group; write schedule/lr_curve=wsd"
    )


def test_a_shape_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / GROUP).mkdir(parents=True)
    until = "${share_of_reference:1,4}"
    (tmp_path / GROUP / "mine.yaml").write_text(
        f'start: 1.0\nphases:\n- {{until: "{until}", shape: linear, value: 0.5}}\n'
        '- {until: "${share_of_reference:1}", shape: linear, value: 0.0}\n'
    )
    config = compose([f"{GROUP}=mine", "model=moe_1b"], config_dir=tmp_path).config.schedule
    assert fractions(config, 0.25, 1) == [0.5, 0.0]
    assert catalogue(tmp_path)[GROUP]["mine"].is_own


@pytest.mark.parametrize("share", ["${share_of_reference:x}", "${share_of_reference:1,0}"])
def test_a_share_that_is_none_is_told_in_words(share: str, tmp_path: Path) -> None:
    (tmp_path / GROUP).mkdir(parents=True)
    (tmp_path / GROUP / "mine.yaml").write_text(
        f'start: 1.0\nphases: [{{until: "{share}", shape: linear, value: 0.5}}]\n'
    )
    with pytest.raises(ConfigError, match=r"schedule\.lr_curve\.phases\[0\]\.until"):
        compose([f"{GROUP}=mine"], config_dir=tmp_path)
