"""Write docs/configuration.md from the schema and conf/: `python -m dsv3.config.reference`."""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dsv3.config.compose import compose
from dsv3.config.diff import leaves
from dsv3.config.keys import Key, keys
from dsv3.config.locations import shipped
from dsv3.config.options import Catalogue, Option, catalogue
from dsv3.config.root import RunConfig

_HEAD = """\
# Configuration reference

Written by `python -m dsv3.config.reference` from the schema and `conf/`; a test fails when it is
stale. Every value lives in one YAML file; the schema has no defaults of its own.

- `GROUP=OPTION` chooses a file of a group: `dsv3 train model=moe_nano balance=none`.
- `KEY=VALUE` sets one key, whatever the options say: `schedule.lr=1e-3`. The last of a key wins.
- `-m` runs an arm for each value of `a,b`, `range(1,4)`, `choice(a,b)` and `glob(*)`.
- `recipe=NAME` runs a whole ablation, as in docs/recipes.md; `dsv3 config ls recipe` lists them.
- `--config-dir DIR` adds your own options, `DIR/GROUP/NAME.yaml`; they shadow those shipped.
- `dsv3 config show|ls|diff` print what comes out.

"Default" is the value without any override, from the option that is the default of its group.
"""


def reference() -> str:
    """Text of the page."""
    composed = compose()
    values = dict(leaves(composed.config.model_dump(mode="json")))
    groups = catalogue()
    sections = [_HEAD.rstrip(), *_section("", "Top level", values, "base")]
    for name, field in RunConfig.model_fields.items():
        if not keys()[name].is_section:
            continue
        source = f"{name}/{composed.choices[name]}" if name in groups else "base"
        sections += _section(name, f"`{name}`: {field.description}", values, source)
        for group in groups:
            if group == name or group.startswith(f"{name}/"):
                sections += _options(groups, group, composed.choices)
    return "\n".join(sections) + "\n"


def path() -> Path:
    """Where the page is kept in a checkout."""
    return shipped("conf").parent / "docs" / "configuration.md"


def _section(name: str, title: str, values: Mapping[str, Any], source: str) -> Iterator[str]:
    rows = [_row(key, values) for key in keys().values() if _belongs(key, name)]
    yield f"\n## {title}\n"
    yield f"Defaults from `conf/{source}.yaml`.\n"
    yield "| key | type | default | what it is |"
    yield "|---|---|---|---|"
    yield from rows


def _belongs(key: Key, section: str) -> bool:
    if section == "":
        return "." not in key.path and not key.is_section
    return key.path.startswith(f"{section}.")


def _row(key: Key, values: Mapping[str, Any]) -> str:
    cells = [f"`{key.path}`", key.type_in_words, _default(key, values), key.description]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _default(key: Key, values: Mapping[str, Any]) -> str:
    """The value of a leaf; for a list the number of its items, for what is inside it nothing."""
    if key.path in values:
        return f"`{json.dumps(values[key.path])}`"
    if key.kind is tuple:
        items = {rest.split(".")[0] for name in values if (rest := _below(key.path, name))}
        return f"{len(items)} items"
    return ""


def _below(path: str, name: str) -> str:
    return name[len(path) + 1 :] if name.startswith(f"{path}.") else ""


def _options(groups: Catalogue, group: str, choices: Mapping[str, str]) -> Iterator[str]:
    yield f"\nOptions of `{group}`:\n"
    for option in groups[group].values():
        yield _option(option, is_default=choices.get(group) == option.name)


def _option(option: Option, *, is_default: bool) -> str:
    comment = f": {option.comment}" if option.comment else ""
    return f"- `{option.group}={option.name}`{' (default)' if is_default else ''}{comment}"


def main() -> None:
    """Write the page, or with `--check` only say whether it is stale."""
    target, text = path(), reference()
    is_current = target.is_file() and target.read_text(encoding="utf-8") == text
    if "--check" in sys.argv[1:]:
        sys.exit(0 if is_current else f"{target} is stale: run `python -m dsv3.config.reference`")
    if not is_current:
        target.parent.mkdir(exist_ok=True)
        target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
