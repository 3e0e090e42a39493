"""Train, save, load into a fresh engine, go on: bit for bit the run that was never stopped."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dsv3.checkpoint.manifest import Identity
from dsv3.checkpoint.random_state import capture_random_state, restore_random_state
from dsv3.checkpoint.store import CheckpointStore
from dsv3.config.compose import compose
from dsv3.engine import distributed
from dsv3.errors import CheckpointError

IDENTITY = Identity(run_id="oracle", config_sha256="c" * 64)


class NoisyNet(nn.Module):
    """Dropout draws from the global stream; the bias moves as a router's does."""

    def __init__(self, width: int = 19) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width, bias=False)
        self.norm = nn.RMSNorm(width)
        self.experts = nn.Parameter(torch.randn(2, width, 5) / 4)
        self.register_buffer("e_score_correction_bias", torch.zeros(2))

    def forward(self, inputs_TD, labels_T):
        hidden_TD = F.dropout(self.norm(self.embed(inputs_TD)), 0.1, self.training)
        expert_T = (hidden_TD[:, :2].float() + self.e_score_correction_bias).argmax(-1)
        logits = torch.einsum("td,tdf->tf", hidden_TD, self.experts[expert_T])
        return F.cross_entropy(logits.float(), labels_T)


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    with distributed.process_group("cpu"):
        yield


def build(recipe, zero_stage, seed, width=19):
    from dsv3.engine.engine import TrainingEngine

    torch.manual_seed(seed)
    config = compose([f"precision={recipe}", f"parallelism.zero_stage={zero_stage}"]).config
    return TrainingEngine(
        NoisyNet(width), config, device="cpu", expert_parameter=lambda name: name == "experts"
    )


def train(engine, first, last, dtype):
    """One line a step, as hexadecimal floats: what must not differ in a single bit."""
    lines = []
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        batches = [
            (
                torch.randn(12, 8, generator=generator).to(dtype),
                torch.randint(5, (12,), generator=generator),
            )
            for _ in range(2)
        ]
        result = engine.train_step(batches, lr=1e-2 / (step + 1))
        engine.module.e_score_correction_bias[step % 2] += 0.01
        lines.append((result.loss.hex(), result.grad_norm.hex()))
    return lines


def save(engine, store, step):
    return store.save(
        engine.fragments(),
        step=step,
        optimizer_step=engine.optimizer_step,
        attempt=1,
        layout={"world_size": 1},
        state={"step": step},
        rank_state={"random": capture_random_state()},
    )


def load(engine, store):
    checkpoint = store.find_newest().checkpoint
    store.require(checkpoint, engine.expected_tensors(checkpoint.root.optimizer_step))
    engine.prepare_load(checkpoint.root.optimizer_step)
    store.load(checkpoint, engine.fragments())
    engine.finish_load()
    restore_random_state(checkpoint.rank_state(0)["random"])
    return checkpoint


def state_of(engine):
    return {fragment.key: fragment.data.clone() for fragment in engine.fragments()}


@pytest.mark.parametrize("recipe", ["fp32", "bf16"])
@pytest.mark.parametrize("zero_stage", [1, 2])
@pytest.mark.parametrize("steps", [0, 3])
def test_a_resumed_run_is_bit_identical(tmp_path, recipe, zero_stage, steps):
    dtype = torch.float32 if recipe == "fp32" else torch.bfloat16
    store = CheckpointStore(tmp_path, IDENTITY)
    straight = build(recipe, zero_stage, seed=1)
    train(straight, 0, steps, dtype)
    save(straight, store, steps)
    lines = train(straight, steps, steps + 4, dtype)

    resumed = build(recipe, zero_stage, seed=2)
    train(resumed, 90, 92, dtype)  # whatever it did before
    assert load(resumed, store).state == {"step": steps}
    assert train(resumed, steps, steps + 4, dtype) == lines
    left, right = state_of(straight), state_of(resumed)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)
    straight.close()
    resumed.close()


def test_a_checkpoint_moves_between_zero_stages_and_optimizer_classes(tmp_path):
    store = CheckpointStore(tmp_path, IDENTITY)
    source = build("bf16", 1, seed=1)  # BF16_Optimizer
    train(source, 0, 3, torch.bfloat16)
    save(source, store, 3)
    for recipe, zero_stage in (("bf16", 2), ("fp32", 1)):  # DeepSpeedZeroOptimizer
        target = build(recipe, zero_stage, seed=2)
        load(target, store)
        left, right = state_of(source), state_of(target)
        assert all(torch.equal(left[key], right[key]) for key in left)
        target.close()
    source.close()


def test_another_model_is_refused_before_the_engine_changes(tmp_path):
    store = CheckpointStore(tmp_path, IDENTITY)
    source, wider = build("fp32", 1, seed=1), build("fp32", 1, seed=1, width=20)
    train(source, 0, 1, torch.float32)
    save(source, store, 1)
    before = state_of(wider)
    with pytest.raises(CheckpointError, match=r"expected \[20, 8\] F32, found \[19, 8\] F32"):
        load(wider, store)
    after = state_of(wider)
    assert after.keys() == before.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    source.close()
    wider.close()
