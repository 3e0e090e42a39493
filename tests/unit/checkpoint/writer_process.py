"""Saves checkpoint after checkpoint until it is killed; imports no torch."""

import sys
from pathlib import Path

from dsv3.checkpoint.collective import Solo
from dsv3.checkpoint.durable import clean
from dsv3.checkpoint.manifest import Identity, TensorRecord
from dsv3.checkpoint.writer import Entry, Header, write_checkpoint

ELEMENTS = 40_000
RECORD = TensorRecord(shape=(ELEMENTS,), dtype="F32", offset=0, length=ELEMENTS)


def main(directory: Path, identity: Identity) -> None:
    clean(directory)
    number = 0
    while True:
        number += 1
        # Steps repeat, so that kills also fall between the two renames of a replacement.
        step = number % 3
        content = [number.to_bytes(4, "little") * (ELEMENTS // 8)] * 2
        write_checkpoint(
            directory,
            Header(identity, step, step, number, {}),
            [Entry(f"master/{name}", RECORD, content) for name in "abc"],
            state={"number": number},
            rank_state={"number": number},
            collective=Solo(),
        )
        print(number, flush=True)


if __name__ == "__main__":
    assert "torch" not in sys.modules
    main(Path(sys.argv[1]), Identity(run_id=sys.argv[2], config_sha256="a" * 64))
