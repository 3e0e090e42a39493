from pathlib import Path

import pytest

from dsv3.config.compose import compose
from dsv3.config.root import RunConfig


@pytest.fixture(scope="session")
def shipped_config() -> RunConfig:
    return compose(["model=moe_nano"]).config


@pytest.fixture
def config(shipped_config: RunConfig, tmp_path: Path) -> RunConfig:
    return shipped_config.model_copy(update={"run_root": str(tmp_path / "runs")})
