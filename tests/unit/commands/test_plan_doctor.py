"""`plan` and `doctor`: what they print, for people and for scripts, and what they exit with."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dsv3.commands import doctor as doctor_module
from dsv3.commands.doctor import (
    Check,
    all_checks,
    check_compiler,
    check_directory,
    check_machine,
    check_python,
    check_recipes,
    check_requirement,
    check_transformer_engine,
    check_wandb_key,
    doctor,
    requirements,
)
from dsv3.commands.plan import plan
from dsv3.config import compose as compose_module
from dsv3.config.compose import Composed, compose
from dsv3.machine import Gpu, Machine
from dsv3.sweep import expand

HOPPER = Gpu("H800", 80 * 2**30, (9, 0))
NO_GPU = Machine((), cores=2, memory_bytes=24 * 2**30, gpu_driver=None)
ONE_GPU = Machine((HOPPER,), cores=2, memory_bytes=24 * 2**30, gpu_driver="570.1")


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep over two models, whatever is asked."""

    def two(overrides: Sequence[str], *, config_dir: Path | None) -> list[Composed]:
        return [compose([f"model={name}", *overrides]) for name in ("moe_nano", "moe_16b")]

    monkeypatch.setattr(expand, "compose_sweep", two)


def test_plan_prints_json_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        plan(["model=moe_671b"], multirun=False, config_dir=None, strict=False, as_json=True) == 0
    )
    record = json.loads(capsys.readouterr().out)
    assert record["parameters"]["total"] == 671_026_404_352
    assert record["parameters"]["active"] == 36_625_603_584
    assert round(record["flops_per_token"] / 1e9, 2) == 250.46
    assert (record["world_size"], record["tokens"]) == (2048, 14_800_000_000_000)
    assert record["total_flops"] == record["flops_per_token"] * record["tokens"]
    assert record["mtp"]["flops_per_token"] == 0
    memory = record["memory"]
    assert memory["state_bytes_per_rank"] == sum(
        memory[f"{part}_bytes_per_rank"] for part in ("weights", "gradients", "optimizer")
    )
    assert memory["peak_bytes_per_rank"] == max(s["peak_bytes"] for s in memory["stages"])
    assert memory["peak_bytes_per_rank"] > memory["state_bytes_per_rank"]
    assert record["cost_usd"] == 2.0 * record["gpu_hours"] > 0  # the report's price


def test_plan_of_a_sweep_lists_its_runs(capsys: pytest.CaptureFixture[str], sweep: None) -> None:
    assert plan(["seed=3"], multirun=True, config_dir=None, strict=False, as_json=True) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [run["model"] for run in runs] == ["moe_nano", "moe_16b"]
    assert runs[1]["overrides"] == ["model=moe_16b", "seed=3"]


def test_plan_of_a_sweep_shows_what_differs(
    capsys: pytest.CaptureFixture[str], sweep: None
) -> None:
    plan(["seed=3"], multirun=True, config_dir=None, strict=False, as_json=False)
    out = capsys.readouterr().out
    assert "model=moe_nano" in out and "15.71B" in out and "16.41G" in out
    assert "seed=3" not in out


def test_the_first_rows_of_a_plan_are_parameters_and_flops(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan(
        ["model=moe_228b", "recompute=none"],
        multirun=False,
        config_dir=None,
        strict=False,
        as_json=False,
    )
    lines = capsys.readouterr().out.splitlines()
    assert "228.748B (228,748,416,000)" in lines[1]
    assert "20.9875B (body + head" in lines[2]
    assert "156.12 GFLOP" in lines[3]
    assert "does not fit into" in "".join(lines) and "recompute=full" in "".join(lines)


def test_every_check_has_a_remedy_unless_all_is_well() -> None:
    checks = all_checks()
    assert len(checks) > 15
    assert all(check.remedy for check in checks if check.status != "ok")
    assert {"python", "torch", "machine", "run_root", "configuration"} <= {c.name for c in checks}


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warn", 0), ("fail", 3)])
def test_only_a_failed_check_ends_in_3(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, status: str, code: int
) -> None:
    check = Check("thing", status, "detail [x]", "pip install 'dsv3[gpu]'")  # type: ignore[arg-type]
    monkeypatch.setattr(doctor_module, "all_checks", lambda: [check])
    monkeypatch.setattr(doctor_module, "check_slurm", list)
    assert doctor([], config_dir=None, as_json=False) == code
    # Brackets are text, not markup.
    assert "detail [x] -> pip install 'dsv3[gpu]'" in capsys.readouterr().out
    assert doctor([], config_dir=None, as_json=True) == code
    assert json.loads(capsys.readouterr().out)["checks"][0]["status"] == status


def test_requirements_are_those_of_the_project_without_extras() -> None:
    names = {requirement.name for requirement in requirements()}
    assert {"torch", "deepspeed", "hydra-core", "omegaconf"} <= names
    assert not {"pytest", "transformer-engine", "tensorboard"} & names


def test_versions_outside_the_pins_fail_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "installed_version", {"omegaconf": "2.4.0"}.get)
    check = check_requirement(Requirement("omegaconf==2.3.1"))
    assert check.status == "fail" and "Hydra 1.3 does not work with omegaconf 2.4" in check.detail
    assert check.remedy == "pip install 'omegaconf==2.3.1'"
    assert check_requirement(Requirement("absent>=1")).status == "fail"
    assert check_requirement(Requirement("omegaconf>=2.4")).status == "ok"


@pytest.mark.parametrize(
    ("version", "status"),
    [((3, 10), "fail"), ((3, 11), "ok"), ((3, 13), "ok"), ((3, 14), "fail")],
)
def test_python_versions(version: tuple[int, int], status: str) -> None:
    assert check_python(version).status == status


def test_a_torch_without_cuda_beside_gpus_is_a_warning() -> None:
    assert check_machine(ONE_GPU, "2.13.0+cpu").status == "warn"
    assert check_machine(ONE_GPU, "2.13.0").status == "ok"
    assert "570.1" in check_machine(ONE_GPU, "2.13.0").detail
    assert check_machine(NO_GPU, "2.13.0+cpu").status == "ok"
    assert check_machine(Machine((), 1, 2**30, None), None).status == "warn"


def test_transformer_engine_is_missed_only_where_fp8_can_run() -> None:
    ampere = Machine((Gpu("A100", 2**30, (8, 0)),), 2, 2**35, "1")
    assert check_transformer_engine(ONE_GPU, None).status == "warn"
    assert check_transformer_engine(ampere, None).status == "ok"
    assert check_transformer_engine(NO_GPU, None).status == "ok"
    assert check_transformer_engine(ONE_GPU, "2.20").status == "ok"


def test_every_recipe_of_the_hardware_says_what_it_needs() -> None:
    lacking = {check.name: check for check in check_recipes(NO_GPU, None)}
    assert list(lacking) == ["precision=fp8_block", "precision=fp8_current", "precision=mxfp8"]
    block = lacking["precision=fp8_block"]
    assert block.status == "ok" and block.detail.startswith("cannot run here: needs a Hopper GPU")
    assert "no CUDA GPU" in block.detail and "transformer-engine is not installed" in block.detail
    assert "CUDA 12.9" in block.detail
    hopper = Machine((Gpu("H200", 2**37, (9, 0)),), 2, 2**35, "1")
    here = {check.name: check.detail for check in check_recipes(hopper, "2.20.2")}
    assert here["precision=fp8_block"].startswith("can run here")
    assert here["precision=fp8_current"].startswith("can run here")
    assert "H200 has 9.0" in here["precision=mxfp8"]


def test_directories_are_tried_without_being_made(tmp_path: Path) -> None:
    absent = tmp_path / "a" / "b"
    assert check_directory("x", absent, "run_root=...").status in {"ok", "warn"}
    assert not absent.exists() and not absent.parent.exists()
    file = tmp_path / "file"
    file.touch()
    check = check_directory("x", file / "runs", "run_root=...")
    assert check.status == "fail" and f"{file} cannot be written (Not a directory)" in check.detail


def test_a_directory_that_cannot_be_written_fails() -> None:
    check = check_directory("x", Path("/proc/runs"), "run_root=...")
    assert check.status == "fail" and "/proc cannot be written" in check.detail


def test_the_compiler_is_looked_for_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert check_compiler().status == "warn"
    compiler = tmp_path / "mycxx"
    compiler.touch(mode=0o755)
    monkeypatch.setenv("CXX", "mycxx")
    assert check_compiler().detail == str(compiler)


def test_a_wandb_key_is_found_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(file))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    assert check_wandb_key().detail.startswith("no")
    file.write_text("machine api.wandb.ai login user password not-a-real-key\n")
    assert check_wandb_key().detail == "yes"
    file.write_text("not netrc at all {")
    assert check_wandb_key().detail.startswith("no")
    monkeypatch.setenv("WANDB_API_KEY", "not-a-real-key")
    assert check_wandb_key().detail == "yes"


def test_a_broken_composition_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(overrides: Sequence[str] = ()) -> Composed:
        raise ImportError("cannot import name OmegaConf")

    monkeypatch.setattr(compose_module, "compose", broken)
    checks = doctor_module.check_configuration()
    assert [check.status for check in checks] == ["fail"]
    assert "cannot import name OmegaConf" in checks[0].detail
