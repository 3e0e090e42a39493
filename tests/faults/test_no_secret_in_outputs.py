"""Secrets of many kinds on many ways in; afterwards none is in any byte that was written."""

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dsv3 import cli
from faults import small_run
from patience import HANG_S

KEY = "SENTINELwandb0123456789"
TOKEN = "SENTINELhf0123456789"
SIGNING = "SENTINELaws0123456789"
# No variable holds these: they are known by where they stand.
PROXY = "SENTINELproxy"
ADDRESS = "SENTINELaddress"
QUERY = "SENTINELquery"
CODE = "SENTINELcode"
OPTION = "SENTINELoption"
WORD = "SENTINELword"
FILE = "SENTINELfile"
ENVIRONMENT = {
    "WANDB_API_KEY": KEY,
    "HF_TOKEN": TOKEN,
    "AWS_SECRET_ACCESS_KEY": SIGNING,
    "HTTPS_PROXY": f"http://me:{PROXY}@127.0.0.1:9",
}
URL = f"https://me:{ADDRESS}@example.org/x.jsonl?sig={QUERY}"
HIDDEN = "***"

# What a careless change of the code might do: tell of a secret on every way out that a rank has.
CARELESS_LOOP = f"""
import logging, os, sys, warnings
api_key = "{CODE}"
_train_to_end = train_to_end
def train_to_end(trainer):
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    logging.getLogger("dsv3.careless").warning("signed with %s", secret)
    warnings.warn(f"signed with {{secret}}")
    trainer.reporter.event("sent", headers={{"Authorization": f"Bearer {{secret}}"}}, why=secret)
    trainer.reporter.note(f"signed with {{secret}}")
    result = _train_to_end(trainer)
    if trainer.config.seed == 2:
        try:
            raise OSError("{URL} said no")
        except OSError as error:
            raise RuntimeError(f"not signed with {{secret}}") from error
    return result
"""
CARELESS_MIRROR = """
import sys
_log = WandbBackend.log
def log(self, step, values):
    print("through", os.environ["HTTPS_PROXY"], file=sys.stderr)
    _log(self, step, values)
    if step == 2:
        raise ConnectionError(os.environ["HTTPS_PROXY"] + " is away")
WandbBackend.log = log
"""

Output = tuple[int, str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where everything is written; the code and the text that hold secrets lie elsewhere."""
    return tmp_path_factory.mktemp("written")


@pytest.fixture(scope="module")
def changed_code(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Path:
    """A checkout of dsv3 with uncommitted changes that hold secrets."""
    copy = tmp_path_factory.mktemp("code")
    for name in ("src", "conf", "recipes"):
        if (checkout / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(checkout / name, copy / name, ignore=ignored)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-C", str(copy)]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    for file, code in {"loop": CARELESS_LOOP, "wandb_mirror": CARELESS_MIRROR}.items():
        with (copy / "src" / "dsv3" / "train" / f"{file}.py").open("a") as source:
            source.write(code)
    return copy


@pytest.fixture(scope="module")
def own_options(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's directory of options, itself called by a secret."""
    own = tmp_path_factory.mktemp("own") / TOKEN
    (own / "optimizer").mkdir(parents=True)
    (own / "optimizer" / "mine.yaml").write_text(f"api_key: {FILE}\n")
    (own / "optimizer" / "torn.yaml").write_text(f"password: [{FILE}\n")
    return own


@pytest.fixture(scope="module")
def trained(
    place: Path, changed_code: Path, own_options: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Output]:
    """A run that ends well under W&B, and one that fails under TensorBoard."""
    text = small_run.write_text(tmp_path_factory.mktemp("text") / "text.jsonl")
    (place / "home").mkdir()
    environment = {
        **os.environ,
        **ENVIRONMENT,
        "PYTHONPATH": str(changed_code / "src"),
        "XDG_CACHE_HOME": str(place / "cache"),
        "HOME": str(place / "home"),
        "TMPDIR": str(place),
    }

    def train(*words: str) -> Output:
        command = [sys.executable, "-m", "dsv3", "train", "--config-dir", str(own_options)]
        overrides = small_run.overrides(text, steps=3, evaluation__sequences=2)
        ended = subprocess.run(
            [*command, *overrides, *words],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=HANG_S,
        )
        return ended.returncode, ended.stdout + ended.stderr

    return [
        train("seed=1", "tracking=wandb"),
        train("seed=2", "tracking=tensorboard", "--json"),
        train("seed=2"),
    ]


def secrets_in(written: bytes) -> list[str]:
    all_of_them = (KEY, TOKEN, SIGNING, PROXY, ADDRESS, QUERY, CODE, OPTION, WORD, FILE)
    encoded = [base64.b64encode(secret.encode()).rstrip(b"=")[:-1] for secret in all_of_them]
    forms = zip(all_of_them, encoded, strict=True)
    return [name for name, code in forms if name.encode() in written or code in written]


def test_what_trainings_write_and_print_holds_no_secret(place: Path, trained: list[Output]) -> None:
    assert [code for code, _ in trained] == [0, 70, 70]
    found = {
        str(path.relative_to(place)): held
        for path in place.rglob("*")
        if path.is_file() and (held := secrets_in(path.read_bytes()))
    }
    assert found == {}
    assert [secrets_in(output.encode()) for _, output in trained] == [[], [], []]
    assert [path for path in place.rglob("*") if secrets_in(str(path).encode())] == []


def test_the_secrets_were_on_their_way_there(place: Path, trained: list[Output]) -> None:
    """Nothing found is worth something only where something was hidden."""
    (well,) = place.glob("runs/*-s1-*")
    (badly,) = place.glob("runs/*-s2-*")
    for file in ("provenance.json", "events.jsonl", "logs/rank-0.log"):
        assert HIDDEN in (well / file).read_text(), file
    assert HIDDEN in next(well.glob("source-*.diff")).read_text()
    assert f"through http://{HIDDEN}@" in (well / "logs" / "mirror.log").read_text()
    events = list(map(json.loads, (well / "events.jsonl").read_text().splitlines()))
    warning = next(event["text"] for event in events if event["event"] == "mirror_warning")
    assert warning.endswith(f"http://{HIDDEN}@127.0.0.1:9 is away")
    assert any((well / "wandb").glob("offline-run-*/*.wandb"))
    assert any((badly / "tensorboard").iterdir())
    for file in ("FAILED", "events.jsonl", "logs/rank-0.log"):
        assert HIDDEN in (badly / file).read_text(), file
    log = (badly / "logs" / "rank-0.log").read_text()
    assert f"https://{HIDDEN}@example.org/x.jsonl?{HIDDEN} said no" in log
    assert all(HIDDEN in output for _, output in trained)


BAD = {
    "a key that is not there": ["train", f"model.api_key={WORD}"],
    "no key at all": ["train", "--json", f"password={WORD}"],
    "a word": ["train", f"--token={OPTION}"],
    "two words": ["train", "--json", "--secret", OPTION],
    "an unreadable value": ["train", f"seed=[{SIGNING}"],
    "a value that is too long for its type": ["train", "--json", f"seed={SIGNING}"],
    "a sweep": ["train", "-m", f"run.tag=a,{KEY}", "--dry-run"],
    "an address": ["train", "--json", "data=jsonl", f"data.path={URL}"],
    "an address of a tokenizer": ["data", "prepare", f"data.tokenizer={URL}"],
    "an address to write to": ["train", f"run_root={URL}"],
    "the environment": ["config", "show", "run.tag=${oc.env:HF_TOKEN}"],
    "a file": ["config", "show", "optimizer=mine"],
    "a torn file": ["train", "--json", "--dry-run", "optimizer=torn"],
    "a run": ["eval", URL],
    "a run by a secret": ["eval", "--json", SIGNING],
    "a verb": [SIGNING],
}


@pytest.mark.parametrize("words", BAD.values(), ids=BAD)
@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_a_refused_command_line_says_no_secret(
    words: list[str],
    debug: bool,
    own_options: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DSV3_DEBUG", "1" if debug else "")
    if any("optimizer=" in word for word in words):
        words = [*words, "--config-dir", str(own_options)]
    assert cli.run(words) in {2, 3, 4, 6}
    output = capfd.readouterr()
    assert output.err + output.out != ""
    assert secrets_in((output.err + output.out).encode()) == []


def test_a_defect_of_ours_tells_no_secret_not_even_its_traceback(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def doctor(*_words: object, **_options: object) -> int:
        raise LookupError(f"no {os.environ['HF_TOKEN']} at {URL}")

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("DSV3_DEBUG", "1")
    monkeypatch.setattr("dsv3.commands.doctor.doctor", doctor)
    assert cli.run(["doctor"]) == 70
    told = capfd.readouterr().err
    assert f"LookupError: no {HIDDEN} at https://{HIDDEN}@example.org/x.jsonl?{HIDDEN}\n" in told
    assert "Traceback" in told
    assert secrets_in(told.encode()) == []


@pytest.mark.parametrize(
    "words", [["doctor", "--json"], ["train", "--dry-run", "--json"], ["plan", "--json"]]
)
def test_a_command_line_without_secrets_shows_none_of_the_environment(
    words: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    assert cli.run(words) in {0, 3}
    output = capfd.readouterr()
    assert json.loads(output.out)
    assert secrets_in((output.err + output.out).encode()) == []


def test_a_secret_is_found_where_it_stands_and_encoded() -> None:
    assert secrets_in(b"x" + KEY.encode() + b"y") == [KEY]
    assert secrets_in(base64.b64encode(WORD.encode())) == [WORD]
    assert secrets_in(b"innocent") == []
