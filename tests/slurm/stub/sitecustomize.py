"""On the PYTHONPATH of a job: its ranks are stubs, everything else of it is real."""

import os

if os.environ.get("SLURM_JOB_ID") and os.environ.get("STUB_RANKS"):
    from dsv3.runs import rank

    rank.RANK_MODULE = "slurm_stub_rank"
