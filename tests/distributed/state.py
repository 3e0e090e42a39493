"""The state of a training, put together from what its ranks hold."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from distributed.ranks import Report


def assembled(of_ranks: Sequence[Report], moment: str) -> dict[str, Tensor]:
    """The fragments of all ranks, put together; they cover each tensor exactly once."""
    shapes: dict[str, list[int]] = {}
    for report in of_ranks:
        for key, shape in report.values["shapes"].items():
            assert shapes.setdefault(key, shape) == shape, f"{key}: ranks differ in its shape"
    whole: dict[str, Tensor] = {}
    for report in of_ranks:
        for name, data in report.tensors.items():
            when, key, offset = name.split("|")
            if when != moment:
                continue
            flat = whole.setdefault(key, torch.full((math.prod(shapes[key]),), torch.nan))
            target = flat[int(offset) : int(offset) + data.numel()]
            assert target.isnan().all(), f"{key} is saved twice"
            target.copy_(data)
    assert not [key for key, flat in whole.items() if flat.isnan().any()]
    return {key: flat.view(shapes[key]) for key, flat in whole.items()}
