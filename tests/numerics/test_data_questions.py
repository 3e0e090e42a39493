"""Answers of the mathematics domain, worked out again from the text of the question alone."""

import itertools
import math
import re
from fractions import Fraction
from random import Random

import pytest
import sympy

from dsv3.data import polynomials, questions
from dsv3.data.questions import QUESTIONS

DRAWS = 60
NUMBER = r"-?\d+(?:\.\d+)?(?:/\d+)?"


def numbers(text):
    return [Fraction(found) for found in re.findall(NUMBER, text)]


def draws(generator):
    rng = Random(12)
    return [generator(rng) for _ in range(DRAWS)]


def as_fraction(answer):
    return Fraction(answer)


def sums(text, answer):
    a, b = (Fraction(x) for x in re.findall(NUMBER, re.sub(r" - (?=-?\d)", " minus ", text)))
    if "minus" in re.sub(r" - (?=-?\d)", " minus ", text):
        return a - b
    if "less than" in text or "from" in text:
        return b - a
    return a + b


def nested(text, answer):
    expression = re.search(r"\(.*\)", text)
    inside = expression.group() if expression else re.search(NUMBER, text).group()
    value = sympy.sympify(inside)
    return Fraction(int(value.p), int(value.q))


def equation(text, answer):
    left, right, name = re.fullmatch(
        r"(?:Solve|Find the solution of) (.*) = (.*) (?:for|in) (\w)\.", text
    ).groups()
    (solution,) = sympy.solve(sympy.sympify(f"({left}) - ({right})"), sympy.Symbol(name))
    return Fraction(int(solution.p), int(solution.q))


def system(text, answer):
    first, second, name = re.fullmatch(r"Solve (.*), (.*) for (\w)\.", text).groups()
    sides = [sympy.sympify("({}) - ({})".format(*e.split(" = "))) for e in (first, second)]
    return Fraction(int(sympy.solve(sides)[sympy.Symbol(name)]))


def sequence(text, answer):
    row = [int(n) for n in numbers(text)]
    differences = [b - a for a, b in itertools.pairwise(row)]
    bends = {b - a for a, b in itertools.pairwise(differences)}
    assert len(bends) == 1
    return row[-1] + differences[-1] + bends.pop()


def letters(text, answer):
    bag = "".join(letter * int(count) for letter, count in re.findall(r"([a-z]): (\d+)", text))
    drawn = int(text.split()[0])
    taken, letter = re.search(r"exactly (\d+) ([a-z])\?", text).groups()
    if math.comb(len(bag), drawn) > 20_000:
        return None
    hands = list(itertools.combinations(bag, drawn))
    return Fraction(sum(hand.count(letter) == int(taken) for hand in hands), len(hands))


def two_dice(text, answer):
    sides, total = (int(n) for n in re.findall(r"\d+", text))
    rolls = list(itertools.product(range(1, sides + 1), repeat=2))
    return Fraction(sum(a + b == total for a, b in rolls), len(rolls))


ORACLES = {
    questions.add_or_subtract: sums,
    questions.add_decimals: lambda text, _: sum(numbers(text.replace(". ", " "))),
    questions.multiply: lambda text, _: math.prod(numbers(text)),
    questions.divide: lambda text, _: Fraction(*map(int, re.findall(r"-?\d+", text))),
    questions.nested_expression: nested,
    questions.linear_equation: equation,
    questions.linear_system: system,
    questions.next_in_sequence: sequence,
    questions.drawing_letters: letters,
    questions.dice: two_dice,
    questions.common_divisor: lambda text, _: max(
        d for d in range(1, 6_000) if not any(n % d for n in plain_integers(text))
    ),
}


@pytest.mark.parametrize("generator", ORACLES, ids=lambda generator: generator.__name__)
def test_numbers_asked_for_are_right(generator):
    checked = 0
    for text, answer in draws(generator):
        expected = ORACLES[generator](text, answer)
        if expected is not None:
            checked += 1
            assert Fraction(answer) == expected, text
    assert checked > DRAWS // 2


def plain_integers(text):
    return [int(n) for n in re.findall(r"-?\d+", text)]


def test_common_multiples():
    for text, answer in draws(questions.common_multiple):
        a, b = [n for n in plain_integers(text) if n != 1 or "1/" not in text]
        assert int(answer) == next(m for m in range(a, a * b + 1, a) if m % b == 0), text


def test_primes_and_factors():
    for text, answer in draws(questions.primality):
        (number,) = plain_integers(text)
        assert answer == str(sympy.isprime(number) is ("composite" not in text)), text
    for text, answer in draws(questions.factorisation):
        (number,) = plain_integers(text)
        assert answer == ", ".join(map(str, sympy.primefactors(number))), text


def test_remainders_digits_and_bases():
    for text, answer in draws(questions.remainder):
        a, b = plain_integers(text)
        assert answer == (str(a % b == 0) if "multiple" in text else str(a % b)), text
    for text, answer in draws(questions.place_value):
        place = ("units", "tens", "hundreds", "thousands").index(text.split()[3])
        assert answer == re.search(r"\d+", text).group()[-1 - place], text
    for text, answer in draws(questions.base_conversion):
        if text.startswith("What"):
            digits, base = re.search(r"is (\w+) \(base (\d+)\)", text).groups()
            assert int(answer) == int(digits, int(base)), text
        else:
            number, _, base = plain_integers(text)
            assert int(answer, base) == number, text


def test_rounding():
    for text, answer in draws(questions.rounding):
        (number,) = plain_integers(text)
        unit = {"ten": 10, "one hundred": 100, "one thousand": 1_000, "ten thousand": 10_000}[
            re.search(r"nearest (.*)\.", text).group(1)
        ]
        assert int(answer) % unit == 0 and abs(int(answer) - number) * 2 <= unit, text
        if abs(int(answer) - number) * 2 == unit:
            assert abs(int(answer)) > abs(number), text  # halves go away from zero


def test_comparisons():
    for text, answer in draws(questions.compare):
        a, b = numbers(text)
        if text.startswith("Which"):
            assert answer == "equal" if a == b else Fraction(answer) == max(a, b), text
        else:
            assert answer == str(a > b if "greater" in text else a == b), text


def test_orders():
    words = {"": 1, "second": 2, "third": 3, "fourth": 4}
    for text, answer in draws(questions.order_statistics):
        values = plain_integers(text)
        if text.startswith("Sort"):
            assert plain_integers(answer) == sorted(values, reverse="descending" in text), text
        else:
            place, word = re.search(r"the (\w*) ?(biggest|smallest) value", text).groups()
            ranked = sorted(values, reverse=word == "biggest")
            assert int(answer) == ranked[words[place] - 1], text
    for text, answer in draws(questions.closest):
        target, *values = plain_integers(text)
        nearest = min(abs(value - target) for value in values)
        assert [value for value in values if abs(value - target) == nearest] == [int(answer)], text


def test_units_and_clocks():
    size = {name: value for group in questions.UNITS.values() for name, value in group.items()}
    for text, answer in draws(questions.unit_conversion):
        (amount,) = numbers(text)
        names = [word for word in re.findall(r"[a-z]+", text) if word in size]
        source, target = reversed(names) if text.startswith("How") else names
        assert Fraction(answer) * size[target] == amount * size[source], text
    for text, answer in draws(questions.clock):
        times = [int(h) * 60 + int(m) for h, m in re.findall(r"(\d\d):(\d\d)", text + " " + answer)]
        between = int(answer) if "How" in text else int(text.split()[2])
        assert times[1] - times[0] == between, text


def assert_same(answer, expression, text):
    """Equal as polynomials, and written out: like terms once, highest power first."""
    assert sympy.expand(sympy.sympify(answer) - expression) == 0, text
    terms = re.split(r" [+-] ", answer)
    powers = [int((re.findall(r"\*\*(\d+)", t) or [bool(re.search("[a-z]", t))])[0]) for t in terms]
    assert powers == sorted(set(powers), reverse=True) and "(" not in answer, text


def test_polynomials():
    x = sympy.Symbol("x")
    for text, answer in draws(polynomials.evaluate):
        body, at = re.fullmatch(r"Let \w\(x\) = (.*)\. .*\((-?\d+)\)[.?]", text).groups()
        assert sympy.sympify(body).subs(x, int(at)) == int(answer), text
    for text, answer in draws(polynomials.expand):
        body = re.fullmatch(r"Expand (.*)\.", text).group(1)
        assert_same(answer, sympy.sympify(body), text)
    for text, answer in draws(polynomials.collect):
        body = re.fullmatch(r"Collect the terms in (.*)\.", text).group(1)
        assert_same(answer, sympy.sympify(body), text)
    for text, answer in draws(polynomials.differentiate):
        order, body, name = re.search(
            r"the (first|second) derivative of (.*) wrt (\w)", text
        ).groups()
        times = ("first", "second").index(order) + 1
        assert_same(answer, sympy.diff(sympy.sympify(body), name, times), text)
    for text, answer in draws(polynomials.quadratic_roots):
        name, body = (
            re.search(r"([a-z]) in (.*) = 0", text).groups()
            if "What" in text
            else reversed(re.search(r"Solve (.*) = 0 for (\w)", text).groups())
        )
        roots = sympy.roots(sympy.sympify(body), sympy.Symbol(name))
        assert plain_integers(answer) == sorted(map(int, roots)), text


def test_every_generator_is_checked_and_varied():
    checked = {*ORACLES, *polynomials.QUESTIONS}
    apart = {
        questions.common_multiple,
        questions.primality,
        questions.factorisation,
        questions.remainder,
        questions.place_value,
        questions.base_conversion,
        questions.rounding,
        questions.compare,
        questions.order_statistics,
        questions.closest,
        questions.unit_conversion,
        questions.clock,
    }
    assert checked | apart == set(QUESTIONS)
    for generator in QUESTIONS:
        found = draws(generator)
        assert len(set(found)) > DRAWS // 2, generator.__name__
        assert all(f"{text}{answer}".isascii() and "\n" not in text for text, answer in found)
