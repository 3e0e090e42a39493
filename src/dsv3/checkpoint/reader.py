"""Opening, verifying and describing checkpoints. Free of torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

from dsv3.checkpoint.collective import Collective, Json, together
from dsv3.checkpoint.durable import STEP_NAME
from dsv3.checkpoint.manifest import (
    STATE_NAME,
    ForeignCheckpointError,
    Identity,
    PartManifest,
    RootManifest,
    Shape,
    part_names,
    read_json,
    read_part,
    read_root,
    require_hash,
    require_size,
    require_tiling,
    validated,
)
from dsv3.errors import CheckpointError, Problem

LARGEST_NUMBER_OF_PROBLEMS = 12


class TensorSpec(NamedTuple):
    """Global shape and dtype (as safetensors spells it) of a tensor."""

    shape: Shape
    dtype: str

    def __str__(self) -> str:
        return f"{list(self.shape)} {self.dtype}"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: sizes are right and every manifest is hashed; contents are not yet."""

    path: Path
    root: RootManifest
    parts: tuple[PartManifest, ...]

    def record(self) -> dict[str, Json]:
        """What was read to open it, for the ranks that did not."""
        parts = [part.model_dump(mode="json") for part in self.parts]
        return {"root": self.root.model_dump(mode="json"), "parts": parts}

    @classmethod
    def from_record(cls, path: Path, record: dict[str, Json]) -> Self:
        """The inverse of `record`."""
        root = validated(RootManifest, json.dumps(record["root"]).encode(), path)
        parts = (validated(PartManifest, json.dumps(p).encode(), path) for p in record["parts"])
        return cls(path, root, tuple(parts))

    @property
    def step(self) -> int:
        """Step of the run after which it was written."""
        return self.root.step

    @cached_property
    def state(self) -> dict[str, Json]:
        """What the run saved beside its tensors; raises CheckpointError if it is damaged."""
        state: dict[str, Json] = read_json(self.path / STATE_NAME, self.root.state)
        return state

    def rank_state(self, rank: int) -> dict[str, Json] | None:
        """What this rank saved for itself; None if the layout had no such rank."""
        return dict(self.parts[rank].rank_state) if rank < len(self.parts) else None

    def specs(self) -> dict[str, TensorSpec]:
        """Every tensor in it."""
        return {
            key: TensorSpec(record.shape, record.dtype)
            for part in self.parts
            for key, record in part.tensors.items()
        }

    def verify(self, collective: Collective) -> None:
        """Read everything and compare its hashes (collective; each rank takes some of the files).

        Raises CheckpointError on every rank if anything is damaged.
        """

        def own_share() -> None:
            require_hash(self.path / STATE_NAME, self.root.state)
            for part in self.parts[collective.rank :: collective.size]:
                require_hash(self.path / part_names(part.rank)[1], part.file)

        together(collective, own_share)

    def require(self, expected: Mapping[str, TensorSpec], collective: Collective) -> None:
        """Raise CheckpointError unless the ranks together expect the tensors that are here.

        The error is a table, a line for each tensor that is missing, unknown or different.
        """
        found = self.specs()
        keys = sorted(found)
        here = [key for key in expected if found.get(key) != expected[key]]
        known = [str(int(key in expected)) for key in keys]
        # What a rank knows of the checkpoint's tensors travels as a bit each, not as their names.
        reports = collective.all_gather(
            {
                "bits": hex(int("0" + "".join(known), 2)),
                "other": {key: [list(expected[key].shape), expected[key].dtype] for key in here},
            }
        )
        bits = 0
        wanted: dict[str, TensorSpec | None] = {}
        for report in reports:
            bits |= int(report["bits"], 16)
            for key, (shape, dtype) in report["other"].items():
                wanted[key] = TensorSpec(tuple(shape), dtype)
        expected_by_none = f"{bits:0{len(keys)}b}" if keys else ""
        wanted |= {key: None for key, bit in zip(keys, expected_by_none, strict=True) if bit == "0"}
        problems = [
            Problem(key, f"expected {spec or 'nothing'}, found {found.get(key, 'nothing')}")
            for key, spec in sorted(wanted.items())
        ]
        if not problems:
            return
        shown = problems[:LARGEST_NUMBER_OF_PROBLEMS]
        if len(problems) > len(shown):
            shown.append(Problem("", f"and {len(problems) - len(shown)} more"))
        raise CheckpointError([Problem(str(self.path), "is of another model"), *shown])


def open_checkpoint(path: Path, identity: Identity | None = None) -> Checkpoint:
    """Open a checkpoint: its seal, the hashes of its manifests, the sizes of its files.

    `identity` of None opens any run's. Raises CheckpointError saying what is wrong.
    """
    root = read_root(path)
    if path.name != f"step-{root.step}":
        raise CheckpointError(f"{path}: is step {root.step}, under another name")
    if identity is not None and root.identity.run_id != identity.run_id:
        raise ForeignCheckpointError(
            f"{path}: belongs to run {root.identity.run_id}, not {identity.run_id}"
        )
    if identity is not None and root.identity != identity:
        raise ForeignCheckpointError(f"{path}: was written under another configuration of the run")
    parts = tuple(read_part(path, root, rank) for rank in range(len(root.parts)))
    require_size(path / STATE_NAME, root.state)
    for part in parts:
        require_size(path / part_names(part.rank)[1], part.file)
    require_tiling(path, parts)
    return Checkpoint(path, root, parts)


def checkpoint_paths(directory: Path) -> list[Path]:
    """Every directory named as a checkpoint, the newest step first, whatever is in it."""
    if not directory.is_dir():
        return []
    named = [path for path in directory.iterdir() if STEP_NAME.fullmatch(path.name)]
    return sorted(named, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)
