"""What emulated FP8 holds inside of an operator, beside what this returns (ops/fp8_*.py).

Operands are rounded on FP32 copies of them, and stay so until their product is there. With
power-of-two scales; FP32 scales and short sums take more in a product, which a trace has.
"""

from dsv3.plan.fp8_copies import FP8_TILE
from dsv3.plan.memory_ops import FP32
from dsv3.plan.memory_pass import Pass

ROUNDED = FP32
ROUNDING = 2 * FP32
"""An FP32 copy and another tensor of its size: magnitudes, the scaled tiles, their powers."""


def inside_linear(p: Pass, wide_in: int, wide_out: int) -> tuple[int, int]:
    """Bytes inside of a linear layer, forward and backward."""
    if not p.emulated:
        return 0, 0
    x, y, weight = p.tokens * wide_in, p.tokens * wide_out, wide_in * wide_out
    narrow = p.activation_bytes
    forward = max(
        ROUNDING * x,
        ROUNDED * x + ROUNDING * weight,
        ROUNDED * (x + weight) + (FP32 + narrow) * y,
    )
    before = ROUNDED * weight + narrow * x  # as the gradient of the weight is made
    backward = max(
        ROUNDING * weight,
        ROUNDED * weight + ROUNDING * y,
        ROUNDED * (weight + y) + (FP32 + narrow) * x,
        before + ROUNDING * y,
        before + ROUNDED * y + ROUNDING * x,
        before + ROUNDED * (y + x) + FP32 * weight,
    )
    return _beside(forward, narrow * y), _beside(backward, narrow * x + FP32 * weight)


def inside_experts(p: Pass) -> tuple[int, int]:
    """Bytes inside of the experts' networks, forward and backward, all equally loaded."""
    if not p.emulated:
        return 0, 0
    experts = _Experts(p)
    return experts.forward(), experts.backward()


class _Experts:
    """Elements of the tensors, the rows set apart for tiles as well."""

    def __init__(self, p: Pass) -> None:
        m = p.model
        hidden, inner = m.hidden_size, m.moe_intermediate_size
        apart = p.rows + p.local_experts * FP8_TILE // 2  # on average half of a last tile is empty
        self.rows, self.narrow = p.rows * hidden, p.rows * inner
        self.apart, self.narrow_apart = apart * hidden, apart * inner
        self.down = p.local_experts * hidden * inner
        self.gate_up = 2 * self.down
        self.size = p.activation_bytes

    def forward(self) -> int:
        made, out = 2 * self.narrow * self.size, self.rows * self.size
        activated = self.narrow * self.size
        most = max(
            self._product(self.gate_up, self.apart, made),
            made + activated + self._product(self.down, self.narrow_apart, out),
        )
        return _beside(most, made + out)

    def backward(self) -> int:
        size, of_down = self.size, FP32 * self.down
        silus = 2 * self.narrow * size
        after = silus + 4 * self.narrow * size + of_down  # the gradients of both halves, twice
        back = self.rows * size
        most = max(
            silus + self.narrow * size + self._wgrad(self.apart, self.narrow_apart, self.down),
            silus + of_down + self._product(self.down, self.apart, self.narrow * size),
            after + self._product(self.gate_up, 2 * self.narrow_apart, back),
            after + back + self._wgrad(2 * self.narrow_apart, self.apart, self.gate_up),
        )
        return _beside(most, back + of_down + FP32 * self.gate_up)

    def _product(self, weight: int, x: int, result: int) -> int:
        """The weights are rounded first, then the rows, set apart before."""
        most = max(ROUNDING * weight, ROUNDED * weight + (self.size + ROUNDING) * x)
        return max(most, ROUNDED * (weight + x) + result)

    def _wgrad(self, dy: int, x: int, weight: int) -> int:
        """Each expert's gradient, and then all of them in one tensor."""
        apart = self.size * (dy + x)
        most = max(ROUNDING * dy, ROUNDED * dy + ROUNDING * x)
        return apart + max(most, ROUNDED * (dy + x) + 2 * FP32 * weight)


def _beside(most: int, returned: int) -> int:
    return max(0, most - returned)
