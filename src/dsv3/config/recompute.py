"""`recompute`: what of a layer is made again in the backward pass instead of being kept."""

from typing import Literal

RecomputePolicy = Literal["none", "norm_and_up_projection", "moe", "full"]
