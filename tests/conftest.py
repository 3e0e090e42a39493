"""What every test shares: isolation from this machine, the checkout, and a way to start `dsv3`."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Set by launchers, schedulers, dashboards and `make test`; a test that wants one sets it itself.
FOREIGN = (
    "DSV3_",
    "HF_",
    "HYDRA_",
    "LOCAL_",
    "MAKE",
    "MASTER_",
    "MFLAGS",
    "RANK",
    "SLURM_",
    "WANDB_",
    "WORLD_SIZE",
)
OFFLINE = {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "src")}


@pytest.fixture(scope="session", autouse=True)
def _isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache, cluster variables and accounts out of the tests, children included."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(FOREIGN)]:
            patch.delenv(name)
        for name, value in OFFLINE.items():
            patch.setenv(name, value)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(socket.socket, "connect", _loopback_only(socket.socket.connect))
        yield


def _loopback_only(connect: Callable[..., None]) -> Callable[..., None]:
    """Refuse connections that leave this machine: a test that needs the network is a defect."""

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else "localhost"
        if host not in {"localhost", "::1"} and not str(host).startswith("127."):
            raise OSError(f"tests stay on this machine, but something connects to {host}")
        connect(self, address)

    return guarded


@pytest.fixture(scope="session")
def checkout() -> Path:
    """Root of the repository."""
    return ROOT


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the interpreter with arguments from an empty directory; output as text, captured."""

    def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        defaults: dict[str, object] = {"cwd": tmp_path, "capture_output": True, "text": True}
        return subprocess.run(  # type: ignore[call-overload, no-any-return]
            [sys.executable, *arguments], **{"timeout": 300, **defaults, **options}
        )

    return run


@pytest.fixture
def run_dsv3(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `dsv3` with arguments from an empty directory; output as text, captured."""

    def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        return run_python("-m", "dsv3", *arguments, **options)

    return run
