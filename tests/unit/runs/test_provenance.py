"""Provenance says where a result came from, and no secret."""

import json
import subprocess
from pathlib import Path

import pytest

import dsv3
from dsv3.config.root import RunConfig
from dsv3.machine import describe_host
from dsv3.runs import provenance as provenance_module
from dsv3.runs.provenance import collect

SENTINEL = "SENTINEL0123456789"


def git(checkout: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    return subprocess.run(
        ["git", *identity, "-C", str(checkout), *arguments],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "checkout"
    package = root / "src" / "dsv3"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("a = 1\n")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    monkeypatch.setattr(dsv3, "__file__", str(package / "__init__.py"))
    return root


def collected(config: RunConfig, *argv: str) -> provenance_module.Provenance:
    return collect(config, argv=argv, data_fingerprint="data-1", threads_per_rank=2)


def test_it_holds_what_the_contract_asks_and_is_json(config: RunConfig) -> None:
    record = collected(config, "dsv3", "train").record
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["data_fingerprint"] == "data-1"
    assert record["numerics_version"] == dsv3.NUMERICS_VERSION
    assert record["threads_per_rank"] == 2
    assert record["layout"]["world_size"] == 1
    assert record["layout"]["micro_batch_size"] == config.schedule.micro_batch_size
    assert record["versions"]["dsv3"] == dsv3.__version__
    assert {"deepspeed", "pydantic"} <= set(record["versions"])
    assert record["argv"] == ["dsv3", "train"]


def test_the_machine_is_described() -> None:
    machine = describe_host()
    assert machine["cores"] >= 1
    assert machine["memory_bytes"] > 2**28
    assert machine["processor"]
    assert isinstance(machine["gpus"], list)


def test_a_clean_checkout_is_its_commit(config: RunConfig, checkout: Path) -> None:
    found = collected(config)
    assert found.record["git"] == {
        "commit": git(checkout, "rev-parse", "HEAD"),
        "dirty": False,
        "diff_file": None,
        "diff_truncated": False,
    }
    assert found.diff == ""


def test_uncommitted_changes_are_kept(
    config: RunConfig, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "src" / "dsv3" / "__init__.py").write_text("a = 2\n")
    found = collected(config)
    assert found.record["git"]["dirty"] is True
    assert found.record["git"]["diff_file"] == found.diff_file
    assert "-a = 1\n+a = 2\n" in found.diff
    monkeypatch.setattr(provenance_module, "MAX_DIFF_BYTES", 20)
    assert collected(config).record["git"]["diff_truncated"] is True
    assert len(collected(config).diff) == 20


def test_an_untracked_file_makes_it_dirty(config: RunConfig, checkout: Path) -> None:
    (checkout / "src" / "dsv3" / "new.py").write_text("")
    assert collected(config).record["git"]["dirty"] is True


def test_an_installation_inside_a_repository_of_the_user_is_not_that_repository(
    config: RunConfig, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = checkout / ".venv" / "lib" / "site-packages" / "dsv3" / "__init__.py"
    installed.parent.mkdir(parents=True)
    monkeypatch.setattr(dsv3, "__file__", str(installed))
    assert collected(config).record["git"]["commit"] is None


def test_a_diff_tool_of_the_user_is_not_run(config: RunConfig, checkout: Path) -> None:
    canary = checkout / "canary"
    git(checkout, "config", "diff.external", f"touch {canary}")
    (checkout / "src" / "dsv3" / "__init__.py").write_text("a = 2\n")
    assert "+a = 2" in collected(config).diff
    assert not canary.exists()


def test_without_git_there_is_no_commit(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert collected(config).record["git"]["commit"] is None


def test_no_secret_is_written(
    config: RunConfig, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SENTINEL)
    monkeypatch.setenv("HF_TOKEN", SENTINEL + "hf")
    monkeypatch.setenv("HARMLESS", "harmless-value")
    (checkout / "src" / "dsv3" / "__init__.py").write_text(f"key = '{SENTINEL}'\n")
    found = collected(
        config,
        f"data.path=https://me:{SENTINEL}@example.org/x.jsonl?sig={SENTINEL}",
        f"run.tag={SENTINEL}hf",
        "--token",
        "unknown-to-the-environment",
        "api_key=unknown-to-the-environment",
    )
    everything = json.dumps(found.record) + found.diff
    assert SENTINEL not in everything
    assert "unknown-to-the-environment" not in everything
    assert "harmless-value" not in everything
    assert "+key = '***'" in found.diff
