"""A kind of GPU and its links, as the files of hardware/ describe them, for `dsv3 plan`."""

from pathlib import Path

import yaml
from pydantic import ValidationError

from dsv3.config.locations import shipped
from dsv3.config.options import HARDWARE
from dsv3.config.section import Section, field
from dsv3.config.suggest import did_you_mean, listed
from dsv3.config.yaml_text import read_vetted
from dsv3.errors import ConfigError, Problem

RATES = (
    "bf16_flops",
    "fp8_flops",
    "memory_bytes_per_s",
    "node_bytes_per_s",
    "network_bytes_per_s",
)
"""What may be given twice: as published, and as measured."""


class Hardware(Section):
    """Published peaks of one GPU and its links, and what was measured of them."""

    gpu: str = field("Name in tables.", min_length=1)
    memory_bytes: int = field("Bytes of memory, as the driver reports them.", gt=0)
    bf16_flops: float = field("Dense BF16 operations per second.", gt=0)
    fp8_flops: float = field("Dense FP8 operations per second.", gt=0)
    memory_bytes_per_s: float = field("Bytes per second to and from memory.", gt=0)
    gpus_per_node: int = field("GPUs that reach each other by the links within a node.", gt=0)
    node_bytes_per_s: float = field("Bytes per second and direction of a GPU within a node.", gt=0)
    network_bytes_per_s: float = field(
        "Bytes per second and direction of a GPU between nodes.", gt=0
    )
    efficiency: float = field("Share of the peak that matrix products reach.", gt=0, le=1)
    usd_per_gpu_hour: float | None = field("Price of a GPU-hour; null: unknown.", ge=0)
    measured: dict[str, float] = field("Rates that were measured, in place of the published ones.")
    sources: dict[str, str] = field("Where the figures are from.")

    def rate(self, name: str) -> float:
        """A rate of RATES: measured, or else published."""
        found: float = self.measured.get(name, getattr(self, name))
        return found

    def flops(self, *, fp8: bool) -> float:
        """Operations per second that products are reckoned to reach.

        A measured rate is taken as it is, a published one times `efficiency`.
        """
        name = "fp8_flops" if fp8 else "bf16_flops"
        if name in self.measured:
            return self.measured[name]
        found: float = getattr(self, name) * self.efficiency
        return found


def load_hardware(name: str, *, config_dir: Path | None = None) -> Hardware:
    """The profile `name`: a file's path, or a name in `config_dir`/hardware or among the shipped.

    Raises ConfigError with every problem found.
    """
    path = _path(name, config_dir)
    try:
        found = Hardware.model_validate(yaml.safe_load(read_vetted(path)))
    except ValidationError as error:
        problems = [
            Problem(f"{path}: {'.'.join(map(str, e['loc']))}", e["msg"])
            for e in error.errors(include_url=False)
        ]
        raise ConfigError(problems) from None
    unknown = [rate for rate in found.measured if rate not in RATES]
    if unknown:
        rule = f"is no rate; there are {listed(RATES)}"
        raise ConfigError(
            [
                Problem(f"{path}: measured.{rate}", rule, did_you_mean(rate, RATES))
                for rate in unknown
            ]
        )
    return found


def hardware_names(config_dir: Path | None = None) -> dict[str, Path]:
    """Profiles by name; the user's own shadow the shipped ones."""
    folders = [shipped(HARDWARE), *([config_dir / HARDWARE] if config_dir is not None else [])]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def _path(name: str, config_dir: Path | None) -> Path:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(name).expanduser()
    names = hardware_names(config_dir)
    if name not in names:
        rule = f"is no hardware profile; there are {listed(sorted(names))}"
        own = "or the path of a file of your own, written like those of hardware/"
        near = did_you_mean(name, names)
        raise ConfigError(Problem(f"--hardware {name}", rule, f"{near} {own}".strip()))
    return names[name]
