"""`start.json`: hashes of what a run starts from, which runs of one seed have in common.

Written before the first step, from what the engine and the loader really hold; a comparison of two
runs is called paired because these are equal. They do not depend on the layout: each element of a
master weight and each sample goes into a sum, once, with what says which one it is, and each rank
adds what it owns.

weights.model   FP32 masters of the model without MTP modules
weights.mtp     those of the MTP modules, if there are any
data_order      token ids of the first samples by their number, data fingerprint and seed
"""

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dsv3.checkpoint.collective import on_first, together
from dsv3.config.root import RunConfig
from dsv3.data.loader import read_batch
from dsv3.engine.engine import TrainingEngine
from dsv3.parallel.mesh import Place
from dsv3.runs.directory import RunDirectory
from dsv3.runs.files import write_json
from dsv3.train.position import Position
from dsv3.train.ranks import Ranks
from dsv3.train.shares import micro_batch_ranges

FIRST_SAMPLES = 64
"""Samples whose order is hashed: two orders that begin alike come from one permutation."""
CHUNK_ELEMENTS = 1 << 20  # at once: 24 MB of words

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
# Odd, with bits all over: those of SplitMix64 (Steele, Lea, Flood 2014), as signed numbers.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))


def write_start(
    run: RunDirectory,
    config: RunConfig,
    engine: TrainingEngine,
    samples: Any,
    ranks: Ranks,
    *,
    data_fingerprint: str,
) -> None:
    """Write start.json before the first step (collective); a start from a checkpoint has none.

    Also once more for a run that was stopped before its first step: it begins here. Raises
    CapacityError on every rank if the file cannot be written.
    """
    record = weight_hashes(config, engine, ranks) | {
        "data_order": data_order_hash(config, samples, ranks, data_fingerprint=data_fingerprint)
    }
    on_first(ranks, lambda: write_json(run.start_path, record, writer="start"))


def weight_hashes(config: RunConfig, engine: TrainingEngine, ranks: Ranks) -> dict[str, str]:
    """Hash of the masters of each part, the same on all ranks and in all layouts (collective)."""
    sums: dict[str, list[int]] = {}
    for key, shape, offset, data, _ in engine.fragments():
        kind, _, name = key.partition("/")
        if kind != "master":
            continue
        of_part = sums.setdefault(part_of(name, config.model.num_hidden_layers), [0, 0])
        of_part[0] += fragment_sum(name, shape, offset, data)
        of_part[1] += data.numel()
    of_ranks = ranks.all_gather(sums)
    parts = sorted({part for of_rank in of_ranks for part in of_rank})
    hashes = {}
    for part in parts:
        found = [of_rank[part] for of_rank in of_ranks if part in of_rank]
        total, elements = (sum(column) for column in zip(*found, strict=True))
        hashes[f"weights.{part}"] = _sha256(f"{total % (1 << 64)} of {elements}".encode()).hex()
    return hashes


def part_of(name: str, num_hidden_layers: int) -> str:
    """`mtp` for a parameter of an MTP module, whose numbers follow the last block's; else `model`.

    Runs with and without MTP have the weights of `model` in common.
    """
    layer = _LAYER.match(name)
    return "mtp" if layer is not None and int(layer[1]) >= num_hidden_layers else "model"


def fragment_sum(name: str, shape: tuple[int, ...], offset: int, data: Tensor) -> int:
    """Sum of a slice of a tensor, modulo 2^64: bits of each element times a number of its own.

    That number is odd and a mix of (name, shape, place in the whole tensor), so that sums of slices
    add up to the tensor's however it is cut, one changed bit always shows, and elements that trade
    places do but once in 2^64. Guards against accidents, not against malice.
    """
    key = int.from_bytes(_sha256(f"{name} {tuple(shape)}".encode())[:8], "little", signed=True)
    total = 0
    flat = data.detach().reshape(-1).view(torch.int32)
    for begin in range(0, flat.numel(), CHUNK_ELEMENTS):
        bits = flat[begin : begin + CHUNK_ELEMENTS].long()
        first = offset + begin
        places = torch.arange(first, first + bits.numel(), device=bits.device)
        total += int((bits * _mixed(places, key)).sum())
    return total % (1 << 64)


def _mixed(places: Tensor, key: int) -> Tensor:
    """An odd 64-bit number for each place; int64 wraps around, which is what is wanted."""
    words = places * _STEP + key
    for shift, factor in _MIX:
        # The shift is arithmetic and brings copies of the sign in from above: cut off.
        words ^= (words >> shift) & ((1 << (64 - shift)) - 1)
        words *= factor
    return words | 1


def data_order_hash(config: RunConfig, samples: Any, ranks: Ranks, *, data_fingerprint: str) -> str:
    """Hash of the first samples as the ranks' first steps read them (collective)."""

    def of_this_rank() -> str:
        # The stages of a pipeline read the same samples: the first one counts them.
        return f"{_samples_sum(config, samples, ranks.place) if ranks.place.stage == 0 else 0:x}"

    total = sum(int(of_rank, 16) for of_rank in together(ranks, of_this_rank))
    said = f"{data_fingerprint} {config.seed} {total % (1 << 256):x}"
    return _sha256(said.encode()).hex()


def _samples_sum(config: RunConfig, samples: Any, place: Place) -> int:
    """Sum of the hashes of (number, input ids, labels) of this rank's share."""
    total = 0
    for first, size in _first_batches(config, place):
        batch = zip(*read_batch(samples, first, size), strict=True)
        for number, (ids_S, labels_S) in enumerate(batch, start=first):
            content = f"{number} ".encode() + ids_S.numpy().tobytes() + labels_S.numpy().tobytes()
            total += int.from_bytes(_sha256(content), "little")
    return total


def _first_batches(config: RunConfig, place: Place) -> Iterator[tuple[int, int]]:
    """First sample and size of this rank's micro batches, up to FIRST_SAMPLES samples of the run.

    So many whatever the batch size, which may be what the arms differ in.
    """
    position = Position()
    schedule = config.schedule
    while position.samples < FIRST_SAMPLES and position.tokens < schedule.total_tokens:
        for samples in micro_batch_ranges(config, place, position):
            within = range(samples.start, min(samples.stop, FIRST_SAMPLES))
            if within:
                yield within.start, len(within)
        position = position.after_step(schedule)


def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
