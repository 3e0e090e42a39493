"""Speed, measured on the machine it runs on; figures are printed, never asserted."""

import os

# As the launcher sets it for a rank, and for all sides alike; read when OpenMP is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
# The profiler says when it starts and stops.
os.environ.setdefault("KINETO_LOG_LEVEL", "5")
