"""The schema's promises: every key is described, has no default, and something obeys it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from architecture.source import Source, called_name, sources

# Files that only refuse, warn or tell: a key that nothing else reads is a key nothing obeys.
ONLY_SPEAK = {
    "config/rules.py",
    "config/compose.py",
    "config/linter.py",
    "config/balance_traps.py",
    "config/run_traps.py",
    "config/bias_speed.py",
    "plan/description.py",
    "plan/record.py",
    "sweep/arms.py",
}

REFERENCE = re.compile(r"(?P<key>\w+): *\$\{(?P<path>[\w.]+)\}")

# Keys that are obeyed by refusing alone, each with its reason.
LIMITS = {
    "max_position_embeddings": "a bound on sequence_length; rotary positions have no end",
    "dgrad_tiling": "a choice of FP8 runs alone, which are composed and planned but refused to train",
}


def sections(root: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """`root` and every section below it, by class name."""
    found, todo = {}, [root]
    while todo:
        section = todo.pop()
        if section.__name__ not in found:
            found[section.__name__] = section
            for info in section.model_fields.values():
                todo += _models_in(info.annotation)
    return found


def description_findings(root: type[BaseModel]) -> list[str]:
    """Keys without a description, or with a default beside the one in conf/."""
    findings = []
    for name, section in sections(root).items():
        for key, info in section.model_fields.items():
            if not (info.description or "").strip():
                findings.append(f"{name}.{key} has no description")
            if info.default is not PydanticUndefined or info.default_factory is not None:
                findings.append(f"{name}.{key} has a default in the schema")
    return findings


def unread_findings(root: type[BaseModel], package_root: Path, conf: Path) -> list[str]:
    """Keys that no code outside config/ reads, directly or through a property of their section.

    A key that only conf/ refers to is obeyed if a key is that takes its value from it.
    The search is by attribute name, so two keys of one name vouch for each other: it finds the
    forgotten key, not every misuse.
    """
    read = _read_outside_config(package_root)
    read |= {part for key, parts in _referred_to(conf) if key in read for part in parts}
    return [
        f"{name}.{key} is read by nothing outside config/"
        for name, section in sections(root).items()
        for key in section.model_fields
        if key not in read and key not in LIMITS
    ]


def _referred_to(conf: Path) -> Iterator[tuple[str, list[str]]]:
    """Keys of conf/ whose value is `${section.key}`, with the parts of that path."""
    for file in sorted(conf.rglob("*.yaml")):
        for line in file.read_text(encoding="utf-8").splitlines():
            if found := REFERENCE.fullmatch(line.strip()):
                yield found["key"], found["path"].split(".")


def _read_outside_config(package_root: Path) -> set[str]:
    """Names read outside config/, and those read by functions of config/ that are in turn read."""
    inside: list[ast.AST] = []
    names: set[str] = set()
    for source in sources(package_root):
        if source.name in ONLY_SPEAK:
            continue
        if source.layer != "config":
            names |= _names(source.tree)
        else:
            inside += _functions(source)
    size = -1
    while size != len(names):
        size = len(names)
        for function in inside:
            if getattr(function, "name", "") in names:
                names |= _names(function)
    return names


def _functions(source: Source) -> list[ast.AST]:
    """Functions and methods of a file, without the validators of its sections."""
    return [
        node
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef)
        and not any(
            isinstance(each, ast.Call) and called_name(each).endswith("_validator")
            for each in node.decorator_list
        )
    ]


def _names(tree: ast.AST) -> set[str]:
    """Attributes read and functions named below `tree`."""
    attributes = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    called = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    return attributes | called


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections an annotation mentions: itself, or inside a union or a container."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for each in get_args(annotation) for model in _models_in(each)]
