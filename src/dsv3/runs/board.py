"""What the ranks of one machine tell their launcher: memory they share, gone with the last of them.

No file system takes part: a full disk or a server that does not answer silences no rank.
"""

import json
import mmap
import os
import struct
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from dsv3.errors import Dsv3Error, Problem

STARTING = "starting"
NO_STEP = -1

_SIGN = struct.Struct("<qdq64s")  # time, limit, step, phase
_CHECK = struct.Struct("<I")
_REGION = 1 << 16
_FAILURE_AT = 256
_LONGEST_TEXT = 2000


@dataclass(frozen=True)
class Sign:
    """A sign of life: when it was given, and how long the next may take from then on."""

    at_s: float
    limit_s: float
    phase: str
    step: int = NO_STEP

    def __str__(self) -> str:
        return self.phase if self.step == NO_STEP else f"{self.phase}, after step {self.step}"


@dataclass(frozen=True)
class Failure:
    """The named error that ended a rank; a lasting one would most likely meet the next try too."""

    at_s: float
    error: Dsv3Error
    lasting: bool


class Board:
    """One region per rank; each is written by its rank alone and read by the launcher alone.

    Times are the monotonic clock, which the processes of one machine share.
    """

    def __init__(self, descriptor: int, ranks: int) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, ranks * _REGION)
        self._last: dict[int, Sign] = {}

    @classmethod
    def create(cls, ranks: int, *, limit_s: float) -> Self:
        """A new board on which every rank has just begun to start and may take `limit_s`."""
        descriptor = os.memfd_create("dsv3-ranks")
        os.ftruncate(descriptor, ranks * _REGION)
        board = cls(descriptor, ranks)
        for rank in range(ranks):
            board.write(rank, Sign(time.monotonic(), limit_s, STARTING))
        return board

    def write(self, rank: int, sign: Sign) -> None:
        """Give a sign; takes microseconds and no system call."""
        text = sign.phase.encode()[:64]
        packed = _SIGN.pack(int(sign.at_s * 1e9), sign.limit_s, sign.step, text)
        # A reader in the middle of this sees the sum fail and looks again: no order of stores
        # is assumed.
        begin = rank * _REGION
        data = packed + _CHECK.pack(zlib.crc32(packed))
        self._memory[begin : begin + len(data)] = data

    def read(self, rank: int) -> Sign:
        """The last sign of a rank."""
        begin = rank * _REGION
        for _ in range(100):
            data = self._memory[begin : begin + _SIGN.size + _CHECK.size]
            packed, (check,) = data[: _SIGN.size], _CHECK.unpack(data[_SIGN.size :])
            if zlib.crc32(packed) == check:
                at_ns, limit_s, step, text = _SIGN.unpack(packed)
                phase = text.rstrip(b"\0").decode(errors="replace")
                self._last[rank] = Sign(at_ns / 1e9, limit_s, phase, step)
                break
        return self._last[rank]

    def fail(self, rank: int, error: Dsv3Error, *, lasting: bool) -> None:
        """Say which error ends a rank, before its process does."""
        record = error.record() | {"lasting": lasting, "at_s": time.monotonic()}
        data = json.dumps(record).encode()
        if len(data) > _REGION - _FAILURE_AT - 1:
            record["problems"] = [vars(_short(problem)) for problem in error.problems[:4]]
            data = json.dumps(record).encode()
        begin = rank * _REGION + _FAILURE_AT
        self._memory[begin : begin + len(data)] = data

    def failure(self, rank: int) -> Failure | None:
        """The error that ended a rank; None if it gave none."""
        begin = rank * _REGION
        text = self._memory[begin + _FAILURE_AT : begin + _REGION].rstrip(b"\0")
        try:
            record: Mapping[str, Any] = json.loads(text)
        except ValueError:  # none, or it was killed while it wrote
            return None
        return Failure(record["at_s"], Dsv3Error.from_record(record), record["lasting"])

    def close(self) -> None:
        """Let go of the memory; it lives on in the ranks."""
        self._memory.close()
        os.close(self.descriptor)


def _short(problem: Problem) -> Problem:
    texts = (problem.setting, problem.rule, problem.remedy)
    return Problem(*(text[:_LONGEST_TEXT] for text in texts))
