"""What a rank imports: each start pays for it, of two ranks as of two thousand."""

import json
import os
import subprocess
import sys

import pytest

from faults.small_run import overrides, write_text

# Python imports this at the start of each process.
TELL = """
import atexit, gc, json, os, sys
def tell():
    if "dsv3.train.attempt" in sys.modules:
        told = {"modules": sorted(sys.modules), "frozen": gc.get_freeze_count()}
        with open(os.environ["TOLD"], "w") as file:
            json.dump(told | {"on": gc.isenabled()}, file)
atexit.register(tell)
"""


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_rank_trains_without_the_kernels_of_the_compiler(tmp_path, dtype):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "sitecustomize.py").write_text(TELL)
    words = overrides(write_text(tmp_path / "text.jsonl"), steps=3, precision=dtype)
    path = os.pathsep.join([str(tmp_path / "first"), os.environ["PYTHONPATH"]])
    environment = {**os.environ, "PYTHONPATH": path, "TOLD": str(tmp_path / "told")}
    command = [sys.executable, "-m", "dsv3", "train", *words]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    told = json.loads((tmp_path / "told").read_text())
    assert {"deepspeed", "torch.optim"} <= set(told["modules"])
    assert "torch._inductor.compile_fx" not in told["modules"], "over a second of each start"
    assert told["frozen"] > 100_000, "what was imported is not searched for garbage"
    assert told["on"], "what is made afterwards is"
