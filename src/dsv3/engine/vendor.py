"""Everything this package takes from DeepSpeed 0.19.8, imported without a word on the terminal.

Half of it is internal: the pinned version and the tests of the engine hold it still. Importing this
module fixes DeepSpeed's accelerator, so `distributed.start` comes first.
"""

import contextlib
import io
import logging
import warnings

with (
    warnings.catch_warnings(),
    contextlib.redirect_stdout(io.StringIO()),
    contextlib.redirect_stderr(io.StringIO()),
):
    warnings.simplefilter("ignore")
    import deepspeed
    from deepspeed import comm
    from deepspeed.accelerator import get_accelerator
    from deepspeed.moe.layer import MoE
    from deepspeed.runtime import bf16_optimizer, compiler
    from deepspeed.runtime.pipe.topology import PipeDataParallelTopology, PipelineParallelGrid
    from deepspeed.utils import groups

    # ZeRO asks of every optimizer whether it is Muon. That module compiles its kernels when it is
    # imported, and with them comes all of the compiler: a second of every start of a rank.
    compile_kernel, compiler.compile = compiler.compile, lambda: lambda kernel: kernel
    import deepspeed.runtime.zero.muon.muon_optimizer

    compiler.compile = compile_kernel

logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
# BF16_Optimizer collects garbage and prints the memory in use ten times while it is built: seconds.
bf16_optimizer.see_memory_usage = lambda *_arguments, **_keywords: None

__all__ = [
    "MoE",
    "PipeDataParallelTopology",
    "PipelineParallelGrid",
    "comm",
    "deepspeed",
    "get_accelerator",
    "groups",
]
