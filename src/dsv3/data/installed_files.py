"""Which files of this machine are text worth reading, and the texts inside each of them.

The standard library and a fixed list of packages every installation of this project has: text does
not change when something else is installed, and is the same on machines with the same versions.
"""

import ast
import csv
import hashlib
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
Kind = Literal["python", "c", "docs", "docstrings", "topics"]

PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "sympy",
    "networkx",
    "deepspeed",
    "mpmath",
    "pydantic",
    "setuptools",
    "hydra-core",
    "omegaconf",
    "rich",
    "typer",
    "jinja2",
    "fsspec",
    "psutil",
    "packaging",
    "tqdm",
)
# Packages whose docstrings are reference manuals: half of their files count as documentation, and
# only with the docstrings, so that no text is in two domains.
MANUALS = ("numpy/", "scipy/", "sympy/", "networkx/")
# Tests repeat themselves; the others are missing on some systems, or differ from build to build.
SKIPPED_DIRECTORIES = frozenset(
    ("test", "tests", "testing", "site-packages", "dist-packages", "__pycache__", "_vendor")
    + ("lib-dynload", "config", "idlelib", "lib2to3", "tkinter", "turtledemo", "ensurepip")
)
C_SUFFIXES = frozenset((".h", ".hpp", ".cuh", ".c", ".cc", ".cpp", ".cu", ".inl"))
DOC_SUFFIXES = frozenset((".md", ".rst"))
DOC_NAMES = ("README", "METADATA", "LICENSE", "COPYING", "NOTICE", "AUTHORS", "CHANGE", "NEWS")
GENERATED = (b"@generated", b"DO NOT EDIT", b"do not edit", b"utogenerated", b"uto-generated")
HEAD_BYTES = 1_000  # where programs say that they wrote the file: thousands of them are alike
SMALLEST_BYTES, LARGEST_BYTES = 200, 262_144  # beyond: stubs, and tables written by programs


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that may hold text: its name on every machine, where it is here, how it is read."""

    name: str
    path: str
    kind: Kind

    @property
    def domain(self) -> str:
        """The domain its texts belong to."""
        return "docs" if self.kind in ("docstrings", "topics") else self.kind


def candidates() -> list[Candidate]:
    """Every candidate, in an order given by the hash of the name: packages and topics mix."""
    found = {candidate.name: candidate for candidate in (*_standard_library(), *_packages())}
    return sorted(found.values(), key=lambda candidate: _draw(candidate.name))


def texts(kind: Kind, content: bytes) -> list[str]:
    """The texts of a file; none if it is binary, generated, not UTF-8, too short or too long."""
    if not SMALLEST_BYTES <= len(content) <= LARGEST_BYTES or b"\0" in content:
        return []
    if any(mark in content[:HEAD_BYTES] for mark in GENERATED):
        return []
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return []
    if kind in ("python", "c", "docs"):
        return [text]
    found = _docstrings(text) if kind == "docstrings" else _topics(text)
    return [text for text in found if len(text) >= SMALLEST_BYTES]


def _draw(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8, person=b"dsv3 file").digest()


def _standard_library() -> Iterator[Candidate]:
    paths = sysconfig.get_paths()
    for label, root in (("stdlib", paths["stdlib"]), ("include", paths["include"])):
        for directory, names, files in os.walk(root):
            names[:] = [name for name in names if not _is_skipped(name)]
            for file in files:
                path = os.path.join(directory, file)  # noqa: PTH118 - thousands of paths
                name = f"{label}/{os.path.relpath(path, root)}"
                if kind := _kind(name):
                    yield Candidate(name, path, kind)


def _packages() -> Iterator[Candidate]:
    for package in PACKAGES:
        try:
            installed = distribution(package)
        except PackageNotFoundError:
            continue
        root = str(installed.locate_file(""))
        for name, *_ in csv.reader((installed.read_text("RECORD") or "").splitlines()):
            if (kind := _kind(name)) and not any(map(_is_skipped, name.split("/")[:-1])):
                # The version is part of that directory's name, and would reorder the files.
                neutral = re.sub(r"^[^/]*\.dist-info/", f"{package}.dist-info/", name)
                yield Candidate(neutral, f"{root}{os.sep}{name}", kind)


def _is_skipped(directory: str) -> bool:
    return directory in SKIPPED_DIRECTORIES or directory.startswith(("config-", ".."))


def _kind(name: str) -> Kind | None:
    basename = name.rpartition("/")[2]
    suffix = basename[basename.rfind(".") :].lower() if "." in basename else ""
    if suffix == ".py":
        return _python_kind(name, basename)
    if suffix in C_SUFFIXES:
        return "c" if basename != "pyconfig.h" else None
    named_doc = suffix in ("", ".txt") and basename.upper().startswith(DOC_NAMES)
    return "docs" if named_doc or suffix in DOC_SUFFIXES else None


def _python_kind(name: str, basename: str) -> Kind | None:
    if name == "stdlib/pydoc_data/topics.py":
        return "topics"
    if basename.startswith("_sysconfigdata"):
        return None  # differs from build to build
    return "docstrings" if name.startswith(MANUALS) and _draw(name)[-1] % 2 else "python"


def _parse(source: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's code
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def _docstrings(source: str) -> list[str]:
    """One text of all longer docstrings of a module, in order, each under its name."""
    module = _parse(source)
    parts = [] if module is None else list(_documented(module, ""))
    return ["\n\n".join(parts) + "\n"] if parts else []


def _documented(node: ast.Module | ast.ClassDef | FunctionNode, name: str) -> Iterator[str]:
    docstring = ast.get_docstring(node)
    if docstring is not None and len(docstring) >= SMALLEST_BYTES:
        yield f"{name}\n{'-' * len(name)}\n{docstring}" if name else docstring
    for child in node.body:  # not deeper: what is defined inside branches repeats itself
        if isinstance(child, ast.ClassDef | FunctionNode):
            yield from _documented(child, child.name)


def _topics(source: str) -> list[str]:
    """The chapters of the language reference that `help()` shows."""
    module = _parse(source)
    chapters = []
    for node in ast.walk(module) if module is not None else ():
        if isinstance(node, ast.Dict):
            chapters += [value.value for value in node.values if isinstance(value, ast.Constant)]
    return [chapter for chapter in chapters if isinstance(chapter, str)]


def read(path: str | Path) -> bytes | None:
    """Content of a file, or None if it cannot be read (removed, or not ours to read)."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return None
