"""Samples of a prepared text: the n-th of training, and the held-out ones of each domain."""

from dataclasses import dataclass

from dsv3.data.permutation import Permutation
from dsv3.data.prepared import Prepared
from dsv3.data.shards import Ids, TokenStream
from dsv3.errors import DataError, Problem


class TrainingSamples:
    """Sample n as a function of (seed, n) alone, for every n >= 0.

    The stream is cut into samples of S + 1 tokens that overlap by one, so that every token but the
    first is predicted once; each epoch shows every sample once, in an order of its own.
    """

    def __init__(
        self, prepared: Prepared, sequence_length: int, seed: int, *, batch_size: int = 1
    ) -> None:
        """Raise DataError if the text does not fill one batch of `batch_size` samples."""
        self._stream, self._seed = prepared.train, seed
        self.sequence_length = sequence_length
        self.samples_per_epoch = _count(self._stream, sequence_length)
        if self.samples_per_epoch < batch_size:
            rule = (
                f"{len(self._stream)} training tokens make {self.samples_per_epoch} samples of"
                f" {sequence_length} tokens, one batch takes {batch_size}"
            )
            remedy = "give more text, or lower schedule.sequence_length or global_batch_size"
            raise DataError(Problem("data", f"too little text: {rule}", remedy))
        self._epoch = 0
        self._permutation = self._of_epoch(0)

    def __getitem__(self, n: int) -> Ids:
        """Token ids [S + 1] of the n-th sample of the run; raises DataError on a damaged shard."""
        if n < 0:
            raise IndexError(n)
        epoch, position = divmod(n, self.samples_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, self._of_epoch(epoch)
        return _sample(self._stream, self.sequence_length, self._permutation(position))

    def _of_epoch(self, epoch: int) -> Permutation:
        return Permutation(self.samples_per_epoch, seed=self._seed, epoch=epoch)


@dataclass(frozen=True)
class ValidationSample:
    """Token ids [S + 1] of one held-out stretch, and the UTF-8 bytes its S targets stand for."""

    domain: str
    ids: Ids
    target_bytes: int


def validation_samples(
    prepared: Prepared, sequence_length: int, count: int
) -> list[ValidationSample]:
    """At most `count` samples, as evenly over domains and within them as the text allows.

    Raises DataError if no domain holds out enough text for one.
    """
    available = {
        name: _count(stream, sequence_length) for name, stream in prepared.validation.items()
    }
    taken = _spread(available, count)
    if not sum(taken.values()):
        lengths = {name: len(stream) for name, stream in prepared.validation.items()}
        rule = f"too little held-out text for {sequence_length} + 1 tokens; tokens per domain:"
        remedy = "give more text, or raise data.validation_fraction"
        raise DataError(Problem("data", f"{rule} {lengths}", remedy))
    samples = []
    for name, number in taken.items():
        for i in range(number):
            place = i * available[name] // number
            ids = _sample(prepared.validation[name], sequence_length, place)
            samples.append(ValidationSample(name, ids, int(prepared.token_bytes[ids[1:]].sum())))
    return samples


def unigram_loss(prepared: Prepared, samples: list[ValidationSample]) -> float:
    """Unigram cross entropy, in nats per token, on exactly the targets of these samples."""
    logs = [prepared.unigram_log_probabilities[sample.ids[1:]] for sample in samples]
    return -float(sum(log.sum() for log in logs)) / sum(len(log) for log in logs)


def _count(stream: TokenStream, sequence_length: int) -> int:
    return max(0, (len(stream) - 1) // sequence_length)


def _sample(stream: TokenStream, sequence_length: int, index: int) -> Ids:
    start = index * sequence_length
    return stream.slice(start, start + sequence_length + 1)


def _spread(available: dict[str, int], count: int) -> dict[str, int]:
    """Share out `count`, equally; what a domain does not have goes to the others."""
    taken: dict[str, int] = {}
    scarcest_first = sorted(available, key=lambda name: (available[name], name))
    for place, name in enumerate(scarcest_first):
        left = count - sum(taken.values())
        taken[name] = min(available[name], left // (len(available) - place))
    return dict(sorted(taken.items()))
