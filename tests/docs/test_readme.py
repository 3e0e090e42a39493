"""What the README says is so: its tree, its commands, its make targets."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from markdown_it import MarkdownIt

from architecture.checkout import kept_files

ROOT = Path(__file__).resolve().parents[2]


def fenced(language: str, text: str | None = None) -> list[str]:
    """The blocks of the README (or of `text`) in a language."""
    text = (ROOT / "README.md").read_text(encoding="utf-8") if text is None else text
    tokens = MarkdownIt().parse(text)
    return [token.content for token in tokens if token.type == "fence" and token.info == language]


def commands(text: str | None = None) -> list[list[str]]:
    """The command lines of the console blocks: what follows `$ `."""
    lines = [line for block in fenced("console", text) for line in block.splitlines()]
    return [shlex.split(line[2:], comments=True) for line in lines if line.startswith("$ ")]


def tree_paths(block: str) -> Iterator[PurePosixPath]:
    """Paths of a tree drawn with two blanks a level: the first word of each line, dirs with `/`."""
    above: list[str] = []
    for line in block.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        above = [*above[:depth], name.rstrip("/")]
        yield PurePosixPath(*above)


def typer_command() -> Any:
    """The root of the command line, as Typer builds it."""
    from typer.main import get_command

    from dsv3.cli import app

    return get_command(app)


def parse(command: Any, words: list[str]) -> tuple[str, dict[str, Any]]:
    """Verb and parameters of a command line, without running it; unknown ones raise."""
    verb: list[str] = []
    while words and words[0] in getattr(command, "commands", {}):
        verb.append(words[0])
        command, words = command.commands[words[0]], words[1:]
    if not verb or hasattr(command, "commands"):
        raise LookupError(f"no such verb: {shlex.join([*verb, *words])}")
    return " ".join(verb), dict(command.make_context(verb[-1], list(words)).params)


GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
DSV3_COMMANDS = [shlex.join(words[1:]) for words in commands() if words[0] == "dsv3"]
GUIDE_COMMANDS = [shlex.join(words[1:]) for words in commands(GUIDE)]


def test_the_console_blocks_hold_commands_of_ours_only() -> None:
    assert len(DSV3_COMMANDS) >= 8
    assert {words[0] for words in commands()} <= {"dsv3", "make", "git", "cd", "pip"}


@pytest.mark.parametrize("line", DSV3_COMMANDS)
def test_a_command_is_understood_and_its_configuration_composes(line: str) -> None:
    assert_composes(line)


def assert_composes(line: str) -> None:
    """The verb and its options are there, and so is every configuration that its words mean."""
    from dsv3.sweep.expand import configurations

    _, parameters = parse(typer_command(), shlex.split(line))
    words = list(parameters.get("overrides") or parameters.get("words") or [])
    options = {name: parameters.get(name) for name in ("multirun", "config_dir")}
    for side in shlex.join(words).split(" vs "):
        for composed in configurations(side.split(), **options):
            assert composed.config.schedule.num_steps > 0


@pytest.fixture
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the guide has its reader write, where it says, and a text."""
    monkeypatch.chdir(tmp_path)
    blocks = fenced("yaml", GUIDE)
    assert len(blocks) == 2
    for block in blocks:
        path = Path(block.split()[1])
        path.parent.mkdir(parents=True)
        path.write_text(block)
    Path("corpus").mkdir()


@pytest.mark.usefixtures("own_files")
@pytest.mark.parametrize("line", GUIDE_COMMANDS)
def test_a_command_of_the_guide_is_understood_and_composes(line: str) -> None:
    assert_composes(line)


def test_a_planted_unknown_verb_and_option_are_refused() -> None:
    planted = "```console\n$ dsv3 trian model=x  # no such verb\noutput\n$ dsv3 train --fast\n```"
    for words in commands(planted):
        with pytest.raises(Exception, match=r"no such verb|[Nn]o such option"):
            parse(typer_command(), words[1:])
    assert len(commands(planted)) == 2


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    named = {word for words in commands() if words[0] == "make" for word in words[1:]}
    assert {"demo", "test"} <= named <= targets


def test_the_command_of_ci_is_the_one_of_the_readme() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert ["make", "test"] in commands()


def test_ci_stops_at_a_failing_test_run(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_bytes((ROOT / ".ci" / "run").read_bytes())
    recipe = (
        "test:\n\t@echo '=== 1 failed in 1s ==='; false\n"
        "test-slurm:\n\t@echo '=== 2 failed in 2s ==='; false \n"
        "lint types:\n\t@echo reached\n"
    )
    command = ["bash", str(tmp_path / ".ci" / "run")]

    for failing in (recipe, recipe.replace("; false\n", "\n")):
        (tmp_path / "Makefile").write_text(failing)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "reached" not in done.stdout

    (tmp_path / "Makefile").write_text(recipe.replace("; false", ""))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    told = ["reached", "=== 1 failed in 1s ===", "=== 2 failed in 2s ==="]
    assert done.stdout.splitlines()[-3:] == told


def test_the_tree_is_the_repository() -> None:
    (block,) = fenced("text")
    drawn = set(tree_paths(block))
    assert tree_differences(drawn, {file.relative_to(ROOT) for file in kept_files(ROOT)}) == []


def tree_differences(drawn: set[PurePosixPath], files: set[Path]) -> list[str]:
    """Entries drawn that are not there, and entries there that a drawn-out directory leaves out.

    A directory is drawn out when the tree shows something below it; markers may be left out.
    """
    there = {PurePosixPath(file) for file in files}
    there |= {parent for file in there for parent in file.parents if parent.name}
    drawn = drawn | {parent for path in drawn for parent in path.parents if parent.name}
    expanded = {path.parent for path in drawn}
    missing = [f"{path} is drawn but not there" for path in sorted(drawn - there)]
    for path in sorted(there - drawn):
        if path.parent in expanded and not path.name.startswith((".", "_", "py.typed")):
            missing.append(f"{path} is there but not drawn")
    return missing


def test_planted_differences_of_the_tree_are_found() -> None:
    drawn = set(tree_paths("conf/  groups\nsrc/\n  gone.py  one\n"))
    assert tree_differences(drawn, {Path("conf/a.yaml"), Path("src/new.py"), Path(".ci/run")}) == [
        "src/gone.py is drawn but not there",
        "src/new.py is there but not drawn",
    ]
