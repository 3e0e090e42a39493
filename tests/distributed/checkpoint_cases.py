"""Cases about checkpoints: saved by all ranks, loaded in another layout, trained on.

The processes run in a directory of their own, which they share.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed

from distributed.training_cases import LR, Row, batches_of, engine_of, state
from dsv3.checkpoint.manifest import Identity
from dsv3.checkpoint.store import CheckpointStore
from dsv3.engine.collective import RankCollective

SAVED = {2: Row(experts=2), 4: Row(experts=2, zero_stage=2)}
# By world size; the first is the layout that saved.
LOADED = {
    2: {"ep2": SAVED[2], "dp2 zero2": Row(zero_stage=2)},
    4: {
        "ep2_dp2 zero2": SAVED[4],
        "ep4": Row(experts=4),
        "dp4": Row(),
        "ep2_dp2 bf16": Row("bf16", 2),
    },
}


def moves() -> Any:
    """Save after two steps; load in every layout of this many ranks, and train one more step."""
    world = torch.distributed.get_world_size()
    if world not in SAVED:
        return {}, {}
    identity = Identity(run_id="layouts", config_sha256="d" * 64)
    store = CheckpointStore(Path("checkpoints"), identity, collective=RankCollective("cpu"))
    source, config = engine_of(SAVED[world])
    for step in range(2):
        source.train_step(batches_of(config, step), lr=LR)
    store.save(
        source.fragments(),
        step=2,
        optimizer_step=source.optimizer_step,
        attempt=1,
        layout=config.parallelism.model_dump(mode="json"),
        state={},
        rank_state={"rank": torch.distributed.get_rank()},
    )
    tensors = dict(state("saved", source))
    result = source.train_step(batches_of(config, 2), lr=LR)
    tensors |= state("straight on", source)
    values: dict[str, Any] = {"straight on": [result.losses, result.grad_norm]}
    values["shapes"] = {f.key: list(f.shape) for f in source.fragments()}
    source.close()
    for name, row in LOADED[world].items():
        engine, config = engine_of(row)
        checkpoint = store.find_newest().checkpoint
        assert checkpoint is not None
        store.require(checkpoint, engine.expected_tensors(checkpoint.root.optimizer_step))
        engine.prepare_load(checkpoint.root.optimizer_step)
        store.load(checkpoint, engine.fragments())
        engine.finish_load()
        tensors |= state(f"loaded {name}", engine)
        result = engine.train_step(batches_of(config, 2), lr=LR)
        values[name] = [result.losses, result.grad_norm]
        values["shapes"] |= {f.key: list(f.shape) for f in engine.fragments()}
        tensors |= state(f"went on {name}", engine)
        engine.close()
    return values, tensors


CHECKPOINT_CASES = {"moves": moves}
