"""Question templates in the manner of DM Mathematics (Saxton et al., arXiv 1904.01557).

Each generator draws one question and its exact answer from the random stream it is given. The
phrasings and generators are this project's own.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from random import Random

from dsv3.data.polynomials import QUESTIONS as POLYNOMIAL_QUESTIONS

Question = tuple[str, str]
Generator = Callable[[Random], Question]

ORDINALS = ("", "", "second ", "third ", "fourth ", "fifth ")
UNITS = {
    "length": {"kilometers": 10**6, "meters": 10**3, "centimeters": 10, "millimeters": 1},
    "mass": {"tonnes": 10**6, "kilograms": 10**3, "grams": 1},
    "time": {"days": 86_400, "hours": 3_600, "minutes": 60, "seconds": 1},
    "volume": {"liters": 10**3, "milliliters": 1},
}


def signed(rng: Random, digits: int) -> int:
    """Draw an integer with at most so many digits and either sign."""
    return rng.choice((-1, 1)) * rng.randrange(10 ** rng.randint(1, digits))


def as_text(value: Fraction) -> str:
    """Write a fraction as 3/4, and a whole number without its denominator."""
    return (
        str(value.numerator) if value.denominator == 1 else f"{value.numerator}/{value.denominator}"
    )


def add_or_subtract(rng: Random) -> Question:
    """Sum or difference of two integers."""
    a, b = signed(rng, 7), signed(rng, 7)
    if rng.random() < 0.5:
        text = rng.choice(
            ("What is {} + {}?", "Work out {} + {}.", "Add {} and {}.", "Sum {} and {}.")
        )
        return text.format(a, b), str(a + b)
    text = rng.choice(
        ("What is {0} - {1}?", "Subtract {1} from {0}.", "What is {1} less than {0}?")
    )
    return text.format(a, b), str(a - b)


def add_decimals(rng: Random) -> Question:
    """Sum of two decimals, computed in integers."""
    places = rng.randint(1, 4)
    a, b = signed(rng, 6), signed(rng, 6)
    text = rng.choice(("What is {} + {}?", "Put together {} and {}.", "Calculate {} + {}."))
    return text.format(decimal(a, places), decimal(b, places)), decimal(a + b, places)


def decimal(scaled: int, places: int) -> str:
    """Write scaled / 10**places without trailing zeros."""
    sign, digits = "-" if scaled < 0 else "", str(abs(scaled)).rjust(places + 1, "0")
    fraction = digits[-places:].rstrip("0")
    return sign + digits[:-places] + ("." + fraction if fraction else "")


def multiply(rng: Random) -> Question:
    """Product of two integers."""
    a, b = signed(rng, 5), signed(rng, 3)
    text = rng.choice(
        ("What is {} * {}?", "Multiply {} and {}.", "What is {} times {}?", "{} * {}")
    )
    return text.format(a, b), str(a * b)


def divide(rng: Random) -> Question:
    """Exact quotient of two integers, as a reduced fraction."""
    b = rng.randint(1, 99) * rng.choice((-1, 1))
    a = signed(rng, 4) * (b if rng.random() < 0.6 else 1)
    text = rng.choice(
        ("Divide {} by {}.", "What is {} divided by {}?", "Calculate {} / {} exactly.")
    )
    return text.format(a, b), as_text(Fraction(a, b))


def nested_expression(rng: Random) -> Question:
    """Value of a bracketed expression with a few operators."""
    text, value = _expression(rng, rng.randint(2, 4))
    ask = rng.choice(("What is the value of {}?", "Evaluate {}.", "What is {}?", "Calculate {}."))
    return ask.format(text), as_text(value)


def _expression(rng: Random, depth: int) -> tuple[str, Fraction]:
    if depth == 0:
        number = rng.randint(-20, 20)
        return (f"({number})" if number < 0 else str(number)), Fraction(number)
    left, x = _expression(rng, rng.randrange(depth))
    right, y = _expression(rng, rng.randrange(depth))
    operator = rng.choice("+-*/" if y != 0 else "+-*")
    value = {"+": x + y, "-": x - y, "*": x * y, "/": x / (y or 1)}[operator]
    return f"({left} {operator} {right})", value


def linear_equation(rng: Random) -> Question:
    """One unknown on one or both sides."""
    x, a, b = rng.randint(-50, 50), rng.randint(2, 30), rng.randint(-200, 200)
    other = rng.choice((0, rng.randint(-30, 1)))
    name = rng.choice("abcdfghjkmnpqrstuvwxyz")
    right = a * x + b - other * x
    side = f"{other}*{name} {right:+d}".replace(" +", " + ").replace(" -", " - ")
    left = f"{a}*{name} {b:+d}".replace(" +", " + ").replace(" -", " - ")
    ask = rng.choice(("Solve {} = {} for {}.", "Find the solution of {} = {} in {}."))
    return ask.format(left, side if other else right, name), str(x)


def linear_system(rng: Random) -> Question:
    """Two unknowns, two equations with a non-zero determinant."""
    x, y = rng.randint(-12, 12), rng.randint(-12, 12)
    a, b, c = rng.randint(1, 9), rng.randint(1, 9), rng.randint(1, 9)
    d = rng.choice([d for d in range(-9, 10) if d != 0 and a * d != b * c])
    first, second = rng.sample("abcdfghjkmnpqrstuvwxyz", 2)
    plus = f"{c}*{first} {'+' if d > 0 else '-'} {abs(d)}*{second} = {c * x + d * y}"
    text = f"Solve {a}*{first} + {b}*{second} = {a * x + b * y}, {plus} for {first}."
    return text, str(x)


def next_in_sequence(rng: Random) -> Question:
    """Continue a sequence with constant second difference."""
    start, step, bend = signed(rng, 3), rng.randint(-40, 40), rng.choice((0, 0, rng.randint(-5, 5)))
    terms = [start + step * n + bend * n * (n - 1) // 2 for n in range(rng.randint(4, 6) + 1)]
    shown = ", ".join(map(str, terms[:-1]))
    text = rng.choice(("What comes next: {}?", "What is the next term in {}?", "Continue {}."))
    return text.format(shown), str(terms[-1])


def common_divisor(rng: Random) -> Question:
    """Greatest common divisor of two numbers that share a factor."""
    shared = rng.randint(1, 60)
    a, b = shared * rng.randint(1, 90), shared * rng.randint(1, 90)
    text = rng.choice(
        (
            "What is the greatest common divisor of {} and {}?",
            "Calculate the highest common factor of {} and {}.",
        )
    )
    return text.format(a, b), str(math.gcd(a, b))


def common_multiple(rng: Random) -> Question:
    """Least common multiple, also as the common denominator of two fractions."""
    a, b = rng.randint(2, 300), rng.randint(2, 60)
    if rng.random() < 0.3:
        return f"What is the common denominator of 1/{a} and 1/{b}?", str(math.lcm(a, b))
    text = rng.choice(
        (
            "Find the least common multiple of {} and {}.",
            "What is the smallest multiple of both {} and {}?",
        )
    )
    return text.format(a, b), str(math.lcm(a, b))


def prime_factors(number: int) -> list[int]:
    """Prime factors in rising order, with multiplicity."""
    factors, candidate = [], 2
    while candidate * candidate <= number:
        while number % candidate == 0:
            factors.append(candidate)
            number //= candidate
        candidate += 1
    return [*factors, number] if number > 1 else factors


def primality(rng: Random) -> Question:
    """Whether a number is prime; half of the even numbers are skipped."""
    number = rng.randint(2, 30_000) | rng.choice((0, 1))
    prime = prime_factors(number) == [number]
    if rng.random() < 0.5:
        return f"Is {number} prime?", str(prime)
    return f"Is {number} a composite number?", str(not prime)


def factorisation(rng: Random) -> Question:
    """The distinct prime factors of a number."""
    number = rng.randint(4, 9_999)
    text = rng.choice(("List the prime factors of {}.", "What are the prime factors of {}?"))
    return text.format(number), ", ".join(map(str, sorted(set(prime_factors(number)))))


def remainder(rng: Random) -> Question:
    """Remainder of a division, or divisibility."""
    b = rng.randint(2, 200)
    a = b * rng.randint(1, 300) + rng.choice((0, rng.randrange(b)))
    if rng.random() < 0.4:
        return f"Is {a} a multiple of {b}?", str(a % b == 0)
    text = rng.choice(("What is the remainder when {} is divided by {}?", "Calculate {} mod {}."))
    return text.format(a, b), str(a % b)


def place_value(rng: Random) -> Question:
    """One digit of a number."""
    number = rng.randint(1_000, 99_999_999)
    names = ("units", "tens", "hundreds", "thousands")
    place = rng.randrange(4)
    return f"What is the {names[place]} digit of {number}?", str(number // 10**place % 10)


def base_conversion(rng: Random) -> Question:
    """Write a number in another base."""
    number, base = rng.randint(1, 20_000), rng.randint(2, 16)
    digits, rest = "", number
    while rest:
        digits = "0123456789abcdef"[rest % base] + digits
        rest //= base
    if rng.random() < 0.5:
        return f"What is {digits} (base {base}) in base 10?", str(number)
    return f"{number} (base 10) to base {base}", digits


def rounding(rng: Random) -> Question:
    """Round to a power of ten; halves go away from zero."""
    number, power = signed(rng, 8), rng.randint(1, 4)
    unit = 10**power
    rounded = (abs(number) + unit // 2) // unit * unit * (-1 if number < 0 else 1)
    names = {1: "ten", 2: "one hundred", 3: "one thousand", 4: "ten thousand"}
    return f"Round {number} to the nearest {names[power]}.", str(rounded)


def compare(rng: Random) -> Question:
    """Which of two fractions is larger, or whether they are equal."""
    a = Fraction(rng.randint(-60, 60), rng.randint(1, 25))
    b = a if rng.random() < 0.1 else Fraction(rng.randint(-60, 60), rng.randint(1, 25))
    x, y = as_text(a), as_text(b)
    kind = rng.randrange(3)
    if kind == 0:
        return f"Is {x} greater than {y}?", str(a > b)
    if kind == 1:
        return f"Are {x} and {y} equal?", str(a == b)
    return f"Which is bigger: {x} or {y}?", x if a > b else y if b > a else "equal"


def order_statistics(rng: Random) -> Question:
    """Sort a list, or find its k-th biggest or smallest member."""
    values = rng.sample(range(-99, 1_000), rng.randint(4, 7))
    shown = ", ".join(map(str, values))
    kind = rng.randrange(3)
    if kind == 0:
        falling = rng.random() < 0.5
        text = f"Sort {shown} in {'de' if falling else 'a'}scending order."
        return text, ", ".join(map(str, sorted(values, reverse=falling)))
    k = rng.randint(1, 4)
    word = ("biggest", "smallest")[kind - 1]
    return f"What is the {ORDINALS[k]}{word} value in {shown}?", str(
        sorted(values, reverse=kind == 1)[k - 1]
    )


def closest(rng: Random) -> Question:
    """Which member of a list lies closest to a number."""
    target = rng.randint(-100, 100)
    values = rng.sample([v for v in range(-300, 300) if v % 2 == target % 2], 4)
    distances = sorted(abs(v - target) for v in values)
    if distances[0] == distances[1]:
        values[0] = target
    nearest = min(values, key=lambda v: abs(v - target))
    return f"Which is the closest to {target}? {', '.join(map(str, values))}", str(nearest)


def drawing_letters(rng: Random) -> Question:
    """Probability of an unordered draw without replacement."""
    counts = {
        letter: rng.randint(1, 7)
        for letter in rng.sample("abcdefghijklmnopqrstuvwxyz", rng.randint(2, 4))
    }
    bag = ", ".join(f"{letter}: {count}" for letter, count in sorted(counts.items()))
    letter, count = rng.choice(sorted(counts.items()))
    total = sum(counts.values())
    drawn = rng.randint(1, min(4, total))
    taken = rng.randint(0, min(drawn, count))
    ways = math.comb(count, taken) * math.comb(total - count, drawn - taken)
    text = f"{drawn} letters are drawn without replacement from {{{bag}}}."
    text += f" What is the probability of exactly {taken} {letter}?"
    return text, as_text(Fraction(ways, math.comb(total, drawn)))


def dice(rng: Random) -> Question:
    """Probability that two dice sum to a number."""
    sides = rng.choice((4, 6, 8, 10, 12))
    total = rng.randint(2, 2 * sides)
    ways = sum(1 for first in range(1, sides + 1) if 1 <= total - first <= sides)
    text = (
        f"Two fair dice with {sides} sides are rolled. What is the probability of a sum of {total}?"
    )
    return text, as_text(Fraction(ways, sides * sides))


def unit_conversion(rng: Random) -> Question:
    """Convert between units of one quantity."""
    units = UNITS[rng.choice(sorted(UNITS))]
    source, target = rng.sample(sorted(units), 2)
    amount = Fraction(rng.randint(1, 999), rng.choice((1, 1, 2, 4, 5)))
    text = rng.choice(
        ("How many {2} are there in {0} {1}?", "Convert {0} {1} to {2}.", "What is {0} {1} in {2}?")
    )
    return text.format(as_text(amount), source, target), as_text(
        amount * units[source] / units[target]
    )


def clock(rng: Random) -> Question:
    """Minutes between two times of one day, or the time after so many minutes."""
    start = rng.randrange(23 * 60)
    minutes = rng.randint(1, 24 * 60 - 1 - start)
    first, second = (f"{t // 60:02d}:{t % 60:02d}" for t in (start, start + minutes))
    if rng.random() < 0.5:
        return f"How many minutes are there between {first} and {second}?", str(minutes)
    return f"What is {minutes} minutes after {first}?", second


QUESTIONS: tuple[Generator, ...] = (
    add_or_subtract,
    add_decimals,
    multiply,
    divide,
    nested_expression,
    linear_equation,
    linear_system,
    next_in_sequence,
    common_divisor,
    common_multiple,
    primality,
    factorisation,
    remainder,
    place_value,
    base_conversion,
    rounding,
    compare,
    order_statistics,
    closest,
    drawing_letters,
    dice,
    unit_conversion,
    clock,
    *POLYNOMIAL_QUESTIONS,
)
