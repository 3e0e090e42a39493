"""Weights against masters: every flipped bit is found and placed (fault F23, one rank)."""

import pytest
import torch

from dsv3.engine import replicas
from dsv3.engine.replicas import fingerprint

BITS = {torch.float32: 32, torch.bfloat16: 16}
EXPONENT = {torch.float32: range(23, 31), torch.bfloat16: range(7, 15)}
MANTISSA = {torch.float32: range(23), torch.bfloat16: range(7)}
WORDS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}


def flip(flat, element, bit):
    """Flip one bit in place."""
    words = flat.detach().view(WORDS[flat.dtype])
    mask = torch.tensor(1 << bit if bit < BITS[flat.dtype] - 1 else -(1 << bit))
    words[element] ^= mask.to(words.dtype)


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("size", [1, 2, 3, 1022, 1024, 3001, 5000])
def test_any_single_flipped_bit_changes_the_fingerprint(monkeypatch, dtype, size):
    monkeypatch.setattr(replicas, "CHUNK_ELEMENTS", 2048)  # several chunks, rows and a rest
    generator = torch.Generator().manual_seed(size)
    flat = torch.randn(size, generator=generator).to(dtype)
    clean = fingerprint(flat, dtype)
    elements = {0, size - 1, *torch.randint(size, (40,), generator=generator).tolist()}
    for element in elements:
        for bit in range(BITS[dtype]):
            flip(flat, element, bit)
            assert fingerprint(flat, dtype) != clean, (element, bit)
            flip(flat, element, bit)
    assert fingerprint(flat, dtype) == clean


@pytest.mark.parametrize("dtype", BITS)
def test_rounding_in_chunks_is_rounding_first(monkeypatch, dtype):
    monkeypatch.setattr(replicas, "CHUNK_ELEMENTS", 2048)
    master = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    assert fingerprint(master, dtype) == fingerprint(master.to(dtype), dtype)


def test_rows_that_change_places_are_seen():
    flat = torch.arange(replicas.ROW_WORDS * 8, dtype=torch.float32)
    moved = flat.view(2, -1).flip(0).reshape(-1)
    assert fingerprint(flat, torch.float32) != fingerprint(moved, torch.float32)


def test_a_sum_wraps_around():
    """Words near 2^63: the sum is modulo 2^64, on which the proof for a flipped bit rests."""
    flat = torch.full((2048,), 2**63 - 1, dtype=torch.int64).view(torch.float32)
    words, row = [2**63 - 1] * 2048, replicas.ROW_WORDS
    expected = sum(sum(words[i : i + row]) * (2 * (i // row) + 1) for i in range(0, 2048, row))
    assert (int(fingerprint(flat, torch.float32)) - expected) % 2**64 == 0


@pytest.mark.parametrize("name", ["embed.weight", "experts.down_proj"])
@pytest.mark.parametrize("kind", [EXPONENT, MANTISSA], ids=["exponent", "mantissa"])
@pytest.mark.parametrize(
    ("recipe", "zero_stage"), [("fp32", 1), ("fp32", 2), ("bf16", 1), ("bf16", 2)]
)
def test_64_of_64_flips_in_the_weights_are_found_and_placed(
    engine_of, batches, recipe, zero_stage, kind, name
):
    engine = engine_of(recipe, zero_stage)
    dtype = torch.float32 if recipe == "fp32" else torch.bfloat16
    engine.train_step(batches(1, 2, dtype), lr=1e-2)
    assert engine.differing_weights() == []
    weights = engine.module.get_parameter(name).detach().view(-1)
    bits, draw = list(kind[dtype]), torch.Generator().manual_seed(3)
    for trial in range(64):
        element = int(torch.randint(len(weights), (1,), generator=draw))
        flip(weights, element, bits[trial % len(bits)])
        [found] = engine.differing_weights()
        assert (found.rank, found.part, found.name) == (0, "weights", name)
        assert (found.element, found.differing) == (element, 1)
        flip(weights, element, bits[trial % len(bits)])
    assert engine.differing_weights() == []


def test_asking_changes_nothing(engine_of, batches, snapshot):
    engine, twin = engine_of("bf16", 2), engine_of("bf16", 2)
    data = batches(1, 2, torch.bfloat16)
    engine.train_step(data, lr=1e-2, before_update=lambda _: engine.differing_weights())
    twin.train_step(data, lr=1e-2)
    left, right = snapshot(engine), snapshot(twin)
    assert all(torch.equal(left[key], right[key]) for key in left)
