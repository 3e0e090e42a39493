"""Exponential moving average of the FP32 masters in host memory (report section 3.2.3).

Each rank averages the partitions it owns, in a thread beside the next step's forward and backward
pass. The arithmetic is numpy's, one thread that needs no second team of OpenMP, and the same bits
on every machine.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 16  # so that what is read twice is in the cache the second time

Floats = npt.NDArray[np.float32]


class HostAverage:
    """average += (1 - decay) * (master - average), of every master, after every update.

    Between `update` and `wait` the masters must not change and the averages are not to be read.
    Written as a step towards the master, because rounding decay and 1 - decay apart would shrink or
    swell an average over 1 / (1 - decay) steps.
    """

    def __init__(self, masters: Sequence[Tensor], *, decay: float) -> None:
        """Start at the masters as they are now; they may be a GPU's."""
        self._masters = [master.detach() for master in masters]
        self._step = np.float32(1.0 - decay)
        on_gpu = [master.is_cuda for master in self._masters]
        self.averages = [
            torch.empty(master.shape, dtype=torch.float32, pin_memory=pinned)
            for master, pinned in zip(self._masters, on_gpu, strict=True)
        ]
        # Where a GPU's masters arrive, while the thread still reads the ones it has.
        self._arrived = [
            torch.empty_like(average, pin_memory=True) if pinned else None
            for average, pinned in zip(self.averages, on_gpu, strict=True)
        ]
        self._stream = torch.cuda.Stream() if any(on_gpu) else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ema")
        self._running: Future[None] | None = None
        self.restart()

    def restart(self) -> None:
        """Begin anew at the masters as they are now."""
        self.wait()
        for average, master in zip(self.averages, self._masters, strict=True):
            average.copy_(master)

    def update(self) -> None:
        """Begin to take in the masters, which have just been updated."""
        self.wait()
        copied = self._copy()
        self._running = self._thread.submit(self._take, copied)

    def wait(self) -> None:
        """Return once the update under way is over; raises what it raised."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def close(self) -> None:
        """End the thread."""
        self.wait()
        self._thread.shutdown()

    def _copy(self) -> torch.cuda.Event | None:
        """Have a stream of its own copy a GPU's masters; what to wait for until they are here."""
        if self._stream is None:
            return None
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for arrived, master in zip(self._arrived, self._masters, strict=True):
                assert arrived is not None
                arrived.copy_(master, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(self._stream)
        return copied

    def _take(self, copied: torch.cuda.Event | None) -> None:
        if copied is not None:
            copied.synchronize()
        scratch = np.empty(CHUNK_ELEMENTS, dtype=np.float32)
        columns = zip(self.averages, self._arrived, self._masters, strict=True)
        for average, arrived, master in columns:
            source = master if arrived is None else arrived
            _step_towards(average.numpy(), source.numpy(), self._step, scratch)


def _step_towards(average: Floats, master: Floats, step: np.float32, scratch: Floats) -> None:
    for first in range(0, average.size, scratch.size):
        here, there = (flat[first : first + scratch.size] for flat in (average, master))
        difference = scratch[: here.size]
        np.subtract(there, here, out=difference)
        np.multiply(difference, step, out=difference)
        np.add(here, difference, out=here)
