"""What Transformer Engine's own Python allocates and keeps, beside what its stand-ins do.

For a process of its own, as `te_on_cpu.py`, which it builds on: here quantisers allocate what their
`inner_tensor_specs` say and products their results, and nothing is computed. Prints for each recipe
and layer the bytes of either side: most and left, forward and backward.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dsv3.config.precision import PrecisionConfig
from dsv3.model.backends import te
from dsv3.train.trace_backends import EvenExperts, StandInBackend
from dsv3.train.trace_memory import Ledger
from unit.model import te_on_cpu

REST = {"backend": "te", "dispatch": "weights", "accumulate_bits": None, "dgrad_tiling": None}
SCALES = {"bf16": None, "fp8_block": "power_of_two", "fp8_current": "fp32", "mxfp8": "power_of_two"}
ROWS, IN, OUT, EXPERTS = 160, 96, 192, 3
"""No multiples of a tile: scales are filled up."""


def precision(recipe: str) -> PrecisionConfig:
    values = REST | {"recipe": recipe, "scales": SCALES[recipe], "promote_every": None}
    return PrecisionConfig.model_validate(values)


def quantise(x: Tensor, quantizer: Any, *_: Any) -> Any:
    inner = quantizer.alloc_tensors(x.shape, device="cpu")
    context = quantizer.create_metadata(x.shape, dtype=x.dtype)
    return context["cls"].__tensor_unflatten__(inner, context, x.shape, x.stride())


def gemm(*arguments: Any, **_: Any) -> tuple[Any, None, None, None]:
    """A, transa, B, transb, out: columns of the result are A's."""
    a, transa, b, transb, out = arguments[:5]
    if out is None:
        rows, columns = _size(b)[transb], _size(a)[not transa]
        out = torch.empty(rows, columns, dtype=torch.bfloat16)
    return out, None, None, None


def _size(x: Any) -> tuple[int, int]:
    rows, columns = x.size()
    return rows, columns


def package() -> Any:
    """The package on a CPU, its kernels gone."""
    engine = te_on_cpu.load()
    tex = sys.modules["transformer_engine_torch"]
    quantization = sys.modules["transformer_engine.pytorch.quantization"]
    quantization._MXFP8_SUPPORT = (True, "")  # type: ignore[attr-defined]
    torch.cuda.get_device_capability = lambda *_: (9, 0)  # type: ignore[assignment]
    tex.quantize = quantise  # type: ignore[attr-defined]
    tex.split_quantize = lambda x, splits, quantizers, **_: [  # type: ignore[attr-defined]
        quantise(part, quantizer)
        for part, quantizer in zip(x.split(splits), quantizers, strict=True)
    ]
    tex.generic_gemm = gemm  # type: ignore[attr-defined]
    tex.te_general_grouped_gemm = lambda *arguments: arguments[7]  # type: ignore[attr-defined]
    norm: Any = sys.modules["transformer_engine.pytorch.ops.basic.rmsnorm"]
    norm.rmsnorm_fwd = lambda x, *_: (torch.empty_like(x), None, torch.empty(len(x)))
    norm.rmsnorm_bwd = lambda dy, x, inverse, w, *_: (torch.empty_like(x), torch.empty_like(w))
    return engine


Calls = dict[str, Callable[[], Tensor]]


def layers(backend: Any) -> tuple[Calls, list[Tensor]]:
    """Calls of the layers of a backend, and the leaves they work on."""
    linear = backend.linear(IN, OUT)
    experts = backend.experts(EXPERTS, IN, OUT)
    norm = backend.rms_norm(IN, 1e-6)
    model = nn.ModuleDict({"linear": linear, "experts": experts, "norm": norm}).bfloat16()
    backend.prepare(model)
    multiple = backend.row_multiple(experts)
    counts = torch.tensor([64, 32, 32])
    rows = 128 + EXPERTS * (multiple - 1)
    x = torch.zeros(ROWS, IN, dtype=torch.bfloat16, requires_grad=True)
    x_R = torch.zeros(rows, IN, dtype=torch.bfloat16, requires_grad=True)
    weights_R = torch.ones(rows, requires_grad=True)
    latents = torch.zeros(ROWS, IN + 32, dtype=torch.bfloat16, requires_grad=True)
    calls: Calls = {
        "linear": lambda: linear(x),
        "experts": lambda: experts(x_R, weights_R, counts),
        "norm": lambda: norm(x),
        "norm of a part": lambda: norm(latents[:, :IN]),
    }
    return calls, [x, x_R, weights_R, latents, *model.parameters()]


def counted(call: Callable[[], Tensor], leaves: list[Tensor]) -> list[int]:
    call().sum().backward()  # what is made once
    for leaf in leaves:
        leaf.grad = None
    ledger = Ledger(lambda func, args: 0, leaves)
    with ledger:
        out = call()
        forward = ledger.cut()
        gradient = torch.empty_like(out)
        ledger.cut()
        torch.autograd.backward(out, gradient)
        backward = ledger.cut()
    return [forward.peak, forward.end, backward.peak, backward.end]


def main() -> None:
    te_engine = package()
    te.load_engine = lambda _precision: te_engine  # type: ignore[assignment]
    EvenExperts.counts = te.EngineExperts.counts  # type: ignore[method-assign]
    found = {}
    for recipe in SCALES:
        theirs, leaves = layers(te.TransformerEngineBackend(precision(recipe)))
        ours, our_leaves = layers(StandInBackend(precision(recipe)))
        for name, call in theirs.items():
            found[f"{recipe} {name}"] = [counted(call, leaves), counted(ours[name], our_leaves)]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
