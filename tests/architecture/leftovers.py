"""What must not be in the tree: unsafe calls, traces of one machine, notes without an owner."""

import ast
import re
from pathlib import Path

from architecture.source import called_name, dotted, imported_modules, sources

# Modules that execute what they read.
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
# Dotted calls that execute what they read, or hand a line to a shell.
UNSAFE_CALLS = {"torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system"}
UNSAFE_NAMES = {"eval", "exec", "instantiate"}
UNSAFE_KEYWORDS = {"shell", "trust_remote_code", "allow_pickle"}

# Addresses a reader may be sent to, and the dashboard's. Where packages come from is the machine's
# business, not ours.
KNOWN_HOSTS = {
    "api.wandb.ai",
    "arxiv.org",
    "127.0.0.1",
    "github.com",
    "huggingface.co",
    "keepachangelog.com",
    "localhost",
    "semver.org",
    "www.apache.org",
    "www.w3.org",  # names of XML vocabularies
}
URL = re.compile(r"https?://(?:[^/\s@]*@)?([\w.-]+)")
RESERVED_HOST = re.compile(r"(?:[\w-]+\.)*example\.org")  # for examples, nobody's (RFC 2606)
INDEX_OPTION = re.compile(r"--(?:(?:extra-)?index.url|find.links|trusted.host)")
# An absolute path below a directory that differs from machine to machine.
MACHINE_PATH = re.compile(r"(?<![\w.~/:}-])/(?:home|root|Users|mnt|opt|scratch|srv|tmp|work)/\w")
UNOWNED_NOTE = re.compile(r"\b(?:TO[D]O|FIX[M]E|HAC[K]|XX[X])\b(?!\([\w.-]+\):)")

CODE = {".py", ".yaml", ".yml", ".toml", ".j2", ".sh", ".cfg", ""}
TEXT = CODE | {".md", ".txt"}


def unsafe_findings(root: Path) -> list[str]:
    """Calls and imports that run data as code."""
    findings = []
    for source in sources(root):
        for node, module in imported_modules(source.tree):
            if module.split(".")[0] in UNSAFE_MODULES:
                findings.append(source.at(node, f"{module} executes what it reads"))
            if module in UNSAFE_CALLS or module.split(".")[-1] == "instantiate":
                findings.append(source.at(node, f"import of {module}"))
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call):
                findings += [source.at(node, what) for what in _unsafe(node)]
    return findings


def _unsafe(call: ast.Call) -> list[str]:
    """What is wrong with one call; `model.eval()` is a method, not the builtin."""
    found = []
    name = dotted(call.func)
    if name in UNSAFE_CALLS or name.removeprefix("builtins.") in UNSAFE_NAMES:
        found.append(f"call of {name}")
    elif called_name(call) == "instantiate":
        found.append("call of instantiate")
    for keyword in call.keywords:
        refused = isinstance(keyword.value, ast.Constant) and keyword.value.value in (False, None)
        if keyword.arg in UNSAFE_KEYWORDS and not refused:
            found.append(f"argument {keyword.arg}")
    return found


def text_findings(files: list[Path], root: Path) -> list[str]:
    """Traces of one machine and unowned notes in text files; odd characters in code."""
    findings = []
    for path in files:
        name = path.relative_to(root).as_posix()
        if path.suffix not in TEXT:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            findings += [f"{name}:{number} {what}" for what in _traces(line)]
            if path.suffix in CODE and not line.isascii():
                findings.append(f"{name}:{number} characters beyond ASCII")
            if path.suffix in CODE and UNOWNED_NOTE.search(line):
                findings.append(f"{name}:{number} a note without an owner")
    return findings


def _traces(line: str) -> list[str]:
    hosts = [host for host in URL.findall(line) if not RESERVED_HOST.fullmatch(host)]
    found = [f"address on {host}" for host in hosts if host not in KNOWN_HOSTS]
    if MACHINE_PATH.search(line):
        found.append("path of one machine")
    if INDEX_OPTION.search(line):
        found.append("choice of a package index")
    return found
