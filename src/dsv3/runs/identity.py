"""Which run a configuration describes: the hash of everything that changes what is computed."""

import hashlib
import json
import re
import unicodedata
from typing import Any

from dsv3.config.root import RunConfig

HASH_DIGITS = 10

# By layout-free meaning (the n-th sample and every initial weight do not depend on the ranks)
# nothing else changes the experiment: parallelism, micro batch, evaluation, checkpoint, tracking,
# launcher, alarms and the directories are outside, and recorded per attempt instead. So are the
# strengths published for a model: what a run trains with is in `balance`.
_INCLUDED: dict[str, Any] = {
    "seed": True,
    "run": {"tag"},
    "model": True,
    "precision": True,
    "schedule": True,
    "balance": True,
    "mtp": True,
    "data": True,
    "optimizer": True,
    "ema": True,  # in every checkpoint, and it is all the steps' or none's
    "health": {  # what decides whether an update is made
        "on_non_finite",
        "on_spike",
        "spike_window_steps",
        "spike_deviations",
        "largest_skips",
        "largest_rollbacks",
    },
}
_EXCLUDED: dict[str, Any] = {
    "model": {"balance_strengths"},
    "schedule": {"micro_batch_size"},
    "data": {"cache_dir"},
}


def identity(config: RunConfig) -> dict[str, Any]:
    """The part of `config` that decides what is computed, as plain data."""
    return config.model_dump(mode="json", include=_INCLUDED, exclude=_EXCLUDED)


def identity_digest(config: RunConfig) -> str:
    """SHA-256 (64 hex digits) of the identity as canonical JSON."""
    canonical = json.dumps(identity(config), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def run_id(config: RunConfig) -> str:
    """Name of the run and of its directory: what people look for, then the hash that decides.

    `<model>-<balance>-s<seed>[-<tag>]-<hash>`; every part before the hash is also in the hash.
    """
    parts = [config.model.name, config.balance.strategy, f"s{config.seed}"]
    if config.run.tag is not None:
        parts.append(config.run.tag)
    readable = [_readable(part) for part in parts]
    return "-".join([*filter(None, readable), identity_digest(config)[:HASH_DIGITS]])


def _readable(text: str) -> str:
    """ASCII letters, digits, `_` and inner dots; short enough for every file system."""
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.")[:40]
