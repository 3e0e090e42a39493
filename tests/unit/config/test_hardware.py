"""Hardware profiles: shipped, of one's own, and wrong."""

from pathlib import Path

import pytest
import yaml

from dsv3.config.compose import compose
from dsv3.config.hardware import RATES, hardware_names, load_hardware
from dsv3.errors import ConfigError

OWN = """
gpu: Mine
memory_bytes: 1000
bf16_flops: 10.0
fp8_flops: 20.0
memory_bytes_per_s: 1.0
gpus_per_node: 2
node_bytes_per_s: 1.0
network_bytes_per_s: 1.0
efficiency: 0.5
usd_per_gpu_hour: null
measured: {bf16_flops: 7.0}
sources: {all: invented}
"""


def test_the_shipped_profiles_load_and_name_their_sources() -> None:
    assert set(hardware_names()) == {"h800", "h100", "h200", "b200", "gb200"}
    for name, path in hardware_names().items():
        found = load_hardware(name)
        assert {"compute", "memory", "links", "efficiency"} <= set(found.sources)
        assert all(found.rate(rate) > 0 for rate in RATES)
        assert found.fp8_flops == pytest.approx(2 * found.bf16_flops, rel=1e-3)
        assert path.read_text().startswith("# ")
    assert load_hardware("h800").rate("node_bytes_per_s") == 160e9  # measured, of 200 published


@pytest.mark.parametrize(
    ("name", "gigabytes", "bf16", "fp8", "terabytes_per_s"),
    [
        ("h800", 80, 989.4, 1978.9, 3.35),
        ("h100", 80, 989.4, 1978.9, 3.35),
        ("h200", 141, 3958 / 4, 3958 / 2, 4.8),
        ("b200", 180, 72_000 / 8 / 4, 72_000 / 8 / 2, 7.7),
        ("gb200", 13_400 / 72, 360_000 / 72 / 2, 720_000 / 72 / 2, 576 / 72),
    ],
)
def test_figures_are_those_of_the_data_sheets(
    name: str, gigabytes: float, bf16: float, fp8: float, terabytes_per_s: float
) -> None:
    """Sparse figures halved, those of a node or a rack shared out.

    What a data sheet calls GB of memory is nearly a GiB each: memory is what the driver reports.
    """
    found = load_hardware(name)
    assert found.bf16_flops == pytest.approx(1e12 * bf16, rel=1e-3)
    assert found.fp8_flops == pytest.approx(1e12 * fp8, rel=1e-3)
    assert found.memory_bytes_per_s == pytest.approx(1e12 * terabytes_per_s)
    assert found.memory_bytes == pytest.approx(2**30 * gigabytes, rel=7e-3)
    assert found.memory_bytes % 2**20 == 0


def test_a_measured_rate_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(OWN)
    found = load_hardware(str(tmp_path / "mine.yaml"))
    assert found.flops(fp8=False) == 7.0
    assert found.flops(fp8=True) == 0.5 * 20.0


def test_a_profile_of_ones_own_lies_in_the_config_dir(tmp_path: Path) -> None:
    (tmp_path / "hardware").mkdir()
    (tmp_path / "hardware" / "h100.yaml").write_text(OWN)
    assert load_hardware("h100", config_dir=tmp_path).gpu == "Mine"
    # The directory is one for the rest of the command too.
    assert compose(["model=moe_nano"], config_dir=tmp_path).config.model.name == "moe_nano"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpus_per_node": 0}, "gpus_per_node"),
        ({"surprise": 1}, "surprise"),
        ({"measured": {"bf16_flop": 1.0}}, "did you mean bf16_flops"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, change: dict, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(OWN) | change))
    with pytest.raises(ConfigError, match=message) as caught:
        load_hardware(str(file))
    assert str(file) in str(caught.value)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="there are b200, gb200, h100, h200, h800"):
        load_hardware("h300")
