"""Nothing unsafe and nothing left over is in the tree; the checks see a planted piece of each."""

from pathlib import Path

import pytest

from architecture.checkout import kept_files
from architecture.leftovers import text_findings, unsafe_findings


@pytest.mark.parametrize("directory", ["src", "bench", "tests"])
def test_nothing_runs_data_as_code(checkout: Path, directory: str) -> None:
    assert unsafe_findings(checkout / directory) == []


def test_texts_bear_no_trace_of_a_machine(checkout: Path) -> None:
    files = kept_files(checkout)
    assert len(files) > 50
    assert text_findings(files, checkout) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from cloudpickle import load",
        "import torch\ntorch.load(path)",
        "from torch import load",
        "import yaml\nyaml.load(text, Loader=loader)",
        "eval(text)",
        "exec(text)",
        "import builtins\nbuiltins.eval(text)",
        "import hydra\nhydra.utils.instantiate(config)",
        "import os\nos.system(line)",
        "import subprocess\nsubprocess.run(line, shell=True)",
        "auto.from_pretrained(name, trust_remote_code=True)",
        "import numpy\nnumpy.load(path, allow_pickle=True)",
    ],
)
def test_a_planted_unsafe_piece_is_found(tmp_path: Path, code: str) -> None:
    (tmp_path / "bad.py").write_text(code)
    assert len(unsafe_findings(tmp_path)) == 1


def test_harmless_lookalikes_pass(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(
        "import yaml\n"
        "yaml.safe_load(text)\n"
        "model.eval()\n"
        "safetensors.torch.load_file(path)\n"
        "numpy.load(path, allow_pickle=False)\n"
    )
    assert unsafe_findings(tmp_path) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("a.py", "path = '/" + "home/someone/runs'"),
        ("a.yaml", "path: /" + "scratch/team"),
        ("a.md", "see /" + "tmp/notes"),
        ("Makefile", "pip install --index" + "-url x"),
        ("a.md", "from https:" + "//mirror.example.net/simple"),
        ("a.md", "from https:" + "//me:word@mirror.example.net/simple"),
        ("a.py", "# TO" + "DO: later"),
        ("a.py", "name = 'na\u00efve'"),
    ],
)
def test_a_planted_leftover_is_found(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / file
    path.write_text(f"{line}\n", encoding="utf-8")
    assert len(text_findings([path], tmp_path)) == 1


def test_allowed_texts_pass(tmp_path: Path) -> None:
    path = tmp_path / "good.py"
    path.write_text(
        "# TO" + "DO(someone): later\n"
        "# https://arxiv.org/abs/2412.19437\n"
        "# https://me:word@dashboard.example.org/x\n"
        "path = 'runs/home/x', '{root}/tmp/x', '~/work/x'\n"
    )
    assert text_findings([path], tmp_path) == []


def test_ignored_files_are_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text(".venv/\n/runs/\n*.log\n")
    for name in (".venv/a.py", "runs/b.py", "src/runs/c.py", "d.log", ".git/e", ".ci/run"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    names = [path.relative_to(tmp_path).as_posix() for path in kept_files(tmp_path)]
    assert names == [".ci/run", ".gitignore", "src/runs/c.py"]
