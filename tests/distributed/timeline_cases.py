"""A step of real ranks, one of which waits for the other, recorded on their common clock."""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dsv3.config.compose import compose
from dsv3.engine.collective import RankCollective
from dsv3.parallel.spans import span
from dsv3.train.timeline import Recorder

WORK_S = 0.02


def relay() -> Any:
    """The trace of a token that goes from rank to rank; the first one begins late."""
    ranks = RankCollective("cpu")
    config = compose(["model=moe_tiny", "run.timeline_step=1"]).config
    layout = config.parallelism.model_copy(update={"expert_data_parallel_size": ranks.size})
    config = config.model_copy(update={"parallelism": layout})
    with tempfile.TemporaryDirectory() as own:
        directory = Path(ranks.broadcast(own))  # the first one's, as a run directory is
        with Recorder(config, ranks, directory, torch.device("cpu")).step(1):
            token = torch.zeros(1)
            if ranks.rank > 0:
                with span("wait", "receive"):
                    dist.recv(token, ranks.rank - 1)
            with span("forward", "forward", part=0, micro_batch=0):
                time.sleep(WORK_S)
            with span("backward", "backward", part=0, micro_batch=0):
                time.sleep(WORK_S)
            if ranks.rank < ranks.size - 1:
                dist.send(token, ranks.rank + 1)
        files = sorted(file.name for file in (directory / "timeline").iterdir())
        trace = json.loads((directory / "timeline" / "step-1.json").read_text())
        ranks.all_gather(None)  # all have read it
    return {"files": files, "trace": trace}, {}


TIMELINE_CASES = {"timeline": relay}
