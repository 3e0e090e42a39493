"""Bytes that are alive while a program runs on tensors without data, storage by storage.

A storage counts from the operation that makes it until the last tensor on it is gone, as with
torch's allocator. What an operator of ours or a kernel needs in passing and gives back before it
returns is in `trace_workspace.py`.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WORKING = "working"

Workspace = Callable[[Any, tuple[Any, ...]], int]
"""Bytes that an operation needs while it runs, from its arguments."""


class Made(NamedTuple):
    """A storage: the operation that made it, what of, and what it is for."""

    operation: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    size: int  # bytes
    label: str


class Stretch(NamedTuple):
    """A part of a program, its bytes relative to those alive when it began."""

    peak: int
    end: int
    at_peak: list[Made]  # made in it, alive at its peak
    left: list[Made]  # made in it, alive at its end
    sent: list[int]  # bytes of each message


class Ledger(TorchDispatchMode):
    """While entered, follows every storage that an operation makes.

    `workspace` says how many bytes an operation needs while it runs, from its arguments. Those of
    `given` were there before.
    """

    def __init__(self, workspace: Workspace, given: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self._given = {tensor.untyped_storage()._cdata for tensor in given}
        self._workspace = workspace
        self._label = WORKING
        self._numbers: dict[int, int] = {}  # of the storages alive, by address
        self._references: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._changes: list[tuple[int, int]] = []  # storage, bytes: of the stretch under way
        self._made: dict[int, Made] = {}
        self._sent: list[int] = []
        self._next = 0

    @contextmanager
    def of(self, label: str) -> Iterator[None]:
        """What is made in the block is `label`."""
        before, self._label = self._label, label
        try:
            yield
        finally:
            self._label = before

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operation and take note of what it made."""
        out = self.call(func, args, kwargs or {})
        if func is torch.ops.prim.device.default:
            return out
        passing = self._workspace(func, args)
        if isinstance(out, Tensor):
            self._note(out, func)
        elif isinstance(out, (tuple, list)):
            for each in out:
                if isinstance(each, Tensor):
                    self._note(each, func)
        if passing:
            self._pass(passing, func)
        if func is torch.ops.c10d.send.default:
            self._sent += [tensor.untyped_storage().nbytes() for tensor in args[0]]
        return out

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the operation returns."""
        return func(*args, **kwargs)

    def by_label(self) -> dict[str, int]:
        """Bytes alive, by label."""
        found: dict[str, int] = {}
        for number in self._numbers.values():
            made = self._made[number]
            found[made.label] = found.get(made.label, 0) + made.size
        return found

    def cut(self) -> Stretch:
        """What happened since the last cut."""
        changes, sent = self._changes, self._sent
        self._changes, self._sent = [], []
        so_far = peak = 0
        at = 0
        for index, (_, size) in enumerate(changes):
            so_far += size
            if so_far > peak:
                peak, at = so_far, index + 1
        stretch = Stretch(peak, so_far, self._alive(changes[:at]), self._alive(changes), sent)
        self._made = {number: self._made[number] for number in self._numbers.values()}
        return stretch

    def _alive(self, changes: Iterable[tuple[int, int]]) -> list[Made]:
        alive: dict[int, None] = {}
        for number, size in changes:
            if size > 0:
                alive[number] = None
            else:
                alive.pop(number, None)
        return sorted((self._made[number] for number in alive), key=lambda made: -made.size)

    def _note(self, tensor: Tensor, func: Any) -> None:
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address in self._numbers or address in self._given or size == 0:
            return
        number = self._birth(Made(str(func), tuple(tensor.shape), tensor.dtype, size, self._label))
        self._numbers[address] = number

        def dead(_: Any) -> None:
            del self._numbers[address], self._references[number]
            self._death(number, size)

        self._references[number] = weakref.ref(storage, dead)

    def _pass(self, size: int, func: Any) -> None:
        number = self._birth(Made(f"inside {func}", (size,), torch.uint8, size, WORKING))
        self._death(number, size)

    def _birth(self, made: Made) -> int:
        number, self._next = self._next, self._next + 1
        self._made[number] = made
        self._changes.append((number, made.size))
        self.live += made.size
        return number

    def _death(self, number: int, size: int) -> None:
        self._changes.append((number, -size))
        self.live -= size
