"""A process group of one, and a small module with stacked experts."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dsv3.config.compose import compose
from dsv3.engine import distributed

EXPERTS = 4


class SmallNet(nn.Module):
    """Linear layers, a norm, stacked experts chosen by a biased score; odd sizes on purpose."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.embed = nn.Linear(7, 13, bias=False)
        self.norm = nn.RMSNorm(13)
        self.experts = nn.Module()
        self.experts.down_proj = nn.Parameter(torch.empty(EXPERTS, 13, 13))
        self.head = nn.Linear(13, 5, bias=False)
        self.register_buffer("e_score_correction_bias", torch.zeros(EXPERTS))
        self.register_buffer("tokens_per_expert_E", torch.zeros(EXPERTS).long(), persistent=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(std=0.3, generator=generator)

    def forward(self, inputs_TD: torch.Tensor, labels_T: torch.Tensor) -> torch.Tensor:
        hidden_TD = self.norm(self.embed(inputs_TD))
        scores_TE = hidden_TD[:, :EXPERTS].detach().float() + self.e_score_correction_bias
        expert_T = scores_TE.argmax(-1)
        if self.training:
            self.tokens_per_expert_E += torch.bincount(expert_T, minlength=EXPERTS)
        chosen = torch.einsum("td,tdf->tf", hidden_TD, self.experts.down_proj[expert_T])
        return F.cross_entropy(self.head(hidden_TD + chosen).float(), labels_T)


def is_expert_name(name: str) -> bool:
    return "experts." in name


def make_config(recipe="fp32", zero_stage=1, clipping=1.0, decay=None):
    return compose(
        [
            f"precision={recipe}",
            f"parallelism.zero_stage={zero_stage}",
            f"optimizer.gradient_clipping={clipping}",
            f"ema.decay={'null' if decay is None else decay}",
        ]
    ).config


def make_batches(seed, count, dtype=torch.float32, tokens=16):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(tokens, 7, generator=generator).to(dtype),
            torch.randint(5, (tokens,), generator=generator),
        )
        for _ in range(count)
    ]


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with distributed.process_group("cpu"):
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def batches():
    return make_batches


@pytest.fixture
def net():
    return SmallNet


@pytest.fixture
def engine_of():
    """Build engines; all are closed at the end of the test."""
    from dsv3.engine.engine import TrainingEngine

    engines = []

    def build(recipe="fp32", zero_stage=1, clipping=1.0, seed=0, model=None, decay=None):
        model = SmallNet(seed) if model is None else model
        initial = {name: p.detach().clone() for name, p in model.named_parameters()}
        config = make_config(recipe, zero_stage, clipping, decay)
        engine = TrainingEngine(model, config, device="cpu", expert_parameter=is_expert_name)
        engine.set_masters(initial.__getitem__)
        engines.append(engine)
        return engine

    yield build
    for engine in engines:
        engine.close()


@pytest.fixture
def snapshot():
    """Copy everything an engine holds, by name."""

    def copy(engine):
        state = {fragment.key: fragment.data.clone() for fragment in engine.fragments()}
        weights = {f"weight/{n}": p.detach().clone() for n, p in engine.module.named_parameters()}
        return state | weights | {"step": torch.tensor(engine.optimizer_step)}

    return copy
