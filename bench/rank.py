"""One rank of a measurement: `python -m bench.rank ROUNDS OVERRIDE...`; the first prints JSON."""

import json
import statistics
import sys
import time

import torch

from bench.sides import LR
from bench.throughput import keep_memory
from dsv3.config.compose import compose
from dsv3.engine.distributed import process_group
from dsv3.parallel.dispatch import AllToAllDispatcher
from dsv3.train.build import build_engine, build_model
from dsv3.train.ranks import Ranks

WARM_UP = 2


def main(rounds: int, overrides: list[str]) -> None:
    """Time optimizer steps on random tokens, this rank's share of the configuration's batch."""
    keep_memory()
    config, device = compose(overrides).config, torch.device("cpu")
    schedule = config.schedule
    with process_group(device):
        ranks = Ranks(config.parallelism, device)
        model = build_model(config, device, ranks.place)
        engine = build_engine(model, config, device)
        share = schedule.global_batch_size // ranks.size
        generator = torch.Generator().manual_seed(ranks.rank)
        shape = (share, schedule.sequence_length + 1)
        ids = torch.randint(config.model.vocab_size, shape, generator=generator)
        dispatchers = {moe.dispatcher for moe in model.moe_layers().values()}
        taken = []
        for turn in range(WARM_UP + rounds):
            if turn == WARM_UP:
                traffic = [d.take_traffic() for d in dispatchers if _travels(d)]
            begin_s = time.perf_counter()
            engine.train_step([(ids[:, :-1], ids[:, 1:])], lr=LR)
            taken.append(time.perf_counter() - begin_s)
        traffic = [d.take_traffic() for d in dispatchers if _travels(d)]
        engine.close()
        if ranks.is_first:
            seconds = statistics.median(taken[WARM_UP:])
            found = {
                "seconds": seconds,
                "tokens_per_second": schedule.peak_tokens_per_step / seconds,
                "sent_bytes_per_step": sum(sum(t.sent_bytes.values()) for t in traffic) / rounds,
                "all_to_all_seconds": sum(sum(t.seconds.values()) for t in traffic) / rounds,
            }
            sys.stdout.write(json.dumps(found))


def _travels(dispatcher: object) -> bool:
    return isinstance(dispatcher, AllToAllDispatcher)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
