"""One rank: joins the others, runs the cases of their number, writes what it found."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed
from safetensors.torch import save_file

from distributed.checkpoint_cases import CHECKPOINT_CASES
from distributed.group_cases import GROUP_CASES
from distributed.health_cases import HEALTH_CASES
from distributed.proof_cases import PROOF_CASES
from distributed.start_cases import START_CASES
from distributed.timeline_cases import TIMELINE_CASES
from distributed.token_cases import TOKEN_CASES
from distributed.trainer_cases import TRAINER_CASES
from distributed.training_cases import TRAINING_CASES
from dsv3.engine import distributed


def main(directory: Path) -> None:
    """Run everything; a case returns JSON and tensors by name."""
    values, tensors = {}, {}
    with distributed.process_group("cpu"):
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        cases = (
            GROUP_CASES
            | TOKEN_CASES
            | CHECKPOINT_CASES
            | TRAINING_CASES[world]
            | TRAINER_CASES[world]
            | HEALTH_CASES[world]
            | PROOF_CASES[world]
            | TIMELINE_CASES
            | START_CASES[world]
        )
        for name, case in cases.items():
            values[name], found = case()
            tensors |= {f"{name}|{key}": tensor for key, tensor in found.items()}
    assert not torch.distributed.is_initialized(), "a group left behind aborts some exits"
    (directory / f"rank-{rank}.json").write_text(json.dumps(values))
    save_file(tensors, directory / f"rank-{rank}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
