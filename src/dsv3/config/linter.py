"""Warnings about configurations that run and teach nothing, or something else than was meant.

`rules` refuse what is impossible; the linter names what is possible and a known trap.
"""

from collections.abc import Iterable

from dsv3.config import balance_traps, run_traps
from dsv3.config.finding import Finding
from dsv3.config.root import RunConfig

TRAPS = (*balance_traps.TRAPS, *run_traps.TRAPS)


def lint(config: RunConfig) -> list[Finding]:
    """Every trap that `config`, which breaks no rule, is in; in the order of TRAPS."""
    return [finding for trap in TRAPS for finding in trap(config)]


def lint_all(configs: Iterable[RunConfig]) -> list[Finding]:
    """What `lint` finds in any of them, each once: the arms of a sweep share most traps."""
    return list(dict.fromkeys(finding for config in configs for finding in lint(config)))
