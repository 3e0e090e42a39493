"""Numbers as people read them: 671.03B parameters, 250.46 GFLOP, 23.4 GiB, 578B tokens."""

_DECIMAL = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k"))
_FLOPS = tuple(
    (1000**power, prefix) for power, prefix in zip(range(8, 0, -1), "YZEPTGMk", strict=True)
)
_BINARY = tuple(
    (1024**power, f"{prefix}iB") for power, prefix in zip(range(6, 0, -1), "EPTGMK", strict=True)
)


def count(number: float, digits: int = 4) -> str:
    """`number` to `digits` significant digits with the unit k, M, B or T."""
    for factor, unit in _DECIMAL:
        if number >= factor:
            return f"{number / factor:.{digits}g}{unit}"
    return f"{number:.{digits}g}"


def flops(number: float) -> str:
    """`number` floating-point operations, to two decimals: 250.46 GFLOP."""
    for operations, prefix in _FLOPS:
        if number >= operations:
            return f"{_figures(number / operations, 2)} {prefix}FLOP"
    return f"{number:g} FLOP"


def size(number: int) -> str:
    """`number` bytes in KiB, MiB, GiB, TiB, PiB or EiB, to one decimal."""
    for unit_bytes, unit in _BINARY:
        if number >= unit_bytes:
            return f"{_figures(number / unit_bytes, 1)} {unit}"
    return f"{number} B"


def duration(seconds: float) -> str:
    """`12.3 ms`, `18.0 s`, `5.2 h`, `54.1 days`."""
    for least, unit_s, unit in ((2 * 86400, 86400, "days"), (7200, 3600, "h"), (1, 1, "s")):
        if seconds >= least:
            return f"{_figures(seconds / unit_s, 1)} {unit}"
    return f"{1e3 * seconds:.1f} ms"


def plural(number: int, noun: str) -> str:
    """`1 GPU`, `8 GPUs`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _figures(number: float, decimals: int) -> str:
    """Beyond what the largest unit makes readable, powers of ten."""
    return f"{number:,.{decimals}f}" if number < 10**6 else f"{number:.3e}"
