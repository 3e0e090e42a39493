"""A pipeline: hidden states go from part to part of a model, their gradients come back.

Every rank has the samples it needs, because a sample is a function of its number: what travels are
hidden states [B, S, D], and where the model ends in MTP modules, the embedded tokens. The balance
loss of a part is a root of its own backward pass.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from dsv3.parallel.mail import Mail
from dsv3.parallel.spans import span

FORWARD: Final = "forward"
BACKWARD: Final = "backward"
EMBEDDED, EMBEDDED_BACK = "embedded", "embedded back"


class Action(Protocol):
    """What a rank does next: a forward or backward pass of one of its parts."""

    @property
    def kind(self) -> str:
        """`forward` or `backward`."""

    @property
    def part(self) -> int:
        """Which of this rank's parts."""

    @property
    def micro_batch(self) -> int:
        """Which micro batch of the step."""


class Program(Protocol):
    """The parts of a model that this rank holds."""

    def embed(self, input_ids_BS: Tensor) -> Tensor:
        """The first hidden states."""

    def run_blocks(self, hidden_BSD: Tensor, part: int) -> tuple[Tensor, Tensor]:
        """Hidden states through a part, and its balance loss."""

    def losses(
        self,
        hidden_BSD: Tensor,
        embedded_BSD: Tensor,
        balance_loss: Tensor,
        labels_BS: Tensor,
        mtp_loss_coeff: Tensor | None,
    ) -> Any:
        """The losses at the end of the model, a NamedTuple with the objective first."""

    def losses_of_blocks(self, balance_loss: Tensor) -> Any:
        """The same of a part that does not end the model."""


class Route(NamedTuple):
    """This rank's parts by their numbers in the model, and what travels between parts."""

    parts: tuple[int, ...]
    last: int  # the part that ends the model
    has_mtp: bool
    hidden_size: int
    dtype: torch.dtype  # of hidden states


@dataclass
class Held:
    """What a part keeps of a micro batch from its forward to its backward pass."""

    root: Tensor
    hidden_in: Tensor | None = None
    hidden_out: Tensor | None = None
    embedded_in: Tensor | None = None
    embedded_out: Tensor | None = None


class Pipeline:
    """This rank's place in a pipeline: runs its parts in the order of a schedule.

    `actions` gives that order for a number of micro batches.
    """

    def __init__(
        self,
        program: Program,
        route: Route,
        mail: Mail,
        *,
        actions: Callable[[int], Iterable[Action]],
    ) -> None:
        self._program = program
        self._route = route
        self._mail = mail
        self._actions = actions
        # Which of its holder's parts each part of the model is: the holder's parts, in order.
        holders = mail.holders
        self._part_of_holder = [
            holders[:number].count(holder) for number, holder in enumerate(holders)
        ]
        self._held: dict[tuple[int, int], Held] = {}

    def train(
        self,
        micro_batches: Sequence[Sequence[Tensor]],
        backward: Callable[[Tensor], None],
        on_action: Callable[[], None] = lambda: None,
    ) -> dict[str, Tensor]:
        """Forward and backward over all micro batches of (input ids, labels, lambda).

        `backward` accumulates the gradient of a scalar. Returns the sums of the losses of this
        rank's parts over the micro batches, by name, without their gradients.
        """
        totals: dict[str, Tensor] = {}
        self._held.clear()
        for action in self._actions(len(micro_batches)):
            place = action.part, action.micro_batch
            if action.kind == FORWARD:
                with span(FORWARD, FORWARD, part=action.part, micro_batch=action.micro_batch):
                    self._forward(place, micro_batches, totals)
            else:
                with span(BACKWARD, BACKWARD, part=action.part, micro_batch=action.micro_batch):
                    self._backward(place, backward)
            on_action()
        assert not self._held, f"{self._held.keys()} had no backward pass"
        self._mail.settle()
        return totals

    @torch.no_grad()
    def infer(self, input_ids_BS: Tensor) -> tuple[Tensor, Tensor] | None:
        """Run the whole model forward; its last hidden states and the embedded tokens.

        None on ranks that do not hold the last part. Without MTP modules the hidden states stand
        for both.
        """
        found = None
        for part, number in enumerate(self._route.parts):
            hidden_BSD, embedded_BSD = self._inputs(number, input_ids_BS)
            hidden_BSD, _ = self._program.run_blocks(hidden_BSD, part)
            if number < self._route.last:
                self._mail.send(hidden_BSD, _lane(FORWARD, part), number + 1)
            else:
                found = hidden_BSD, hidden_BSD if embedded_BSD is None else embedded_BSD
        return found

    def settle(self) -> None:
        """Wait until what was sent has arrived; after a series of `infer`."""
        self._mail.settle()

    def _inputs(self, number: int, input_ids_BS: Tensor) -> tuple[Tensor, Tensor | None]:
        """Hidden states for a part, and embedded tokens where they are needed or were made."""
        route = self._route
        if number == 0:
            hidden_BSD = embedded_BSD = self._program.embed(input_ids_BS)
            if route.has_mtp and route.last > 0:
                self._mail.send(embedded_BSD, EMBEDDED, route.last)
            return hidden_BSD, embedded_BSD
        lane = _lane(FORWARD, self._part_of_holder[number - 1])
        kind = (*input_ids_BS.shape, route.hidden_size), route.dtype
        hidden_BSD = self._mail.receive(*kind, lane, number - 1, number)
        if number == route.last and route.has_mtp:
            return hidden_BSD, self._mail.receive(*kind, EMBEDDED, 0, number)
        return hidden_BSD, None

    def _forward(
        self,
        place: tuple[int, int],
        micro_batches: Sequence[Sequence[Tensor]],
        totals: dict[str, Tensor],
    ) -> None:
        part, micro_batch = place
        input_ids_BS, labels_BS, mtp_loss_coeff = micro_batches[micro_batch]
        number = self._route.parts[part]
        hidden_in, embedded = self._inputs(number, input_ids_BS)
        if number > 0:
            for tensor in (hidden_in, embedded):
                if tensor is not None:
                    tensor.requires_grad_()
        hidden_out, balance_loss = self._program.run_blocks(hidden_in, part)
        if number == self._route.last:
            ahead = hidden_out if embedded is None else embedded
            losses = self._program.losses(
                hidden_out, ahead, balance_loss, labels_BS, mtp_loss_coeff
            )
        else:
            losses = self._program.losses_of_blocks(balance_loss)
            self._mail.send(hidden_out, _lane(FORWARD, part), number + 1)
        for name, loss in losses._asdict().items():
            totals[name] = totals.get(name, 0) + loss.detach().float()
        self._held[place] = Held(
            losses[0] / len(micro_batches),
            hidden_in if number > 0 else None,
            hidden_out if number < self._route.last else None,
            embedded if number > 0 else None,
            embedded if number == 0 and self._route.has_mtp and self._route.last > 0 else None,
        )

    def _backward(self, place: tuple[int, int], backward: Callable[[Tensor], None]) -> None:
        part, number = place[0], self._route.parts[place[0]]
        held = self._held.pop(place)
        root = held.root
        if held.hidden_out is not None:
            lane = _lane(BACKWARD, self._part_of_holder[number + 1])
            root = root + self._continued(held.hidden_out, lane, number + 1, number)
        if held.embedded_out is not None:
            last = self._route.last
            root = root + self._continued(held.embedded_out, EMBEDDED_BACK, last, number)
        backward(root)
        if held.hidden_in is not None:
            assert held.hidden_in.grad is not None
            self._mail.send(held.hidden_in.grad, _lane(BACKWARD, part), number - 1)
        if held.embedded_in is not None:
            assert held.embedded_in.grad is not None
            self._mail.send(held.embedded_in.grad, EMBEDDED_BACK, 0)

    def _continued(self, out: Tensor, lane: str, from_part: int, to_part: int) -> Tensor:
        gradient = self._mail.receive(out.shape, out.dtype, lane, from_part, to_part)
        return continued(out, gradient)


def lanes(parts: int, *, has_mtp: bool) -> list[str]:
    """The lanes of a pipeline whose ranks hold so many parts each."""
    names = [_lane(kind, part) for kind in (FORWARD, BACKWARD) for part in range(parts)]
    return [*names, EMBEDDED, EMBEDDED_BACK] if has_mtp else names


def continued(tensor: Tensor, gradient: Tensor) -> Tensor:
    """A scalar zero whose gradient with respect to `tensor` is `gradient`, to the last bit."""
    root: Tensor = _Continued.apply(tensor, gradient)  # type: ignore[no-untyped-call]
    return root


class _Continued(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return tensor.new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * scale.to(gradient.dtype), None


def _lane(kind: str, part: int) -> str:
    return f"{kind} {part}"
