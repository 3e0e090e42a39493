"""One rank whose allocations are counted: `python -m bench.counted_rank OVERRIDE...`; prints JSON.

A step first, so that moments and whatever else is made once is there.
"""

import gc
import json
import statistics
import sys

import torch
from torch import Tensor

from bench.allocations import Counter
from bench.sides import LR
from dsv3.config.compose import compose
from dsv3.config.root import RunConfig
from dsv3.engine.distributed import process_group
from dsv3.parallel.exchange import Exchange, Splits
from dsv3.train.build import build_engine, build_model
from dsv3.train.ranks import Ranks
from dsv3.train.stages import build_pipeline

WARM_UP = 1


def main(overrides: list[str]) -> None:
    """Count a step of full size on random tokens; `load` is that of this rank's experts, 1 even."""
    config, device, counter = compose(overrides).config, torch.device("cpu"), Counter()
    with process_group(device):
        ranks = Ranks(config.parallelism, device)
        before, received = counter.live, _follow_rows()
        model = build_model(config, device, ranks.place)
        pipeline = build_pipeline(model, config, ranks.place, device)
        engine = build_engine(model, config, device, pipeline)
        generator = torch.Generator().manual_seed(ranks.place.data_rank)
        for _ in range(WARM_UP):
            engine.train_step(_batches(config, generator), lr=LR)
        batches = _batches(config, generator)
        gc.collect()
        received.clear()
        counter.start()
        state = counter.live - before
        engine.train_step(batches, lr=LR)
        peak = counter.peak - before
        engine.close()
        found = {"rank": ranks.rank, "state": state, "peak": peak, "load": _load(received)}
    sys.stdout.write(json.dumps(found) + "\n")


def _batches(config: RunConfig, generator: torch.Generator) -> list[tuple[Tensor, ...]]:
    """This rank's micro batches of a step."""
    count = config.gradient_accumulation_steps
    share = config.schedule.global_batch_size // config.parallelism.data_parallel_size
    shape = (share // count, config.schedule.sequence_length + 1)
    coeff = torch.tensor(config.mtp.loss_coeff)
    drawn = (
        torch.randint(config.model.vocab_size, shape, generator=generator) for _ in range(count)
    )
    return [(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), coeff) for ids in drawn]


def _follow_rows() -> list[float]:
    """A list that will hold, for each exchange, the rows that came over those of an even load."""
    found: list[float] = []
    counts = Exchange.counts

    def follow(exchange: Exchange, counts_E: Tensor) -> tuple[Tensor, Splits]:
        arriving, splits = counts(exchange, counts_E)
        found.append(sum(splits.received) / sum(splits.sent))
        return arriving, splits

    Exchange.counts = follow  # type: ignore[method-assign]
    return found


def _load(received: list[float]) -> float:
    return statistics.mean(received) if received else 1.0


if __name__ == "__main__":
    main(sys.argv[1:])
