"""A disk of a few megabytes of its own, to be full when a test says so."""

import errno
import subprocess
from pathlib import Path

BLOCK = 4096


class SmallDisk:
    """A tmpfs on `path`; ranks of jobs see it too, for all nodes are this machine."""

    def __init__(self, path: Path, megabytes: int) -> None:
        self.path = path
        self._ballast = path / ".ballast"
        path.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "dsv3-small-disk", str(path)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(
                f"a test needs a small file system, but mount says: {done.stderr.strip()}; "
                "the tests of Slurm need the right to mount (in a container: CAP_SYS_ADMIN)"
            )

    def fill(self) -> None:
        """Leave no room at all: the next byte is refused with ENOSPC."""
        with self._ballast.open("ab", buffering=0) as file:
            for size in (1 << 20, BLOCK):
                try:
                    while True:
                        file.write(b"\0" * size)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self) -> None:
        """Give the room back."""
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount; at once for new users, at the end of the last file for those that have one."""
        subprocess.run(["umount", "-l", str(self.path)], check=True)
