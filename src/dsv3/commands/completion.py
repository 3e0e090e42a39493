"""`dsv3 completion SHELL`: what may follow the words typed so far, without composing anything."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from dsv3.commands.console import write
from dsv3.config.keys import find, keys
from dsv3.config.options import RECIPE, Catalogue, catalogue
from dsv3.config.overrides import ALIASES
from dsv3.config.suggest import did_you_mean
from dsv3.errors import ConfigError, Problem

# bash splits words at `=`; taking it out of COMP_WORDBREAKS keeps `key=value` one word.
_BASH = """\
_dsv3_completion() {
    local IFS=$'\\n'
    COMPREPLY=($(dsv3 complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    case "${COMPREPLY[0]-}" in *=|*.) compopt -o nospace ;; esac
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o default -F _dsv3_completion dsv3
"""
_ZSH = """\
#compdef dsv3
_dsv3() {
    local -a found
    found=("${(@f)$(dsv3 complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    compadd -S '' -- ${found:#}
}
compdef _dsv3 dsv3
"""
_FISH = """\
function __dsv3_complete
    set -l typed (commandline -opc) (commandline -ct)
    dsv3 complete -- $typed[2..-1] 2>/dev/null
end
complete -c dsv3 -f -a '(__dsv3_complete)'
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}

TAKES_OVERRIDES = {"overrides", "words"}
TAKES_RECIPE = {"train", "plan", "show", "diff", "lint"}


def completion(shell: str) -> int:
    """Print the script for a shell."""
    if shell not in SCRIPTS:
        remedy = did_you_mean(shell, SCRIPTS) or f"use one of {', '.join(SCRIPTS)}"
        raise ConfigError(Problem(f"completion {shell}", "there is no such shell here", remedy))
    write(SCRIPTS[shell])
    return 0


def complete(words: Sequence[str], command: Any) -> int:
    """Print the candidates for the last of `words`, one a line."""
    found = candidates(words, command)
    if found:
        write("\n".join(found))
    return 0


def candidates(words: Sequence[str], command: Any) -> list[str]:
    """What may stand in place of the last of `words`; `command` is typer's tree of verbs."""
    *before, typed = [word for word in words if word != "--"] or [""]
    verb = command
    for word in before:
        verb = getattr(verb, "commands", {}).get(word, verb)
    match before[-1:]:
        case ["--config-dir"]:
            return []  # the shell completes directories by itself
        case ["--cfg" | "-c"]:
            return ["job"]
    if typed.startswith("-"):
        return _starting(typed, [flag for parameter in verb.params for flag in parameter.opts])
    return _words(verb, typed, before)


def _words(verb: Any, typed: str, before: Sequence[str]) -> list[str]:
    """Candidates that are not flags."""
    if getattr(verb, "commands", None):
        return _starting(typed, [name for name, one in verb.commands.items() if not one.hidden])
    if verb.name == "completion":
        return _starting(typed, SCRIPTS)
    if verb.name == "eval":
        return _of_evaluation(typed, before)
    groups = catalogue(_config_dir(before))
    if verb.name == "ls":
        return _starting(typed, groups)
    if verb.name not in TAKES_RECIPE:
        groups = {group: options for group, options in groups.items() if group != RECIPE}
    takes_overrides = any(parameter.name in TAKES_OVERRIDES for parameter in verb.params)
    return override_candidates(typed, groups) if takes_overrides else []


def _of_evaluation(typed: str, before: Sequence[str]) -> list[str]:
    """What `eval` may change; its first word is a directory, which the shell completes."""
    given = [word for word in before if not word.startswith("-") and not word.isdecimal()]
    if given == ["eval"] and "=" not in typed:
        return []
    allowed = ("evaluation.", "launcher.", "run_root=")
    return [word for word in override_candidates(typed, {}) if word.startswith(allowed)]


def override_candidates(typed: str, groups: Catalogue) -> list[str]:
    """Groups and keys while the key is typed, one level at a time; then options and choices."""
    name, equals, value = typed.partition("=")
    if not equals:
        return _key_candidates(typed, groups)
    head, comma, last = value.rpartition(",")
    options = _value_candidates(ALIASES.get(name, name), groups)
    return [f"{name}={head}{comma}{option}" for option in _starting(last, options)]


def _key_candidates(typed: str, groups: Catalogue) -> list[str]:
    section = typed.rpartition(".")[0]
    found = [f"{group}=" for group in groups if "/" in group or group == RECIPE]
    for path, key in keys().items():
        if path.rpartition(".")[0] != section or "*" in path:
            continue
        if path in groups:
            found.append(f"{path}=")
        found.append(f"{path}." if key.is_section else f"{path}=")
    return _starting(typed, found)


def _value_candidates(name: str, groups: Catalogue) -> Iterable[str]:
    if name in groups:
        return list(groups[name])
    key = find(name)
    if key is None:
        return []
    values = list(key.choices) or (["true", "false"] if key.kind is bool else [])
    return [*values, "null"] if key.nullable else values


def _starting(typed: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(typed)]


def _config_dir(words: Sequence[str]) -> Path | None:
    """The directory given so far, if it is one; a wrong one is no reason to complete nothing."""
    for option, value in pairwise(words):
        if option == "--config-dir" and Path(value).is_dir():
            return Path(value)
    return None
