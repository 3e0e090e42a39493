"""YAML at the border: what a user's file may hold, and how a configuration is printed."""

import io
from pathlib import Path
from typing import Any

import yaml

from dsv3.errors import ConfigError, Problem
from dsv3.files import reason

MAX_BYTES = 256 * 1024
MAX_NODES = 20_000
"""A configuration has hundreds of nodes; aliases may not multiply them beyond this."""


def dump(data: Any) -> str:
    """YAML of plain data, keys in their order; a value alone without YAML's mark of the end."""
    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
    return text.removesuffix("...\n")


def read_vetted(path: Path) -> str:
    """Text of a user's YAML file that is safe to hand to a loader.

    Raises ConfigError, naming file and line, if the file is unreadable, too large, not UTF-8,
    empty, malformed, tagged, multiplied by aliases, or repeats a key.
    """
    text = _decode(path)
    try:
        root = yaml.compose(io.StringIO(text), Loader=yaml.SafeLoader)
        if root is None:
            raise _refusal(path, "is empty", "write the keys of its section, or delete it")
        _vet(root, path)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = path if mark is None else f"{path}:{mark.line + 1}"
        raise _refusal(where, f"is not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise _refusal(path, f"is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise _refusal(path, "is nested too deeply") from None
    return text


def _decode(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _refusal(path, f"cannot be read: {reason(error)}") from None
    if len(raw) > MAX_BYTES:
        raise _refusal(path, f"is larger than {MAX_BYTES} bytes, too large for a configuration")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        rule = f"is not UTF-8 text (byte {error.start})"
        raise _refusal(path, rule, "save the file as UTF-8") from None


def _vet(root: yaml.Node, path: Path) -> None:
    """Walk the graph of nodes; an alias is an edge to a node already counted."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in open_nodes:
            raise _refusal(_at(path, node), "an alias refers to a node that contains it")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            _refuse_tag(node, path)
            sizes[id(node)] = 1 + sum(size(child) for child in _children(node, path))
            open_nodes.discard(id(node))
        if sizes[id(node)] > MAX_NODES:
            raise _refusal(_at(path, node), f"its aliases expand to more than {MAX_NODES} values")
        return sizes[id(node)]

    size(root)
    if not isinstance(root, yaml.MappingNode):
        raise _refusal(_at(path, root), "must hold `key: value` lines")


def _children(node: yaml.Node, path: Path) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if not isinstance(node, yaml.MappingNode):
        return []
    seen: set[str] = set()
    for key, _ in node.value:
        if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            raise _refusal(_at(path, key), "a key must be a name", "put quotes round it")
        if key.value in seen:
            raise _refusal(_at(path, key), f"the key {key.value!r} stands twice", "keep one")
        seen.add(key.value)
    return [child for pair in node.value for child in pair]


def _refuse_tag(node: yaml.Node, path: Path) -> None:
    if not node.tag.startswith("tag:yaml.org,2002:") or ":python/" in node.tag:
        rule = f"the tag {node.tag!r} is not allowed: a configuration is plain data"
        raise _refusal(_at(path, node), rule, "remove the tag")


def _at(path: Path, node: yaml.Node) -> str:
    return f"{path}:{node.start_mark.line + 1}"


def _refusal(where: object, rule: str, remedy: str = "") -> ConfigError:
    return ConfigError(Problem(str(where), rule, remedy))
