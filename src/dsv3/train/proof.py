"""The proof that a run computes in the precision it was asked for.

In the first step of an attempt and at the beginning of each evaluation every product is recorded,
compared with what the recipe promises, and listed in gemms.json; a run that asked for FP8 and did
not get it ends here. At the end of a window the ranges of FP8 operands are taken.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from dsv3.config.root import RunConfig
from dsv3.errors import NumericHealthError, Problem
from dsv3.ops.gemm_log import GemmKind, GemmLog, recording
from dsv3.runs.directory import RunDirectory
from dsv3.train.gemm_check import (
    EVALUATION,
    TRAINING,
    Layers,
    asked_for,
    broken_promises,
    in_words,
    recipe_layers,
)
from dsv3.train.gemm_file import Found, listed, section, summary, union, write_section
from dsv3.train.gemm_observer import observing
from dsv3.train.ranges import Ranges, worst_of_ranks
from dsv3.train.ranks import Ranks


class Proof:
    """What this rank records; every rank is asked for the same at the same time.

    `model` is the part of it that this rank holds. Without `ranks` this process is alone, without a
    `run` nothing is written. A compiled model is not looked into, because it would not run compiled
    then: there is what layers note.
    """

    def __init__(
        self,
        config: RunConfig,
        ranks: Ranks | None,
        model: nn.Module,
        run: RunDirectory | None,
        *,
        attempt: int = 1,
    ) -> None:
        self._config = config
        self._ranks = ranks
        self._model = model
        self._run = run
        self._attempt = attempt
        self._layers = recipe_layers(name for name, _ in model.named_parameters())
        self._due = True  # the first step of this attempt has not been judged yet
        self._log: GemmLog | None = None
        self._rows: Counter[str] | None = None

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Record what is computed inside, if it is a step to record."""
        with ExitStack() as stack:
            if self._due or self._is_measured(step):
                self._begin(stack, observe=self._due)
            yield
        self._log = None

    @contextmanager
    def evaluation(self) -> Iterator[Callable[[], None]]:
        """Record what is computed inside, until the yielded function is called."""
        with ExitStack() as stack:
            self._begin(stack, observe=True)
            yield stack.close

    def after_passes(self, step: int) -> str | None:
        """Judge the passes of the first step, before its update; a line about it (collective).

        None if it was another step, or there is nothing to say. Raises NumericHealthError on all
        ranks if FP8 was asked for and some product on some rank was not.
        """
        if not self._due:
            return None
        found = self._judge("training", step, TRAINING)
        self._due = False
        return str(summary(found)["text"]) if self._config.precision.is_fp8 else None

    def after_evaluation(self, step: int = 0) -> None:
        """The same for an evaluation, which has no backward pass (collective)."""
        self._judge("evaluation", step, EVALUATION)
        self._log = None

    def ranges(self, step: int) -> Ranges:
        """How FP8 operands of all ranks fitted in this step; empty if it is not one to look at.

        Collective. It is the first step of the run, or ends a window: not the first of an attempt,
        so that a run that was resumed knows what another knows.
        """
        if not self._is_measured(step):
            return {}
        assert self._log is not None, "the step is being recorded"
        assert self._ranks is not None, "training has ranks"
        return worst_of_ranks(self._log.ranges, self._ranks)

    def _is_measured(self, step: int) -> bool:
        in_turn = step == 1 or step % self._config.health.window_steps == 0
        return in_turn and self._config.precision.is_fp8

    def _begin(self, stack: ExitStack, *, observe: bool) -> None:
        self._log = stack.enter_context(recording())
        self._rows = None
        if observe and not self._config.launcher.compile:
            self._rows = stack.enter_context(observing(self._model))

    def _judge(self, name: str, step: int, kinds: Sequence[GemmKind]) -> Found:
        """What all ranks did, written down and compared."""
        assert self._log is not None, "something was recorded"
        asked = asked_for(self._config.precision)
        calls = self._log.calls
        broken: dict[str, list[str]] = {}
        promised: list[list[str]] = []
        if asked is not None:
            layers = Layers(self._layers, self._idle())
            broken = broken_promises(calls, layers, asked, kinds)
            promised = [[layer, kind] for layer in self._layers for kind in kinds]
        own: list[Any] = [listed(calls), broken, promised]
        of_ranks = [own] if self._ranks is None else self._ranks.all_gather(own)
        found = Found(
            union(each for each, _, _ in of_ranks),
            frozenset((layer, kind) for _, _, each in of_ranks for layer, kind in each),
            _by_layer([each for _, each, _ in of_ranks]),
        )
        self._write(name, step, found)
        if found.broken:
            raise self._not_as_asked(found)
        return found

    def _idle(self) -> list[str]:
        """Experts of this rank without rows, as far as it was looked at."""
        rows = self._rows
        if rows is None:
            return []
        return [each for each in self._layers if ".mlp.experts." in each and not _rows(rows, each)]

    def _write(self, name: str, step: int, found: Found) -> None:
        if self._run is None or self._ranks is None or not self._ranks.is_first:
            return
        content = section(found, attempt=self._attempt, step=step, ranks=self._ranks.size)
        observed = not self._config.launcher.compile
        write_section(self._run, name, content, self._config.precision, observed=observed)

    def _not_as_asked(self, found: Found) -> NumericHealthError:
        setting = f"precision.recipe={self._config.precision.recipe}"
        remedy = "precision=bf16 (a new run) asks for no FP8"
        if self._run is not None:
            remedy = f"{self._run.gemms_path} lists every product; {remedy}"
        return NumericHealthError(
            [Problem(setting, line, remedy) for line in in_words(found.broken)]
        )


def _rows(rows: Mapping[str, int], projection: str) -> int:
    return rows.get(projection.rpartition(".")[0], 0)


def _by_layer(of_ranks: Sequence[Mapping[str, Iterable[str]]]) -> dict[str, list[str]]:
    """What is wrong on any rank, with the ranks if there are others."""
    holders: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for rank, broken in enumerate(of_ranks):
        for layer, said in broken.items():
            for each in said:
                holders[layer][each].append(rank)
    alone = len(of_ranks) == 1
    return {
        layer: [each if alone else f"{each} (rank {', '.join(map(str, who))})" for each, who in by]
        for layer, by in ((layer, said.items()) for layer, said in sorted(holders.items()))
    }
