"""The launcher of one run whose ranks are stubs: `python -m stub_launch`, else as `launch.one`."""

import sys

from dsv3.launch import local, one

if __name__ == "__main__":
    local.RANK_MODULE = "stub_sweep_rank"
    sys.exit(one.main())
