"""Questions about polynomials with integer coefficients; see questions.py."""

from collections.abc import Callable
from random import Random

Polynomial = list[int]
"""Coefficients, lowest power first."""


def as_text(polynomial: Polynomial, name: str) -> str:
    """Write a polynomial, highest power first: -3*x**2 + x - 7."""
    text = ""
    for power in reversed(range(len(polynomial))):
        coefficient = polynomial[power]
        if coefficient == 0:
            continue
        sign = (
            ("-" if coefficient < 0 else "") if not text else f" {'-' if coefficient < 0 else '+'} "
        )
        text += sign + _term(abs(coefficient), power, name)
    return text or "0"


def _term(coefficient: int, power: int, name: str) -> str:
    if power == 0:
        return str(coefficient)
    variable = name if power == 1 else f"{name}**{power}"
    return variable if coefficient == 1 else f"{coefficient}*{variable}"


def draw(rng: Random, degree: int, largest: int = 20) -> Polynomial:
    """Draw a polynomial of exactly this degree."""
    lower = [rng.choice((0, rng.randint(-largest, largest))) for _ in range(degree)]
    return [*lower, rng.choice((-1, 1)) * rng.randint(1, largest)]


def product(left: Polynomial, right: Polynomial) -> Polynomial:
    """Multiply two polynomials."""
    result = [0] * (len(left) + len(right) - 1)
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            result[i + j] += a * b
    return result


def derivative(polynomial: Polynomial) -> Polynomial:
    """Differentiate once."""
    return [power * coefficient for power, coefficient in enumerate(polynomial)][1:]


def value(polynomial: Polynomial, x: int) -> int:
    """Evaluate by Horner's rule."""
    result = 0
    for coefficient in reversed(polynomial):
        result = result * x + coefficient
    return result


def evaluate(rng: Random) -> tuple[str, str]:
    """Value of a polynomial at an integer."""
    polynomial, x, name = (
        draw(rng, rng.randint(1, 4)),
        rng.randint(-9, 9),
        rng.choice("fghpqrstuvw"),
    )
    text = f"Let {name}(x) = {as_text(polynomial, 'x')}. "
    text += rng.choice(("What is {}({})?", "Give {}({}).", "Determine {}({}).")).format(name, x)
    return text, str(value(polynomial, x))


def expand(rng: Random) -> tuple[str, str]:
    """Product of two polynomials, multiplied out."""
    name = rng.choice("abcdfhjkmnqruvwxyz")
    left, right = draw(rng, rng.randint(1, 2), 9), draw(rng, rng.randint(1, 3), 9)
    text = f"Expand ({as_text(left, name)})*({as_text(right, name)})."
    return text, as_text(product(left, right), name)


def differentiate(rng: Random) -> tuple[str, str]:
    """First or second derivative."""
    name = rng.choice("abcdfhjkmnqruvwxyz")
    polynomial, times = draw(rng, rng.randint(2, 5)), rng.randint(1, 2)
    result = polynomial
    for _ in range(times):
        result = derivative(result)
    order = ("first", "second")[times - 1]
    text = rng.choice(
        ("What is the {} derivative of {} wrt {}?", "Find the {} derivative of {} wrt {}.")
    )
    return text.format(order, as_text(polynomial, name), name), as_text(result, name)


def collect(rng: Random) -> tuple[str, str]:
    """Collect like terms of a shuffled sum."""
    name = rng.choice("abcdfhjkmnqruvwxyz")
    terms = [(rng.randint(1, 20), rng.randint(0, 3)) for _ in range(rng.randint(3, 6))]
    result = [0, 0, 0, 0]
    for coefficient, power in terms:
        result[power] += coefficient
    shown = " + ".join(_term(*term, name) for term in terms)
    return f"Collect the terms in {shown}.", as_text(result, name)


def quadratic_roots(rng: Random) -> tuple[str, str]:
    """Integer roots of a quadratic, in rising order."""
    name = rng.choice("abcdfhjkmnqruvwxyz")
    roots = sorted({rng.randint(-15, 15), rng.randint(-15, 15)})
    first, last = roots[0], roots[-1]
    scale = rng.choice((-1, 1, 1)) * rng.randint(1, 5)
    polynomial = [scale * c for c in product([-first, 1], [-last, 1])]
    text = rng.choice(("Solve {} = 0 for {}.", "What is {1} in {0} = 0?"))
    return text.format(as_text(polynomial, name), name), ", ".join(map(str, roots))


QUESTIONS: tuple[Callable[[Random], tuple[str, str]], ...] = (
    evaluate,
    expand,
    differentiate,
    collect,
    quadratic_roots,
)
