"""Declarative ablation experiments on DeepSeek-V3's pre-training ideas."""

__version__ = "0.1.0"

NUMERICS_VERSION = 2
"""Raised when a change of the code changes what an unchanged configuration computes."""
