"""The engine against a plain torch loop: AdamW written out, FP32 masters, one clipped gradient."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dsv3.config.compose import compose
from dsv3.engine import distributed

LR, WEIGHT_DECAY, BETAS, EPS = 1e-2, 0.1, (0.9, 0.95), 1e-8


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.embed = nn.Linear(9, 17, bias=False)
        self.norm = nn.RMSNorm(17)
        self.experts = nn.Parameter(torch.empty(3, 17, 17))
        self.head = nn.Linear(17, 6, bias=False)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(std=0.4, generator=generator)

    def forward(self, inputs_TD, labels_T):
        hidden_TD = self.norm(self.embed(inputs_TD))
        chosen_T = hidden_TD[:, :3].detach().float().argmax(-1)
        routed_TD = torch.einsum("td,tdf->tf", hidden_TD, self.experts[chosen_T])
        return F.cross_entropy(self.head(hidden_TD + routed_TD).float(), labels_T)


class PlainLoop:
    """Master weights in FP32, gradients accumulated in FP32, AdamW by its formula."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, clipping: float) -> None:
        self.masters = {n: p.detach().float().clone() for n, p in model.named_parameters()}
        self.model = copy.deepcopy(model).to(dtype)
        self.moments = {n: [torch.zeros_like(p)] * 2 for n, p in self.masters.items()}
        self.clipping, self.steps = clipping, 0

    def train_step(self, micro_batches):
        gradients = {n: torch.zeros_like(p) for n, p in self.masters.items()}
        total = 0.0
        for micro_batch in micro_batches:
            self.model.zero_grad()
            loss = self.model(*micro_batch)
            (loss / len(micro_batches)).backward()
            total += loss.item() / len(micro_batches)
            for name, parameter in self.model.named_parameters():
                gradients[name] += parameter.grad.float()
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
        scale = min(1.0, self.clipping / (norm + 1e-6))
        self.steps += 1
        for name, gradient in gradients.items():
            self.update(name, gradient * scale)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self.masters[name])
        return total, norm

    def update(self, name, gradient):
        (beta1, beta2), step, master = BETAS, self.steps, self.masters[name]
        first, second = self.moments[name]
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient.square()
        decay = WEIGHT_DECAY if master.ndim > 1 else 0.0
        corrected = (second / (1 - beta2**step)).sqrt() + EPS
        self.masters[name] = master * (1 - LR * decay) - LR / (1 - beta1**step) * first / corrected
        self.moments[name] = [first, second]


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    with distributed.process_group("cpu"):
        yield


def make_engine(recipe, zero_stage, clipping):
    from dsv3.engine.engine import TrainingEngine

    overrides = [f"precision={recipe}", f"parallelism.zero_stage={zero_stage}"]
    config = compose([*overrides, f"optimizer.gradient_clipping={clipping}"]).config
    assert (config.optimizer.beta1, config.optimizer.beta2) == BETAS
    assert (config.optimizer.eps, config.optimizer.weight_decay) == (EPS, WEIGHT_DECAY)
    model = Net()
    initial = {name: p.detach().clone() for name, p in model.named_parameters()}
    engine = TrainingEngine(
        model, config, device="cpu", expert_parameter=lambda name: name == "experts"
    )
    engine.set_masters(initial.__getitem__)
    return engine


def micro_batches(generator, count, dtype):
    return [
        (
            torch.randn(16, 9, generator=generator).to(dtype),
            torch.randint(6, (16,), generator=generator),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("zero_stage", [1, 2])
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("clipping", [0.3, 1e9])
@pytest.mark.parametrize("recipe", ["fp32", "bf16"])
def test_the_engine_equals_a_plain_loop(recipe, clipping, accumulation, zero_stage):
    dtype = torch.float32 if recipe == "fp32" else torch.bfloat16
    engine = make_engine(recipe, zero_stage, clipping)
    plain = PlainLoop(Net(), dtype, clipping)
    generator = torch.Generator().manual_seed(1)
    for step in range(1, 7):
        batches = micro_batches(generator, accumulation, dtype)
        result = engine.train_step(batches, lr=LR)
        loss, norm = plain.train_step(batches)
        assert engine.optimizer_step == step
        # FP32: fused Adam orders the same operations differently, an ulp (6e-8) a step and weight.
        # BF16: such an ulp can move a weight across a rounding border, 2^-9 of that one weight.
        tolerance = 2e-6 if recipe == "fp32" else 2e-3
        assert result.loss == pytest.approx(loss, rel=tolerance)
        assert result.grad_norm == pytest.approx(norm, rel=tolerance)
        assert (norm > clipping) == (clipping < 1), "the case clips, or does not, throughout"
    weights = dict(engine.module.named_parameters())
    for fragment in engine.fragments():
        kind, name = fragment.key.split("/")
        index = {"master": None, "exp_avg": 0, "exp_avg_sq": 1}[kind]
        expected = plain.masters[name] if index is None else plain.moments[name][index]
        # Adam divides by the root of tiny second moments: an ulp of the gradient moves such a
        # weight by an ulp of the learning rate, hence the absolute part.
        atol, rtol = (1e-7, 1e-5) if recipe == "fp32" else (2e-4, 2e-2)
        torch.testing.assert_close(
            fragment.data.view(fragment.shape), expected, rtol=rtol, atol=atol
        )
        if kind == "master":
            assert torch.equal(weights[name], fragment.data.view(fragment.shape).to(dtype))
    engine.close()


@pytest.mark.parametrize("accumulation", [1, 4])
def test_without_clipping_fp32_is_bit_equal_to_torchs_fused_adamw(accumulation):
    engine, model = make_engine("fp32", 1, 1e9), Net()
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1]},
            {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=LR,
        betas=BETAS,
        eps=EPS,
        weight_decay=WEIGHT_DECAY,
        fused=True,
    )
    generator = torch.Generator().manual_seed(2)
    for _ in range(4):
        batches = micro_batches(generator, accumulation, torch.float32)
        engine.train_step(batches, lr=LR)
        adamw.zero_grad()
        for micro_batch in batches:
            (model(*micro_batch) / accumulation).backward()
        adamw.step()
        for name, parameter in engine.module.named_parameters():
            assert torch.equal(parameter, model.get_parameter(name)), name
    engine.close()


def test_the_learning_rate_of_each_step_counts():
    engine, plain = make_engine("fp32", 1, 1.0), Net()
    generator = torch.Generator().manual_seed(2)
    engine.train_step(micro_batches(generator, 1, torch.float32), lr=0.0)
    for name, parameter in engine.module.named_parameters():
        assert torch.equal(parameter, plain.get_parameter(name))
    engine.train_step(micro_batches(generator, 1, torch.float32), lr=0.5)
    for name, parameter in engine.module.named_parameters():
        assert not torch.equal(parameter, plain.get_parameter(name)), "in every group"
    engine.close()


def test_masters_gather_updates_that_bf16_alone_would_lose():
    engine = make_engine("bf16", 1, 1.0)
    before = {n: p.detach().clone() for n, p in engine.module.named_parameters()}
    masters = {f.key: f.data.clone() for f in engine.fragments()}
    engine.train_step(micro_batches(torch.Generator().manual_seed(4), 1, torch.bfloat16), lr=1e-7)
    moved = [
        not torch.equal(masters[f.key], f.data) for f in engine.fragments() if f.key in masters
    ]
    assert all(moved)
    changed = sum(int((p != before[n]).sum()) for n, p in engine.module.named_parameters())
    total = sum(p.numel() for p in engine.module.parameters())
    assert changed < total / 100, "1e-7 is below half a bf16 ulp of nearly every weight"
    engine.close()
