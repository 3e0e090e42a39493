"""Peaks of real steps, counted through torch's allocator, against the trace and the formulas.

Bytes do not depend on how fast or busy a machine is. `bench/planned_memory.py` has the whole table.
"""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
NANO = ["model=moe_nano", "schedule.global_batch_size=8", "schedule.batch_size_quantum=8"]
WIDER = [
    "model.hidden_size=512",
    "model.num_hidden_layers=3",
    "model.intermediate_size=2048",
    "model.vocab_size=512",
]
"""So that the fullest moment is inside of a product, and not in the loss."""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'src'}")
    if not importlib.import_module("bench.allocations").has_compiler():
        pytest.skip("no C compiler to build the counter of allocations with")
    return importlib.import_module("bench.planned_memory")


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("overrides", "ranks"),
    [
        (["parallelism=single", "precision=bf16", "mtp=depth1"], 1),
        (["parallelism=pp2", "precision=fp32"], 2),
        (["parallelism=single", "precision=fp8_block_emulated", *WIDER], 1),
    ],
)
def test_a_peak_is_what_was_traced_and_planned(
    bench: ModuleType, tmp_path: Path, overrides: list[str], ranks: int
) -> None:
    library = importlib.import_module("bench.allocations").build(tmp_path)
    rows = bench.compared([*NANO, *overrides], ranks, library)
    assert [row["rank"] for row in rows] == list(range(ranks))
    for row in rows:
        assert row["traced_state"] == pytest.approx(row["state"], rel=0.02), row
        assert row["traced"] == pytest.approx(row["peak"], rel=0.05), row
        assert row["planned"] == pytest.approx(row["peak"], rel=0.05), row
