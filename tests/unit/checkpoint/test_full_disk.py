"""A disk that fills up at any page of a save costs that save and nothing else."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROCESS = Path(__file__).parent / "full_disk_process.py"


def test_forty_sizes_of_a_real_file_system(tmp_path, identity):
    if shutil.which("unshare") is None:
        pytest.skip("unshare(1) is not installed")
    command = [sys.executable, str(PROCESS), str(tmp_path), identity.run_id]
    process = subprocess.run(
        ["unshare", "-rm", *command], capture_output=True, text=True, check=False
    )
    if "unshare failed" in process.stderr or "mount: " in process.stderr:
        pytest.skip(f"no mounts of our own here: {process.stderr}")
    assert process.returncode == 0, process.stderr
    lines = [json.loads(line) for line in process.stdout.splitlines()]
    assert len(lines) == 40
    failed = [line for line in lines if line["said"][2] != "saved"]
    assert len(failed) >= 20, "the fault fired at many places of the third save"
    for line in lines:
        assert line["said"][:2] == ["saved", "saved"], line
        assert line["after"] == "saved", line
        assert line["then"] == [3, 2, 1], line
    for line in failed:
        assert "step-3: was not saved: no space left on device" in line["said"][2]
        assert line["good"] == [2, 1]
        assert line["left"] == ["step-1", "step-2"], "nothing half-written stays"
