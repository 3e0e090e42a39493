"""Sizes and docstrings: what keeps a file readable on one screen after another."""

import ast
from collections.abc import Iterator
from pathlib import Path

from architecture.source import Source, sources

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def size_findings(root: Path) -> list[str]:
    """Files and functions that are too long; decorators and the docstring count."""
    findings = []
    for source in sources(root):
        lines = source.text.count("\n")
        if lines > MAX_FILE_LINES:
            findings.append(f"{source.name}: {lines} lines, {MAX_FILE_LINES} at most")
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                length = (node.end_lineno or first) - first + 1
                if length > MAX_FUNCTION_LINES:
                    what = f"{node.name} has {length} lines, {MAX_FUNCTION_LINES} at most"
                    findings.append(source.at(node, what))
    return findings


def docstring_findings(root: Path) -> list[str]:
    """Modules, public classes and public functions without a docstring."""
    findings = []
    for source in sources(root):
        if ast.get_docstring(source.tree) is None:
            findings.append(f"{source.name}: module without a docstring")
        for node in _public(source):
            if ast.get_docstring(node) is None:
                findings.append(source.at(node, f"{node.name} without a docstring"))
    return findings


def _public(source: Source) -> Iterator[Definition]:
    """Definitions a reader may call: not in functions, not private, not magic, not overloads."""
    todo: list[ast.Module | ast.ClassDef] = [source.tree]
    while todo:
        for node in todo.pop().body:
            if isinstance(node, Definition) and not node.name.startswith("_"):
                if not any(_names_overload(each) for each in node.decorator_list):
                    yield node
                if isinstance(node, ast.ClassDef):
                    todo.append(node)


def _names_overload(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Name) and decorator.id in {"overload", "override"}
