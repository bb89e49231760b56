"""Other values of the same form as a secret: each digit and letter may be another one of its kind.

A digit may be any digit, a letter any letter of the same alphabet and case. Everything else stays: punctuation, spaces,
and letters of other alphabets.
"""

import itertools
import math
import string
import unicodedata
from dataclasses import dataclass

import numpy as np

ALPHABETS = (
    string.ascii_lowercase, string.ascii_uppercase, "αβγδεζηθικλμνοπρστυφχψω", "ΑΒΓΔΕΖΗΘΙΚΛΜΝΟΠΡΣΤΥΦΧΨΩ",
    "абвгдежзийклмнопрстуфхцчшщъыьэюя", "АБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯ",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternatives:
    """Some or all other values of a form."""

    values: tuple[str, ...]
    are_all: bool
    """Whether these are all other values; otherwise they were drawn at random, independently."""
    bits: float
    """log2 of the number of values of the form, the true one included."""


def alternatives_to(value: str, n: int, rng: np.random.Generator) -> Alternatives:
    """Return all other values of the form if these are at most n, and otherwise n of them drawn at random.

    Args:
        value: The secret.
        n: Largest number of alternatives to return.
        rng: Draws them, independently and with equal probability; the true value is not among them.
    """
    choices = [_choices(sign) for sign in value]
    size = math.prod(map(len, choices))
    bits = sum(math.log2(len(signs)) for signs in choices)
    if size - 1 <= n:
        others = tuple(other for signs in itertools.product(*choices) if (other := "".join(signs)) != value)
        return Alternatives(values=others, are_all=True, bits=bits)
    drawn: list[str] = []
    while len(drawn) < n:
        columns = [np.array(list(signs))[rng.integers(len(signs), size=n - len(drawn))] for signs in choices]
        drawn += [other for signs in zip(*columns, strict=True) if (other := "".join(signs)) != value]
    return Alternatives(values=tuple(drawn), are_all=False, bits=bits)


def _choices(sign: str) -> str:
    """Return the characters that may stand in a character's place."""
    digit = unicodedata.decimal(sign, None)
    if digit is not None:
        return "".join(chr(ord(sign) - digit + i) for i in range(10))
    return next((letters for letters in ALPHABETS if sign in letters), sign)
