"""Parsed source files, as the checks of this directory see them.

Each check is a function of a root: it takes the directory of a package (or of a tree) and returns
its findings as lines `file:line what`, so that its own test can hand it a planted violation.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """One Python file: where it is below `root`, its text and its tree."""

    root: Path
    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, filename=str(self.path))

    @property
    def name(self) -> str:
        """Path below the root, with forward slashes."""
        return self.path.relative_to(self.root).as_posix()

    @property
    def layer(self) -> str:
        """The package directly below the root, or the module's own name."""
        return self.name.split("/")[0].removesuffix(".py")

    def at(self, node: ast.AST, what: str) -> str:
        """A finding at `node`."""
        return f"{self.name}:{getattr(node, 'lineno', 1)} {what}"


def sources(root: Path) -> list[Source]:
    """Every Python file below `root`, in order of path."""
    return [Source(root, path) for path in sorted(root.rglob("*.py"))]


def imported_modules(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Every module named by an import below `tree`, inside functions too, with its node.

    `from a.b import c` names `a.b.c`, for c may be a module. A constant handed to `import_module`
    or `__import__` counts; a relative import is named with its dots.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node, "." * node.level + f"{node.module or ''}.{alias.name}".lstrip(".")
        elif isinstance(node, ast.Call) and called_name(node) in {"import_module", "__import__"}:
            match node.args:
                case [ast.Constant(value=str(module)), *_]:
                    yield node, module


def called_name(call: ast.Call) -> str:
    """Last part of what is called: `load` in `torch.load(...)`, or an empty string."""
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def dotted(node: ast.AST) -> str:
    """`a.b.c` for a chain of names, an empty string for anything else."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr):
            head = dotted(value)
            return f"{head}.{attr}" if head else ""
    return ""
