"""Optional fusion of a model's element-wise work with torch.compile."""

import torch

from dsv3.model.transformer import Transformer


def compile_model(model: Transformer) -> None:
    """Compile the blocks and the loss in place; the first steps take minutes, later runs a cache.

    Blocks of the same kind share their graph. Shapes are fixed: another batch or sequence length
    compiles again. Matrix products stay calls of the vendor's library.
    """
    of_parts = (block for part in range(len(model.parts)) for block in model.blocks(part))
    for block in (*of_parts, *model.mtp_modules()):
        block.compute = torch.compile(block.compute, dynamic=False)  # type: ignore[method-assign]
    if model.holds_head:
        model.loss = torch.compile(model.loss, dynamic=False)  # type: ignore[method-assign]
