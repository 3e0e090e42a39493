"""What a run writes about its products, from its first step to its end, and how it ends without."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F

from dsv3 import cli
from dsv3.model.backends.emulated import EmulatedLinear
from faults.small_run import metrics, overrides

STEPS = 4
FP8 = "fp8_block_emulated"
LAYER = "model.layers.1.mlp.shared_experts.down_proj"

pytestmark = pytest.mark.usefixtures("ranks_here")


def words(text: Path, root: Path, **values: object) -> list[str]:
    small = {"evaluation__every_steps": 2, "checkpoint__every_steps": 2}
    return overrides(text, steps=STEPS, run_root=root, **{**small, **values})


def the_run(root: Path) -> Path:
    (found,) = root.iterdir()
    return found


def gemms(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((the_run(root) / "gemms.json").read_text())
    return found


def test_a_run_in_fp8_lists_its_products(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", *words(text, tmp_path, precision=FP8)]) == 0
    said = (
        "FP8: 48 of 48 products of linear layers and experts; bf16: attention, head; fp32: router"
    )
    assert said in capsys.readouterr().err
    found = gemms(tmp_path)
    assert (found["schema"], found["recipe"], found["observed"]) == (1, FP8, True)
    assert found["asked"]["wgrad"] == ["e4m3 128x1 power_of_two"] * 2
    training, evaluation = found["training"], found["evaluation"]
    assert (training["step"], training["attempt"], training["ranks"]) == (1, 1, 1)
    assert evaluation["step"] == STEPS
    assert training["broken"] == evaluation["broken"] == {}
    in_fp8 = [each for each in training["products"] if each["left"].startswith("e4m3")]
    for each in in_fp8:
        assert [each["left"], each["right"]] == found["asked"][each["product"]]
        assert each["calls"] == 2  # micro batches
        assert each["output"] == ("fp32" if each["product"] == "wgrad" else "bf16")
    assert len({(each["layer"], each["product"]) for each in in_fp8}) == 48
    in_fp8 = [each for each in evaluation["products"] if each["left"].startswith("e4m3")]
    assert len(in_fp8) == 48 // 3 and all(each["calls"] == 1 for each in in_fp8)
    run = the_run(tmp_path)
    assert [line["step"] for line in metrics(run) if "fp8_ranges" in line] == [1]

    assert cli.run(["status", str(run)]) == 0
    assert f"{run.name}: {said}\n" in capsys.readouterr().out
    assert cli.run(["status", str(run), "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)["runs"]
    assert shown["products"] == training["summary"]
    assert (shown["products"]["fp8"], shown["products"]["promised"]) == (48, 48)
    (run / "gemms.json").write_text("torn")
    assert cli.run(["status", str(run), "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)["runs"]
    assert shown["products"] is None


def test_a_run_in_bf16_lists_them_too(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", *words(text, tmp_path, precision="bf16")]) == 0
    assert "FP8" not in capsys.readouterr().err
    found = gemms(tmp_path)
    assert found["asked"] is None
    summary = found["training"]["summary"]
    assert summary["text"] == "bf16: attention, experts, head, linear layers; fp32: router"
    assert (summary["fp8"], summary["promised"]) == (0, 0)
    assert {each["left"] for each in found["training"]["products"]} == {"bf16", "fp32"}


def test_a_run_without_the_fp8_it_asked_for_ends(
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a good start: the attempt that goes on is looked at again, and so is `dsv3 eval`."""
    asked = words(text, tmp_path, precision=FP8)
    assert cli.run(["train", *asked]) == 0
    run = the_run(tmp_path)
    (run / "DONE").unlink()
    shutil.rmtree(run / "checkpoints" / f"step-{STEPS}")
    capsys.readouterr()

    in_fp8 = EmulatedLinear.forward

    def forward(layer: EmulatedLinear, x: Any) -> Any:
        return F.linear(x, layer.weight) if layer.name == LAYER else in_fp8(layer, x)

    monkeypatch.setattr(EmulatedLinear, "forward", forward)
    assert cli.run(["train", *asked]) == 5
    said = capsys.readouterr().err
    wrong = [f"{kind} ran in bf16 x bf16" for kind in ("fprop", "dgrad", "wgrad")]
    assert f"error[numeric]: precision.recipe={FP8}: {LAYER}: " in said
    assert all(each in said for each in wrong)
    assert f"{run / 'gemms.json'} lists every product" in said
    assert (run / "FAILED").exists() and not (run / "DONE").exists()
    found = gemms(tmp_path)
    training = found["training"]
    assert (training["step"], training["attempt"]) == (3, 2)
    assert sorted(training["broken"][LAYER]) == sorted(wrong)
    assert training["summary"]["fp8"] == 45
    assert found["evaluation"]["attempt"] == 1  # of the attempt before
