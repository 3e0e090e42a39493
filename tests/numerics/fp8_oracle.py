"""FP8 block scaling by the formulas, one number at a time, in Python's and NumPy's arithmetic.

Shares nothing with dsv3.ops: E4M3 is the list of its numbers, rounding is a search in it, a product
is one in FP64.
"""

import math
from bisect import bisect_left

import numpy as np

# Sign, four bits of exponent (bias 7), three of mantissa; exponent 15 with mantissa 7 is NaN.
POSITIVE = [
    (mantissa / 8 + (1 if exponent else 0)) * 2.0 ** (max(exponent, 1) - 7)
    for exponent in range(16)
    for mantissa in range(8)
][:-1]
LARGEST = POSITIVE[-1]
NAN = 0x7F
BF16_MAX = (2 - 2**-7) * 2.0**127
FP32_MAX = float(np.finfo(np.float32).max)

assert LARGEST == 448.0
assert len(POSITIVE) == NAN


def encode(value: float) -> int:
    """The byte of the nearest E4M3 number, ties to the even code, cut to the largest."""
    if math.isnan(value):
        return NAN
    sign = 0x80 if math.copysign(1.0, value) < 0 else 0
    magnitude = min(abs(value), LARGEST)
    above = bisect_left(POSITIVE, magnitude)
    if POSITIVE[above] == magnitude:
        return sign | above
    below = above - 1
    to_above, to_below = POSITIVE[above] - magnitude, magnitude - POSITIVE[below]
    nearer = above if to_above < to_below else below
    if to_above == to_below:
        nearer = above if above % 2 == 0 else below
    return sign | nearer


def decode(code: int) -> float:
    """The number of a byte."""
    if code & NAN == NAN:
        return math.nan
    return math.copysign(POSITIVE[code & NAN], -1.0 if code & 0x80 else 1.0)


def scale_of(values: list[float], *, largest: float, power_of_two: bool) -> np.float32:
    """The scale of a tile; `largest` is the largest number of the tensor's type."""
    amax = np.float32(max((abs(value) for value in values if not math.isnan(value)), default=0.0))
    if amax == 0 or np.isinf(amax):
        return np.float32(1.0)
    with np.errstate(over="ignore"):
        scale = np.float32(LARGEST) / amax
    if np.isinf(scale):
        scale = np.float32(largest)
    if power_of_two:
        _, exponent = math.frexp(float(scale))
        scale = np.float32(math.ldexp(1.0, exponent - 1))
    return scale


def code(value: float, scale: np.float32) -> int:
    """The byte of a value under a scale: an FP32 product, then E4M3."""
    with np.errstate(over="ignore", invalid="ignore"):
        return encode(float(np.float32(value) * scale))


def quantise(
    x: list[list[float]], tile: tuple[int, int], *, largest: float, power_of_two: bool
) -> tuple[list[list[int]], list[list[np.float32]]]:
    """Codes of a matrix, and the inverse scale of each tile; tiles at the edges are smaller."""
    rows, columns = len(x), len(x[0])
    codes = [[0] * columns for _ in range(rows)]
    inverse: list[list[np.float32]] = []
    for top in range(0, rows, tile[0]):
        inverse.append([])
        for left in range(0, columns, tile[1]):
            places = [
                (i, j)
                for i in range(top, min(top + tile[0], rows))
                for j in range(left, min(left + tile[1], columns))
            ]
            values = [x[i][j] for i, j in places]
            scale = scale_of(values, largest=largest, power_of_two=power_of_two)
            inverse[-1].append(np.float32(1.0) / scale)
            for i, j in places:
                codes[i][j] = code(x[i][j], scale)
    return codes, inverse


def values(
    quantised: tuple[list[list[int]], list[list[np.float32]]], tile: tuple[int, int]
) -> np.ndarray:
    """The numbers a quantised matrix stands for, in FP64: 4 bits times 24, exactly."""
    codes, inverse = quantised
    return np.array(
        [
            [
                decode(each) * float(inverse[i // tile[0]][j // tile[1]])
                for j, each in enumerate(row)
            ]
            for i, row in enumerate(codes)
        ]
    )
