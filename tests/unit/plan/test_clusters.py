"""Search of layouts, runs on a cluster, bytes on the disk, advice."""

import pytest

from dsv3.config.compose import compose
from dsv3.config.hardware import load_hardware
from dsv3.errors import CapacityError
from dsv3.plan.advice import changes, enough
from dsv3.plan.cluster import Job, makespan_s, place
from dsv3.plan.disk import disk_bytes
from dsv3.plan.peak import peak_memory
from dsv3.plan.search import Found, refuse_smaller_cluster, search
from dsv3.plan.setting import Setting

WORDS = ["model=moe_16b", "precision=bf16"]


def setting(gpus: int, name: str = "h100") -> Setting:
    return Setting(name, load_hardware(name), gpus=gpus)


@pytest.fixture(scope="module")
def found() -> list[Found]:
    return search([compose(WORDS).config], setting(64), most=5)


def test_every_line_composes_to_the_layout_it_stands_for(found: list[Found]) -> None:
    assert len(found) == 5
    for each in found:
        composed = compose([*WORDS, *each.override_line.split()]).config
        assert composed.parallelism == each.config.parallelism
        assert composed.recompute == each.config.recompute
        assert composed.schedule.micro_batch_size == each.config.schedule.micro_batch_size
        assert composed.parallelism.world_size <= 64


def test_layouts_fit_and_come_by_their_time(found: list[Found]) -> None:
    limit = setting(64).usable_bytes
    assert all(each.peak_bytes <= limit for each in found)
    assert all(peak_memory(each.config).bytes_per_rank == each.peak_bytes for each in found)
    hours = [each.hours for each in found]
    assert hours == sorted(hours)


def test_where_nothing_fits_the_nearest_is_named() -> None:
    with pytest.raises(CapacityError, match=r"the nearest needs [\d.]+ [GT]iB: .* recompute=full"):
        search([compose(["model=moe_228b"]).config], setting(2), most=1)


def test_a_smaller_cluster_is_told_what_it_can_do() -> None:
    config = compose(WORDS).config
    assert config.parallelism.world_size == 8
    refuse_smaller_cluster([config], setting(8))
    with pytest.raises(CapacityError, match="use --gpus 8, or on 4: parallelism") as caught:
        refuse_smaller_cluster([config], setting(4, "h200"))
    with pytest.raises(CapacityError, match="use --gpus 8, no layout fits on 1 H100"):
        refuse_smaller_cluster([config], setting(1))
    line = str(caught.value).partition("or on 4: ")[2]
    assert compose([*WORDS, *line.split()]).config.parallelism.world_size <= 4


def test_runs_start_when_there_is_room() -> None:
    jobs = [Job("a", 4, 10.0), Job("b", 4, 5.0), Job("c", 4, 5.0), Job("d", 8, 1.0)]
    placed = place(jobs, 8)
    assert [each.start_s for each in placed] == [0.0, 0.0, 5.0, 10.0]
    assert makespan_s(placed) == 11.0


def test_a_checkpoint_is_masters_and_moments() -> None:
    config = compose(["model=moe_nano", "schedule.total_tokens=16384"]).config
    disk = disk_bytes(config)
    # Written by a run: 18,365,482 bytes with its manifests and buffers.
    assert disk.checkpoint == pytest.approx(18_365_482, rel=5e-3)
    assert disk.checkpoints == disk.checkpoint  # nine steps: the last one's
    longer = disk_bytes(compose(["model=moe_nano"]).config)
    assert longer.checkpoints == 3 * longer.checkpoint  # two are kept, one is coming
    narrow = disk_bytes(compose(["model=moe_nano", "optimizer.moment_dtype=bf16"]).config)
    assert narrow.checkpoint * 12 == longer.checkpoint * 8


def test_advice_saves_what_it_says() -> None:
    config = compose(["model=moe_16b"]).config

    def peak(changed: object) -> int:
        return peak_memory(changed).bytes_per_rank  # type: ignore[arg-type]

    found = changes(config, peak)
    assert [change.saves_bytes for change in found] == sorted(
        (change.saves_bytes for change in found), reverse=True
    )
    for change in found[:3]:
        changed = compose(["model=moe_16b", *change.override.split()]).config
        assert peak(config) - peak(changed) == change.saves_bytes > 0
    together = enough(config, peak, peak(config) // 2)
    assert together is not None
    assert peak(compose(["model=moe_16b", *together]).config) <= peak(config) // 2
    assert enough(config, peak, 1000) is None
