"""The script of an array: what cluster admins read, bash accepts, and no value breaks out of."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dsv3
from dsv3.config.compose import compose
from dsv3.errors import ConfigError
from dsv3.launch.slurm.launcher import SlurmLauncher
from dsv3.launch.slurm.profile import Profile, load_profile
from dsv3.launch.slurm.script import NOTHING_TO_DO, option, quote, render
from dsv3.launch.slurm.shape import Shape
from dsv3.launch.slurm.states import job_name

GOLDEN = Path(__file__).parent / "golden"
SHELLCHECK = Path(sys.executable).parent / "shellcheck"
KEY = "0123456789ab"
CASES = {
    "moe_16b": ("h800", ["launcher.parallel=4"], 6),
    "moe_16b_torchrun": ("h800", ["model=moe_16b", "launcher.ranks_by=torchrun"], 1),
    "moe_228b": ("h800", ["launcher.time=3-00:00:00", "launcher.save_seconds=600"], 4),
    "moe_671b": ("h800_pyxis", [], 1),
}
SHAPE = Shape(1, 1, 0, 1, "0:10:00", None, "srun", 60)
NAMES = {"profile": "p", "job": "dsv3-x", "comment": "dsv3:x"}


def launcher(profile: str) -> SlurmLauncher:
    found = SlurmLauncher.of(profile, None)
    python = found.cluster.python or "/shared/you/dsv3/.venv/bin/python"
    cluster = found.cluster.model_copy(update={"python": python})
    return SlurmLauncher(profile, cluster, None, found.scheduler)


def rendered(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    profile, words, runs = CASES[name]
    model = [] if any(word.startswith("model=") for word in words) else [f"model={name}"]
    config = compose([*model, *words, "launcher=slurm", f"launcher.profile={profile}"]).config
    monkeypatch.setattr(Path, "cwd", lambda: Path("/shared/you/ablations"))
    [array] = launcher(profile).arrays([config] * runs, "table5_balance")
    return array.script(KEY, Path("/shared/you/ablations/runs/.jobs") / KEY)


@pytest.mark.parametrize("name", CASES)
def test_the_script_is_the_one_that_was_signed(name, monkeypatch):
    text = rendered(name, monkeypatch).replace(f"dsv3 {dsv3.__version__} ", "dsv3 VERSION ")
    assert text == (GOLDEN / f"{name}.sh").read_text(), "python -m unit.launch.write_golden"


@pytest.mark.parametrize("name", CASES)
def test_bash_and_shellcheck_find_nothing(name, tmp_path):
    script = GOLDEN / f"{name}.sh"
    for command in (["bash", "-n", script], [SHELLCHECK, "--severity=style", script]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stdout + done.stderr) == (0, ""), command


def test_scripts_hold_nothing_of_a_model():
    for path in GOLDEN.parents[3].joinpath("launchers").rglob("*.*"):
        text = path.read_text().lower()
        assert not re.search(r"moe_\d|hidden_size|learning|\blr\b|batch_size|aux_", text), path


# Values


FRAGMENTS = [
    "$(touch CANARY)", "`touch CANARY`", "; touch CANARY;", "| touch CANARY", "&& touch CANARY",
    "' ; touch CANARY ; '", '" ; touch CANARY ; "', "'\"'\"'", "${IFS}", "$((1/0))", "\\", "\\'",
    "%j", "%A_%a", "#SBATCH --account=x", "{{ 7*7 }}", "{% raw %}", "~", "~root", "*", "?", "[a-z]",
    "!x", "-rf", "--", " ", "  ", "\t", "\n", "\r\n", "\x00", "\x1b[2J", "\x7f", "\u00e9",
    "\u65e5\u672c", "\u202e", "\ud800", "\u2028", "<", ">", "&", "a", "=", "'", '"', "$HOME",
    "$1", "@", "^", "EOF\n", "\\n",
]  # fmt: skip
# Few draws of hypothesis for many strings: it would take longer to draw than bash to read.
seeds = st.integers(0, 2**64 - 1)


def hostile(seed: int, count: int) -> list[str]:
    draw = random.Random(seed)
    anything = [chr(draw.randrange(0x250)) for _ in range(20)]
    return ["".join(draw.choices(FRAGMENTS + anything, k=draw.randint(1, 6))) for _ in range(count)]


PER_SCRIPT, SCRIPTS = 100, 100
DUMP = """import json, os, sys
values = {k: v for k, v in os.environ.items() if k.startswith("V_")}
json.dump([sys.argv[1:], os.getcwd(), values], open(os.environ["DUMP"], "w"))
sys.exit(int(os.environ["CODE"]))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("hostile")
    (home / "dump.py").write_text(f"#!{sys.executable} -S\n{DUMP}")
    (home / "dump.py").chmod(0o755)
    return home


@settings(
    max_examples=SCRIPTS,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(seeds)
def test_ten_thousand_hostile_values_arrive_unchanged_or_are_refused(home, seed):
    """As values of variables, as the directory of an array, and as the current directory."""
    canary = home / "canary"
    values = [value.replace("CANARY", str(canary)) for value in hostile(seed, PER_SCRIPT)]
    kept: dict[str, str] = {}
    for number, value in enumerate(values):
        try:
            name = f"V_{number}"
            Profile(time="1", cpus_per_node=1, environment={name: value})
            kept[name] = value
        except ValueError:
            assert any(
                ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in value
            )
    paths = [v for v in kept.values() if "/" not in v and len(v.encode()) < 200 and v.strip(".")]
    directory = home / "at" / (paths[0] if paths else "plain")
    directory.mkdir(parents=True, exist_ok=True)
    profile = Profile(time="1", cpus_per_node=1, environment=kept, python=str(home / "dump.py"))
    submission = Path("/x", *[path for path in paths[1:9] if not set(path) & set("%\\")])
    text = render(SHAPE, profile, names=NAMES, runs=1, submission=submission, directory=directory)
    script, dump = home / "job.sh", home / "dump.json"
    script.write_text(text, encoding="utf-8")
    environment = {
        "DUMP": str(dump),
        "CODE": str(NOTHING_TO_DO),
        "SLURM_ARRAY_TASK_ID": "0",
        "PATH": "/usr/bin:/bin",
    }
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    argv, where, arrived = json.loads(dump.read_text())
    assert arrived == kept
    assert where == str(directory)
    assert argv == ["-P", "-m", "dsv3.launch.slurm.job", "begin", str(submission), "0"]
    assert not canary.exists()
    before_set = text.partition("\nset -uo pipefail\n")[0].splitlines()
    assert all(line.startswith("#") for line in before_set if line), "options of sbatch alone"


@pytest.mark.parametrize("seed", range(5))
def test_a_hostile_name_is_one_word_of_an_option_or_refused(seed):
    for value in hostile(seed, 400):
        check_name(value)


def check_name(value: str) -> None:
    assert re.fullmatch(r"dsv3-[A-Za-z0-9_.-]*", job_name(value, KEY))
    assert option(job_name(value, KEY)).endswith(KEY)
    try:
        assert re.fullmatch(r"""[^\s"'\\#$`]+""", option(value))
    except ConfigError:
        assert not re.fullmatch(r"[\w.-]+", value, re.ASCII)


@pytest.mark.parametrize("key", ["account", "partition", "qos", "constraint", "reservation"])
@pytest.mark.parametrize("value", ["a b", "x\n#SBATCH --uid=0", '"', "a#b", "", "$(id)"])
def test_what_sbatch_would_read_anew_is_refused_in_a_profile(tmp_path, key, value):
    home = tmp_path / "launchers" / "profiles"
    home.mkdir(parents=True)
    home.joinpath("p.yaml").write_text(
        f"time: 1:00:00\ncpus_per_node: 8\n{key}: {json.dumps(value)}\n"
    )
    with pytest.raises(ConfigError, match=rf"p\.yaml: {key}"):
        load_profile("p", tmp_path)


def test_control_characters_are_in_no_script():
    for character in "\n\r\0\x1b\x7f\x85\ud800":
        with pytest.raises(ConfigError, match="control characters"):
            quote(f"a{character}b")


@pytest.mark.parametrize("name", ["100%j", "back\\slash"])
def test_what_slurm_would_read_in_the_directory_of_its_output_is_refused(name, tmp_path):
    profile = Profile(time="1", cpus_per_node=1)
    with pytest.raises(ConfigError, match="choose another run_root="):
        render(
            SHAPE, profile, names=NAMES, runs=1, submission=Path("/x") / name, directory=tmp_path
        )
