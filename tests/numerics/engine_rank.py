"""One rank of the layout test: trains, writes what it holds as JSON lines; started by the test."""

import json
import sys

import torch
import torch.distributed
from torch import nn
from torch.nn import functional as F

from dsv3.config.compose import compose
from dsv3.engine import distributed

EXPERTS = 4


class SliceNet(nn.Module):
    """Experts without a dispatcher: the batch says which half of them it uses."""

    def __init__(self, local: slice) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(11)
        self.embed = nn.Linear(6, 15, bias=False)
        self.norm = nn.RMSNorm(15)
        experts_EDF = torch.randn(EXPERTS, 15, 5, generator=generator) / 3
        self.experts = nn.Parameter(experts_EDF[local].clone())
        with torch.no_grad():
            self.embed.weight.normal_(std=0.4, generator=generator)

    def forward(self, inputs_TD, labels_T, experts):
        hidden_TD = self.norm(self.embed(inputs_TD.to(self.embed.weight.dtype)))
        used_EDF = self.experts[experts.tolist()]
        return F.cross_entropy(torch.einsum("td,edf->tf", hidden_TD, used_EDF).float(), labels_T)


def batch(step: int, half: int, local: bool):
    generator = torch.Generator().manual_seed(100 * step + half)
    experts = torch.arange(2) if local else torch.arange(2) + 2 * half
    return (
        torch.randn(8, 6, generator=generator),
        torch.randint(5, (8,), generator=generator),
        experts,
    )


def run(recipe: str, expert_parallel_size: int, zero_stage: int) -> dict:
    """Train four steps, one of them refused; return results and fragments."""
    from dsv3.engine.engine import TrainingEngine
    from dsv3.engine.health import NonFiniteError

    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    local = expert_parallel_size == 2
    overrides = [
        f"precision={recipe}",
        f"parallelism.zero_stage={zero_stage}",
        f"parallelism.expert_parallel_size={expert_parallel_size}",
        f"parallelism.expert_data_parallel_size={world // expert_parallel_size}",
        "schedule.micro_batch_size=1",
    ]
    engine = TrainingEngine(
        SliceNet(slice(2 * rank, 2 * rank + 2) if local else slice(None)),
        compose(overrides).config,
        device="cpu",
        expert_parameter=lambda name: name == "experts",
    )
    results = []
    for step in range(4):
        batches = [batch(step, half, local) for half in ([0, 1] if world == 1 else [rank])]
        if step == 2:
            bad = batches
            if rank == world - 1:  # bad on one rank: every rank must refuse
                bad = [(torch.full_like(inputs, torch.nan), *rest) for inputs, *rest in batches]
            try:
                engine.train_step(bad, lr=1e-2)
            except NonFiniteError as error:
                results.append(error.kind)
        result = engine.train_step(batches, lr=1e-2)
        results.append((result.loss, result.grad_norm))
    fragments = [
        [f.key, list(f.shape), f.offset, f.data.tolist()]
        for f in engine.fragments()
        if f.saved_here
    ]
    engine.close()
    return {"results": results, "fragments": fragments}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.process_group("cpu"):
        cases = [
            run(recipe, int(expert_parallel_size), int(zero_stage))
            for recipe, expert_parallel_size, zero_stage in (a.split(",") for a in sys.argv[1:])
        ]
    print(json.dumps(cases))
