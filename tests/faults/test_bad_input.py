"""What a user can get wrong: one clear line for each problem, the right exit code, nothing left."""

import gzip
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dsv3 import cli
from faults.small_run import OVERRIDES, write_text

SMALL = [word for word in OVERRIDES if word != "data=jsonl"]


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    """Ask for something that is wrong; returns the lines of stderr, once all else is checked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DSV3_DEBUG", raising=False)

    def launched(*_, **__):
        raise AssertionError("something was started")

    def refused(code, *words):
        import dsv3.commands.train

        monkeypatch.setattr(dsv3.commands.train, "launch", launched)
        before = files(tmp_path)
        assert cli.run(words) == code
        captured = capsys.readouterr()
        if "--json" in words:
            assert json.loads(captured.out)["error"]["exit_code"] == code
        else:
            assert captured.out == ""
        lines = without_notes(captured.err)
        assert lines
        assert all(line.startswith(f"error[{ID[code]}]: ") for line in lines), lines
        assert files(tmp_path) == before
        return lines

    return refused


def without_notes(err):
    """Lines of stderr without progress and warnings."""
    return [line for line in err.splitlines() if not line.startswith(("data: ", "warning["))]


ID = {2: "config", 3: "capacity", 4: "checkpoint", 6: "data"}


def files(root: Path):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if not path.is_dir()}


# words -> parts of the lines, one for each line
CONFIGURATION = {
    "foo": ["foo: is not of the form key=value"],
    "''": ["'': is not of the form key=value"],
    "moe_tiny": ["did you mean model=moe_tiny"],
    "foo=1": ["foo=1: there is no key 'foo'; `dsv3 config show`"],
    "+new=1": ["+new=1: there is no key 'new'"],
    "'a\nb=1'": ["a\\nb=1: there is no key"],
    "~model": ["~model: no part of a configuration can be taken out"],
    "blance=none": ["blance=none: there is no key 'blance'; did you mean balance=none?"],
    "balancing=nne": ["balance=nne: balance has no option 'nne'; did you mean none?"],
    "balance=[none,aux_free]": ["write -m balance=none,aux_free"],
    "model=moe_tny": ["model=moe_tny: model has no option 'moe_tny'; did you mean moe_tiny?"],
    "model=": ["model=: model has no option ''"],
    "hydra/launcher=x": ["hydra/launcher=x: dsv3 only composes with Hydra; write launcher=NAME"],
    "launcher=slurm": ["launcher=slurm: needs launcher.profile"],
    "launcher=kubernetes": ["options: local, slurm"],
    "schedule.lrr=1": ["did you mean schedule.lr=1?"],
    "model.lr=1": ["did you mean schedule.lr=1?"],
    "schedule.foo=1": ["`dsv3 config show -p schedule` prints those there are"],
    "data.domain_shares.foo=1": ["there is no key 'data.domain_shares.foo'"],
    "data.domain_shares.c=-1": ["data.domain_shares.c=-1: must be a number >= 0"],
    "seed=1,2": ["seed=1,2: stands for 2 values; add -m"],
    "seed=": ["seed=: must be a whole number >= 0 and < 2^63"],
    "seed=1.5 schedule.lr=fast": [
        "seed=1.5: must be a whole",
        "schedule.lr=fast: must be a number",
    ],
    "seed=${nope}": ["Interpolation key 'nope' not found"],
    "seed=${nope} schedule.lr=x": ["schedule.lr=x: must be a number", "'nope' not found"],
    "-m seed=range(3,1)": ["stands for no value at all"],
    "-m model=moe_nno seed=1,x": ["did you mean moe_nano?", "seed=x: must be a whole"],
    "schedule.lr=nan": ["schedule.lr=nan: must be finite"],
    "schedule.lr=-inf": ["schedule.lr=-inf: must be finite"],
    "schedule.lr=1e39": ["schedule.lr=1e+39: is beyond the range of FP32"],
    "optimizer.eps=1e-60": ["optimizer.eps=1e-60: is beyond the range of FP32"],
    "model.num_attention_heads=0": ["must be a whole number > 0"],
    "model.n_group=3": ["must divide model.n_routed_experts=32; use one of 1, 2, 4, 8, 16"],
    "model.n_routed_experts=7": [
        "model.n_group=4: must divide model.n_routed_experts=7; use one of 1",
        "model.num_experts_per_tok=4: must not exceed the 2 experts",
    ],
    "model.num_experts_per_tok=1000": ["use at most 16"],
    "model.n_routed_experts=1000000007 model.n_group=2": ["use one of 1"],
    "model.topk_group=10": ["model.topk_group=10: must not exceed model.n_group=4"],
    "model.vocab_size=100": [
        "at least 261: 256 bytes and 5 special tokens; raise model.vocab_size"
    ],
    "schedule.sequence_length=100000": ["must not exceed model.max_position_embeddings=4096"],
    "schedule.total_tokens=1e30": ["schedule.total_tokens=1e+30: must be a whole number"],
    "balance=none balance.bias_update_speed=1": ["has no expert bias to update"],
    "data=jsonl": ["data.path=null: data.source=jsonl needs a path"],
    "data=jsonl data.path=": ["data.path=: must be a text that is not empty"],
    "data=jsonl data.path=a,b": ["quote it to mean one text"],
    "data.path=x.jsonl": ["add data=jsonl to train on the path"],
    "data.tokenizer=": ["data.tokenizer=: must be a text that is not empty"],
    "data.cache_dir=": ["data.cache_dir=: must be a text that is not empty"],
    "data.domain_shares=null": ["data.domain_shares: data.source=installed_text needs a positive"],
    "run.tag=": ["run.tag=: must be a text that is not empty"],
    "run.tag=\udcff": ["run.tag=\\udcff: must be UTF-8 text"],
    "run_root=": ["run_root=: must be a text that is not empty"],
    "checkpoint.resume=maybe": ["must be one of auto, must, never"],
    "parallelism.expert_parallel_size=3 schedule.global_batch_size=24"
    " schedule.batch_size_quantum=24": [
        "parallelism.expert_parallel_size=3: must divide model.n_routed_experts=32"
    ],
    "--config-dir nowhere": ["--config-dir nowhere: does not exist"],
}


@pytest.mark.parametrize(("words", "said"), CONFIGURATION.items(), ids=range(len(CONFIGURATION)))
def test_configuration(words, said, ask):
    lines = ask(2, "train", *shlex.split(words))
    assert len(lines) == len(said), lines
    for line, part in zip(lines, said, strict=True):
        assert part in line


def test_both_sides_of_a_comparison_are_told(ask):
    lines = ask(2, "config", "diff", "seed=x", "vs", "model=nope")
    assert [line.split()[1] for line in lines] == ["seed=x:", "model=nope:"]


def test_an_incomplete_model_of_ones_own_is_told_by_its_missing_keys(ask, tmp_path):
    (tmp_path / "own/model").mkdir(parents=True)
    (tmp_path / "own/model/mine.yaml").write_text("name: mine\nhidden_sze: 64\n")
    lines = ask(2, "train", "--config-dir", "own", "model=mine")
    assert "error[config]: model.vocab_size: is missing; give it a whole number > 0" in lines
    assert lines[-1].endswith("there is no such key; did you mean model.hidden_size?")
    assert "Interpolation" not in "".join(lines)


@pytest.mark.parametrize(
    "words",
    [
        ["model.hidden_size=1000000000"],
        ["model.hidden_size=100000000000000000000000000"],
        ["model.num_hidden_layers=1000000000"],
    ],
)
def test_absurd_sizes_are_a_question_of_the_machine(words, ask):
    lines = ask(3, "train", *words)
    assert "memory: all ranks together need " in lines[1]
    assert max(map(len, lines)) < 400, "numbers nobody can read"


def test_a_pipeline_without_enough_layers_is_refused_by_name(ask):
    [line] = ask(2, "train", "model=moe_nano", "parallelism.pipeline_parallel_size=8")
    assert "pipeline_parallel_size=8" in line and "num_hidden_layers" in line


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ("file", "run_root=file: it is not a directory"),
        ("file/below", "run_root=file/below: not a directory"),
        ("no/such/place", "is not a directory; mkdir -p"),
        ("/proc/no", "run_root=/proc/no: "),
        ("/dev/null", "run_root=/dev/null: it is not a directory"),
    ],
)
def test_run_root_is_asked_before_the_data(root, said, ask, tmp_path):
    (tmp_path / "file").write_text("")
    [line] = ask(3, "train", *SMALL, "data=jsonl", "data.path=missing.jsonl", f"run_root={root}")
    assert said in line


def test_a_run_that_must_be_there_is_asked_before_the_data(ask):
    words = ("data=jsonl", "data.path=missing.jsonl", "checkpoint.resume=must")
    [line] = ask(4, "train", *SMALL, *words)
    assert "checkpoint.resume=must: there is no run runs/moe_nano-aux_free-s1-" in line


GOOD = b"".join(b'{"text": "alpha beta gamma %d"}\n' % number for number in range(300))
# content of a file -> parts of the lines
FILES = {
    "empty": (b"", ["x.jsonl: there is no text in it"]),
    "binary": (bytes(range(256)) * 40, ["x.jsonl:1: not JSON"]),
    "utf-16": (GOOD.decode().encode("utf-16"), ["x.jsonl:1: byte 0xff at position 0 is not UTF-8"]),
    "malformed": (
        GOOD + b'{"text": "a\n[1]\n',
        ["x.jsonl:301: not JSON", "x.jsonl:302: a JSON list"],
    ),
    "no text": (b'{"txt": 1}\n', ["x.jsonl:1: no \"text\", only 'txt'"]),
    "truncated": (gzip.compress(GOOD)[:-20], ["the compressed file is truncated"]),
    "too little": (b'{"text": "hello"}\n', ["documents for training: 1, held out: 0"]),
    "all alike": (b'{"text": "hello"}\n' * 50, ["documents that differ"]),
}


@pytest.mark.parametrize(("content", "said"), FILES.values(), ids=FILES)
@pytest.mark.parametrize("verb", [("train",), ("data", "inspect", "--json")], ids=" ".join)
def test_files(content, said, verb, ask, tmp_path):
    (tmp_path / "x.jsonl").write_bytes(content)
    lines = ask(6, *verb, *SMALL, "data=jsonl", "data.path=x.jsonl")
    assert len(lines) == len(said), lines
    for line, part in zip(lines, said, strict=True):
        assert part in line


@pytest.mark.parametrize("path", ["missing.jsonl", "*.nope", ".", "~nobody/x", "/dev/zero"])
def test_paths(path, ask):
    [line] = ask(6, "train", *SMALL, "data=jsonl", f"data.path={path}")
    assert line.startswith(f"error[data]: data.path={path}: ")


def byte_level(end: str, alphabet: list[str]) -> dict:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["aaa bbb ccc"] * 9, trainer)
    return json.loads(tokenizer.to_str())


ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENIZERS = {
    "not JSON": (6, "{", "not a tokenizer.json"),
    "a list": (6, [], "not a tokenizer.json"),
    "no decoder": (6, byte_level("</s>", ALPHABET) | {"decoder": None}, "not byte-level"),
    "no end": (6, byte_level("<stop>", ALPHABET), "none of the end-of-document tokens"),
    "bytes missing": (6, byte_level("</s>", ALPHABET[:100]), "text would be lost"),
    "too large": (2, byte_level("</s>", ALPHABET), "do not fit model.vocab_size=262"),
}


@pytest.mark.parametrize(("code", "content", "said"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_tokenizers(code, content, said, ask, tmp_path):
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "t.json").write_text(text)
    (tmp_path / "x.jsonl").write_bytes(GOOD)
    words = ("data=jsonl", "data.path=x.jsonl", "data.tokenizer=t.json", "model.vocab_size=262")
    [line] = ask(code, "train", *SMALL, *words)
    assert f"error[{ID[code]}]: data.tokenizer=t.json: " in line
    assert said in line


def test_too_little_text_for_a_batch_leaves_prepared_text_and_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_text(tmp_path / "x.jsonl")
    words = ("data=jsonl", "data.path=x.jsonl", "schedule.global_batch_size=20000")
    assert cli.run(["train", *SMALL, *words]) == 6
    assert "samples of 32 tokens, one batch takes 20000" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert not list(tmp_path.glob("cache/dsv3/prepared/.*"))


def shell(script: str, cwd: Path, *wrapper: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script in which `dsv3` is the command line."""
    # With buffers, as users have them: what is left in one is written when Python exits.
    start = f"env -u PYTHONUNBUFFERED {shlex.quote(sys.executable)} -m dsv3"
    script = f'dsv3() {{ {start} "$@"; }}\n{script}'
    return subprocess.run(
        [*wrapper, "bash", "-c", script], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("script", "code", "err"),
    [
        ("dsv3 train foo=1 2>&-", 2, ""),
        ("dsv3 train foo=1 <&- >&- 2>&-", 2, ""),
        ("dsv3 config show >&-", 0, ""),
        ("dsv3 config show >/dev/full", 3, "error[capacity]: stdout: no space left on device"),
        ("dsv3 config show -p seed >/dev/full", 3, "error[capacity]: stdout: no space left"),
        ("dsv3 train foo=1 2>/dev/full", 2, ""),
        ("mkdir d; cd d; rmdir ../d; dsv3 train", 3, "error[capacity]: current directory: "),
        ("PYTHONIOENCODING=ascii dsv3 config show run.tag=\u00e9 -p run", 0, ""),
    ],
)
def test_streams_and_directories_a_shell_can_leave_us(script, code, err, tmp_path):
    process = shell(script, tmp_path)
    assert process.returncode == code, process.stderr
    assert process.stderr.startswith(err)
    assert process.stderr.count("\n") <= 1


NO_MOUNT = 99
MOUNTED = """
mkdir full fixed && mount -t tmpfs -o size=4k none full && mount -t tmpfs -o size=64k none fixed &&
mkdir fixed/old && mount -o remount,ro fixed || exit 99
for root in full fixed fixed/old fixed/new; do dsv3 train WORDS run_root=$root; echo $?; done
dsv3 train WORDS data.cache_dir=fixed/cache; echo $?
dsv3 train WORDS data.cache_dir=full; echo $?
ls -A full fixed/old full/prepared
"""


def test_storage_that_is_read_only_or_full(tmp_path):
    """In a mount namespace of our own, where a root user is refused like any other."""
    write_text(tmp_path / "x.jsonl")
    words = shlex.join([*SMALL, "data=jsonl", "data.path=x.jsonl"])
    if shutil.which("unshare") is None:
        pytest.skip("unshare(1) is not installed")
    process = shell(MOUNTED.replace("WORDS", words), tmp_path, "unshare", "-rm")
    if "unshare failed" in process.stderr or process.returncode == NO_MOUNT:
        pytest.skip(f"no mounts of our own here: {process.stderr}")
    assert process.stdout.split() == [
        *["3"] * 6,
        "fixed/old:",
        "full:",
        "prepared",
        "full/prepared:",
    ]
    lines = without_notes(process.stderr)
    assert [line.split(": ")[1] for line in lines[1:4]] == [
        "run_root=fixed",
        "run_root=fixed/old",
        "run_root=fixed/new",
    ]
    assert "full/moe_nano-aux_free-s1-" in lines[0]
    assert all("read-only file system" in line.lower() for line in lines[1:5])
    assert "no space left on device" in lines[5].lower()


CLOSED = """
mkdir closed && chmod 000 closed || exit 1
for root in closed closed/below; do dsv3 train WORDS run_root=$root; echo $?; done
dsv3 train WORDS data.cache_dir=closed; echo $?
dsv3 train --config-dir closed/below; echo $?
dsv3 train WORDS data.tokenizer=closed/x; echo $?
dsv3 train WORDS data.path=closed; echo $?
"""
POWERS = "-dac_override,-dac_read_search"
"""Those by which root opens what is closed."""


def test_directories_one_may_not_enter(tmp_path):
    write_text(tmp_path / "x.jsonl")
    words = shlex.join([*SMALL, "data=jsonl", "data.path=x.jsonl"])
    wrapper = ["setpriv", f"--bounding-set={POWERS}", f"--inh-caps={POWERS}"]
    if os.geteuid() != 0:
        wrapper = []
    elif shutil.which("setpriv") is None:
        pytest.skip("setpriv(1) is not installed, and root may enter everywhere")
    process = shell(CLOSED.replace("WORDS", words), tmp_path, *wrapper)
    if "setpriv:" in process.stderr:
        pytest.skip(f"root keeps its powers here: {process.stderr}")
    assert process.stdout.split() == ["3", "3", "3", "3", "6", "6"], process.stderr
    said = without_notes(process.stderr)
    assert len(said) == 6
    assert [line.split(":")[1].strip() for line in said] == [
        "run_root=closed",
        "run_root=closed/below",
        f"data.cache_dir={tmp_path}/closed",
        "closed/below",
        "data.tokenizer=closed/x",
        "data.path=closed",
    ]
    assert all("permission denied" in line.lower() for line in said[:5])
    assert "the directory cannot be read" in said[5]
