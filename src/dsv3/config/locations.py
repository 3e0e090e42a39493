"""Where conf/, hardware/, recipes/ and launchers/ are: beside src/, or inside the wheel."""

from pathlib import Path

import dsv3


def shipped(name: str) -> Path:
    """Directory `name` (conf, hardware, recipes or launchers) of this installation.

    Raises FileNotFoundError if the installation is broken.
    """
    package = Path(dsv3.__file__).resolve().parent
    for candidate in (package / "_shipped" / name, package.parent.parent / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"{name}/ is neither in {package}/_shipped nor beside its checkout")
