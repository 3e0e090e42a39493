"""The sum behind a weight's hash, against the same in plain integers; what it sees."""

import hashlib
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dsv3.checkpoint.collective import Solo
from dsv3.config.compose import compose
from dsv3.parallel.mesh import place_of
from dsv3.runs.directory import RunDirectory
from dsv3.train import start_hashes
from dsv3.train.start_hashes import FIRST_SAMPLES, fragment_sum, part_of, write_start

WORD = 1 << 64


def in_integers(name: str, shape: tuple[int, ...], values: list[float], offset: int = 0) -> int:
    """SplitMix64's mix of every place, made odd, times the element's bits as a signed number."""
    key = int.from_bytes(hashlib.sha256(f"{name} {shape}".encode()).digest()[:8], "little")
    total = 0
    for place, value in enumerate(values, start=offset):
        word = (place * 0x9E3779B97F4A7C15 + key) % WORD
        word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % WORD
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB % WORD
        bits = int(np.array(value, dtype=np.float32).view(np.int32))
        total += bits * (word | 1)
    return total % WORD


def test_the_sum_is_the_formula_in_integers() -> None:
    value = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    assert fragment_sum("a.b", (3, 5), 0, value) == in_integers(
        "a.b", (3, 5), value.flatten().tolist()
    )


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_slices_add_up_to_the_tensor(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_hashes, "CHUNK_ELEMENTS", chunk)
    value = torch.randn(40, generator=torch.Generator().manual_seed(1))
    whole = in_integers("w", (5, 8), value.tolist())
    for cut in (0, 1, 13, 39):
        parts = ((0, value[:cut]), (cut, value[cut:]))
        assert sum(fragment_sum("w", (5, 8), at, part) for at, part in parts) % WORD == whole


def test_name_shape_place_and_every_bit_count() -> None:
    value = torch.randn(64, generator=torch.Generator().manual_seed(1))
    sums = {fragment_sum("w", (8, 8), 0, value)}
    swapped = value.clone()
    swapped[[3, 40]] = value[[40, 3]]
    variants = [("v", (8, 8), value), ("w", (4, 16), value), ("w", (8, 8), swapped)]
    for bit in range(32):
        flipped = value.clone()
        flipped.view(torch.int32)[17] ^= -(1 << 31) if bit == 31 else 1 << bit
        variants.append(("w", (8, 8), flipped))
    sums |= {fragment_sum(name, shape, 0, data) for name, shape, data in variants}
    assert len(sums) == 1 + len(variants)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.embed_tokens.weight", "model"),
        ("lm_head.weight", "model"),
        ("model.layers.3.mlp.experts.down_proj", "model"),
        ("model.layers.4.eh_proj.weight", "mtp"),
        ("model.layers.14.input_layernorm.weight", "mtp"),
    ],
)
def test_layers_behind_the_last_block_are_mtps(name: str, part: str) -> None:
    assert part_of(name, 4) == part


class Numbered:
    """Sample n is the token n; remembers who was asked for."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __getitem__(self, n: int) -> Any:
        self.read.append(n)
        return np.full(4, n, dtype=np.int32)


# Steps of 2, 8, 8 and 8 samples: the last step of the short run reaches beyond its end.
@pytest.mark.parametrize(("tokens", "samples"), [(10_000, FIRST_SAMPLES), (3 * 20, 26)])
def test_the_first_samples_are_read_as_the_steps_read_them(tokens: int, samples: int) -> None:
    overrides = ["model=moe_nano", "schedule.sequence_length=3", "parallelism=dp2"]
    more = ["schedule.micro_batch_size=2", "schedule.batch_size_quantum=2"]
    more.append(f"schedule.total_tokens={tokens}")
    config, read = compose([*overrides, *more]).config, []
    for rank in range(2):
        numbered, place = Numbered(), place_of(config.parallelism, rank)
        start_hashes._samples_sum(config, numbered, place)
        assert numbered.read
        read += numbered.read
    assert sorted(read) == list(range(samples))


def test_the_file_is_whole_or_as_it_was(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the first step and started again, a run writes the same bytes once more."""
    config = compose(["model=moe_nano"]).config
    weight = torch.ones(4)
    engine: Any = SimpleNamespace(fragments=lambda: [("master/a", (4,), 0, weight, True)])
    ranks: Any = Solo()
    ranks.place = place_of(config.parallelism, 0)
    run = RunDirectory(tmp_path)

    def write() -> bytes:
        write_start(run, config, engine, Numbered(), ranks, data_fingerprint="text")
        return run.start_path.read_bytes()

    before = write()
    assert json.loads(before).keys() == {"weights.model", "data_order"}
    (tmp_path / ".start.json.start").write_text("{torn")  # by the one that was killed
    assert write() == before
    assert [path.name for path in tmp_path.iterdir()] == ["start.json"]
