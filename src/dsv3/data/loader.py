"""The edge to torch: samples as batches of input and label ids; the only torch in this package."""

import numpy as np
import torch

from dsv3.data.samples import TrainingSamples


def read_batch(
    samples: TrainingSamples, first_sample: int, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Input ids [B, S] and labels [B, S] of samples first_sample ... first_sample + count - 1.

    labels[b, s] is the token after input_ids[b, s]. int64, on the CPU.
    """
    ids_BS = torch.from_numpy(np.stack([samples[first_sample + i] for i in range(count)]))
    return ids_BS[:, :-1].contiguous(), ids_BS[:, 1:].contiguous()
