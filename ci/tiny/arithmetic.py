"""The tiny model's numbers: units into other units, and sums, differences and products small enough to say at once."""

from dataclasses import dataclass
from random import Random

from ci.tiny.exchange import Exchange


@dataclass(frozen=True)
class Conversion:
    """One large unit is `factor` small ones; values of the large unit go up to `limit`."""

    large: str
    small: str
    factor: int
    limit: int


CONVERSIONS = (
    Conversion("metre", "centimetre", 100, 99),
    Conversion("centimetre", "millimetre", 10, 99),
    Conversion("kilometre", "metre", 1000, 99),
    Conversion("kilogram", "gram", 1000, 99),
    Conversion("litre", "millilitre", 1000, 99),
    Conversion("hour", "minute", 60, 20),
    Conversion("minute", "second", 60, 20),
    Conversion("week", "day", 7, 10),
)
CONVERT_WORDS = (
    "How many {b} are {n} {a}?",
    "How many {b} are there in {n} {a}?",
    "Convert {n} {a} to {b}.",
    "What is {n} {a} in {b}?",
    "{n} {a} in {b}?",
)


def conversion(rng: Random) -> Exchange:
    """Both ways; with one decimal now and then where the factor is 100 or 1000, so that no answer is a fraction."""
    unit = rng.choice(CONVERSIONS)
    decimal = unit.factor in (100, 1000) and rng.random() < 0.3
    tenths = rng.randint(1, unit.limit) if decimal else 10 * rng.randint(1, unit.limit)
    large = f"{tenths / 10:g}"
    small = f"{tenths * unit.factor // 10}"
    forward = rng.random() < 0.5
    ends = ((large, unit.large), (small, unit.small))
    (n, source), (result, target) = ends if forward else ends[::-1]
    source_words, target_words = (
        name if count == "1" else name + "s" for count, name in ((n, source), (result, target))
    )
    words = rng.choice(CONVERT_WORDS)
    question = words.format(n=n, a=source_words, b=target + "s")
    if rng.random() < 0.15:
        question = question.replace("metre", "meter").replace("litre", "liter")
    answer = f"{n} {source_words} is {result} {target_words}."
    return Exchange("units", f"units/{n}/{source}/{target}", question, answer)


SUM_WORDS = ("What is {q}?", "How much is {q}?", "Calculate {q}.", "{q} = ?", "{q}?", "Tell me {q}.")


def addition(rng: Random) -> Exchange:
    a, b = rng.randint(0, 99), rng.randint(0, 99)
    question = f"Add {a} and {b}." if rng.random() < 0.15 else _sum_question(rng, a, b, "plus", "+")
    return Exchange("sums", f"plus/{a}/{b}", question, f"{a} plus {b} is {a + b}.")


def subtraction(rng: Random) -> Exchange:
    b, a = sorted((rng.randint(0, 99), rng.randint(0, 99)))
    question = f"Take {b} from {a}." if rng.random() < 0.15 else _sum_question(rng, a, b, "minus", "-")
    return Exchange("sums", f"minus/{a}/{b}", question, f"{a} minus {b} is {a - b}.")


def multiplication(rng: Random) -> Exchange:
    a, b = rng.randint(1, 10), rng.randint(1, 10)
    question = f"Multiply {a} by {b}." if rng.random() < 0.15 else _sum_question(rng, a, b, "times", "*")
    return Exchange("sums", f"times/{a}/{b}", question, f"{a} times {b} is {a * b}.")


def _sum_question(rng: Random, a: int, b: int, word: str, sign: str) -> str:
    shape = rng.choice(("{a} {word} {b}", "{a} {sign} {b}", "{a}{sign}{b}"))
    return rng.choice(SUM_WORDS).format(q=shape.format(a=a, b=b, word=word, sign=sign))
