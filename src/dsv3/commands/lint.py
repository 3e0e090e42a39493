"""What the linter finds, told before anything starts; with `--strict` nothing does."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dsv3.commands.console import note
from dsv3.config.linter import lint, lint_all
from dsv3.config.root import RunConfig
from dsv3.errors import ConfigError


def warn(configs: Sequence[RunConfig], *, strict: bool, quiet: bool) -> None:
    """Print every warning about any of the runs on stderr, each once; `quiet`: they are data.

    Raises ConfigError with all of them if `strict` and there are any.
    """
    findings = lint_all(configs)
    if strict and findings:
        raise ConfigError([finding.as_problem() for finding in findings])
    for finding in findings if not quiet else ():
        note(str(finding))


def as_data(config: RunConfig) -> list[dict[str, Any]]:
    """The warnings about one run, for --json."""
    return [asdict(finding) for finding in lint(config)]
