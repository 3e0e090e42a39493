"""What every GPU test needs: a GPU, Transformer Engine, and models on it.

Without a CUDA device each test is skipped and says so; nothing here counts as passed then.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dsv3.config.compose import compose
from dsv3.config.root import RunConfig
from dsv3.errors import CapacityError
from dsv3.model.transformer import Transformer
from dsv3.train.build import build_model, choose_backend

NOT_MEASURED = "NOT MEASURED: no CUDA device here; run `make test PYTEST_ARGS='-m gpu'` beside one"


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip(NOT_MEASURED)
    return torch.device("cuda")


@pytest.fixture(scope="session")
def te(gpu: torch.device) -> Any:
    """`transformer_engine.pytorch` with block scaling, as the backend loads it."""
    try:
        choose_backend(precision("fp8_block"))
    except CapacityError as error:
        pytest.skip(f"NOT MEASURED: {error}")
    import transformer_engine.pytorch

    return transformer_engine.pytorch


def precision(name: str, *overrides: str) -> Any:
    return compose([f"precision={name}", *overrides]).config.precision


ARMS = {
    "torch bf16": ["precision=bf16"],
    "te bf16": ["precision=bf16", "precision.backend=te"],
    "te fp8": ["precision=fp8_block"],
    "te fp8, fp32 scales": ["precision=fp8_block", "precision.scales=fp32"],
    "emulated fp8": ["precision=fp8_block_emulated"],
    "emulated fp8, fp32 scales": ["precision=fp8_block_emulated", "precision.scales=fp32"],
}
"""Ways to compute one model."""


def configuration(arm: str, *overrides: str) -> RunConfig:
    return compose(["model=moe_tiny", *ARMS[arm], *overrides]).config


@pytest.fixture
def build(te: Any, gpu: torch.device) -> Callable[..., Transformer]:
    """build(arm, *overrides): moe_tiny on the GPU, the same weights in every arm."""

    def make(arm: str, *overrides: str) -> Transformer:
        return build_model(configuration(arm, *overrides), gpu)

    return make


def tokens(config: RunConfig, gpu: torch.device, *, sequences: int = 4, length: int = 256) -> Any:
    """Ids and labels of a text that can be learned: each token follows from the one before."""
    generator = torch.Generator().manual_seed(7)
    vocab = config.model.vocab_size
    ids = torch.randint(vocab, (sequences, length + 1), generator=generator)
    follow = (torch.arange(vocab) * 31 + 7) % vocab
    for at in range(1, length + 1):
        certain = torch.rand(sequences, generator=generator) < 0.7
        ids[:, at] = torch.where(certain, follow[ids[:, at - 1]], ids[:, at])
    ids = ids.to(gpu)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
