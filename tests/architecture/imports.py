"""The import rule: which package may know which, and where each third party is at home."""

import ast
import copy
import re
import sys
from pathlib import Path

from architecture.source import Source, imported_modules, sources

# What a package may import directly; what those may import follows. OPEN is open to all.
OPEN = {"errors", "files", "machine", "picture", "redaction"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "files": set(),
    "lanes": set(),
    "machine": set(),
    "picture": set(),
    "redaction": set(),
    "config": set(),
    "plan": {"config", "parallel"},
    "runs": {"config"},
    "data": {"config"},
    "ops": set(),
    "model": {"config", "ops"},
    "parallel": {"config", "ops"},
    "engine": {"config", "parallel"},
    "checkpoint": {"config"},
    "launch": {"plan", "runs"},
    "sweep": {"plan", "launch"},
    "report": {"lanes", "plan", "sweep"},
    "interop": {"model", "checkpoint"},
    "train": {"model", "parallel", "engine", "data", "checkpoint", "runs", "plan"},
    "commands": {"report", "interop", "train"},
    "cli": {"cli_sweeps"},
    "cli_sweeps": {"commands"},
    "__main__": {"cli"},
    "__init__": set(),
}

# Of `parallel`, which has torch, these packages may import the files that have none, and no `ops`.
TORCH_FREE_OF_PARALLEL = {"mesh", "schedule", "spans", "stages"}
ONLY_TORCH_FREE = ("plan", "launch", "sweep", "report")

# Where a third party may be imported: path prefixes below src/dsv3. Others: anywhere, if declared.
HOMES: dict[str, tuple[str, ...]] = {
    "hydra": ("config/compose.py",),
    "omegaconf": ("config/compose.py",),
    "deepspeed": ("engine/",),
    "transformer_engine": ("engine/", "model/backends/te"),
    "typer": ("cli.py", "cli_sweeps.py", "commands/"),
    "matplotlib": ("commands/", "lanes.py", "picture.py", "report/", "train/timeline_picture.py"),
    "plotext": ("commands/", "report/"),
    "rich": ("cli.py", "commands/", "report/", "train/"),
    "torch": (
        "checkpoint/",
        "data/loader.py",
        "engine/",
        "interop/",
        "model/",
        "ops/",
        "parallel/",
        "train/",
    ),
}

# Import names that differ from the name of the distribution that brings them.
DISTRIBUTIONS = {
    "hydra": "hydra-core",
    "pydantic_core": "pydantic",
    "pynvml": "nvidia-ml-py",
    "yaml": "pyyaml",
}


def allowed(package: str) -> set[str]:
    """Every package that `package` may import, itself and the open ones included."""
    reached, todo = set(OPEN), [package]
    while todo:
        current = todo.pop()
        if current not in reached or current == package:
            reached.add(current)
            todo += [other for other in MAY_IMPORT[current] if other not in reached]
    return reached


def layer_findings(package_root: Path) -> list[str]:
    """Imports between our packages that the table does not allow."""
    findings = []
    for source in sources(package_root):
        if source.layer not in MAY_IMPORT:
            findings.append(f"{source.name}: package {source.layer} has no place in MAY_IMPORT")
            continue
        for node, module in imported_modules(source.tree):
            if module.startswith("."):
                findings.append(source.at(node, f"relative import of {module}; name it in full"))
                continue
            target = _layer_of(module)
            if target is not None and target not in allowed(source.layer):
                findings.append(source.at(node, f"{source.layer} must not import {target}"))
    return findings


def torch_findings(package_root: Path) -> list[str]:
    """Ways to torch for packages that may know the files of `parallel` without it, or in these."""
    findings = []
    free_files = {f"parallel/{file}.py" for file in TORCH_FREE_OF_PARALLEL}
    for source in sources(package_root):
        if source.layer not in ONLY_TORCH_FREE and source.name not in free_files:
            continue
        for node, module in imported_modules(source.tree):
            match module.split("."):
                case ["dsv3", "parallel", file, *_] if file in TORCH_FREE_OF_PARALLEL:
                    continue
                case ["dsv3", "parallel" | "ops", *_] | ["torch", *_]:
                    text = f"{source.name} has to stay free of torch: {module}"
                    findings.append(source.at(node, text))
    return findings


def mutual_findings(package_root: Path) -> list[str]:
    """Pairs of packages that import each other, whatever the table says."""
    edges = set()
    for source in sources(package_root):
        for _, module in imported_modules(source.tree):
            target = _layer_of(module)
            if target is not None and target != source.layer:
                edges.add((source.layer, target))
    return [f"{a} and {b} import each other" for a, b in sorted(edges) if a < b and (b, a) in edges]


def home_findings(package_root: Path) -> list[str]:
    """Third parties imported away from their home."""
    findings = []
    for source in sources(package_root):
        for node, module in imported_modules(source.tree):
            party = module.split(".")[0]
            if party in HOMES and not source.name.startswith(HOMES[party]):
                where = ", ".join(HOMES[party])
                findings.append(source.at(node, f"{party} is at home in {where} only"))
    return findings


def undeclared_findings(package_root: Path, requirements: list[str]) -> list[str]:
    """Third parties that no dependency of the project (extras for users included) brings."""
    declared = {re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() for line in requirements}
    findings = []
    for source in sources(package_root):
        for node, module in imported_modules(source.tree):
            party = module.lstrip(".").split(".")[0]
            if party in sys.stdlib_module_names or party == "dsv3":
                continue
            if DISTRIBUTIONS.get(party, party).lower().replace("_", "-") not in declared:
                findings.append(source.at(node, f"{party} is no declared dependency"))
    return findings


def eager_findings(source: Source, free: set[str]) -> list[str]:
    """What a module pays for when it is imported: neither stdlib nor `free`, outside functions."""
    findings = []
    for node, module in imported_modules(_without_functions(source.tree)):
        party = module.split(".")[0]
        if party not in sys.stdlib_module_names | free:
            findings.append(source.at(node, f"{module} is imported before it is needed"))
    return findings


def _layer_of(module: str) -> str | None:
    """The package of ours that `module` is in; None for others and for dsv3's own names."""
    match module.split("."):
        case ["dsv3", layer, *_] if layer in MAY_IMPORT:
            return layer
    return None


def _without_functions(tree: ast.Module) -> ast.Module:
    """The statements that run when the module is imported."""

    class Prune(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            typing_only = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            return None if typing_only else self.generic_visit(node)

    return Prune().visit(copy.deepcopy(tree))  # type: ignore[no-any-return]
