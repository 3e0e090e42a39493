"""The files of the checkout, without what .gitignore names."""

import os
from pathlib import Path

from pathspec import GitIgnoreSpec


def kept_files(root: Path) -> list[Path]:
    """Every file below `root` that the repository keeps, or would keep once it is added."""
    lines = (root / ".gitignore").read_text(encoding="utf-8").splitlines()
    ignored = GitIgnoreSpec.from_lines([*lines, ".git"])
    found = []
    for directory, directories, files in os.walk(root):
        here = Path(directory).relative_to(root)
        directories[:] = [
            name for name in directories if not ignored.match_file(f"{(here / name).as_posix()}/")
        ]
        found += [
            root / here / name for name in files if not ignored.match_file((here / name).as_posix())
        ]
    return sorted(found)
