"""Speed, measured on the machine it runs on; figures are printed, never asserted."""

import os

# As the launcher sets it for a rank, and for all sides alike; read when OpenMP is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
