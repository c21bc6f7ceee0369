"""English text to words: numbers, dates, money and common abbreviations spelled out, and marks that are heard."""

from __future__ import annotations

import re
from dataclasses import dataclass

ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
POWERS = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"))
ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"}
ORDINALS |= {"twelve": "twelfth"}
ABBREVIATIONS = {
    **{
        "mr": "mister",
        "mrs": "missus",
        "ms": "miz",
        "dr": "doctor",
        "st": "saint",
        "prof": "professor",
        "jr": "junior",
    },
    **{"sr": "senior", "vs": "versus", "etc": "et cetera", "e.g": "for example", "i.e": "that is", "no": "number"},
    **{"approx": "approximately", "dept": "department", "est": "established", "ft": "feet", "in": "inches"},
    **{"lb": "pounds", "lbs": "pounds", "oz": "ounces", "a.m": "a m", "p.m": "p m"},
}
UNITS = {"km": "kilometers", "cm": "centimeters", "mm": "millimeters", "kg": "kilograms", "mph": "miles per hour"}
UNITS |= {
    "m": "meters",
    "g": "grams",
    "l": "liters",
    "s": "seconds",
    "h": "hours",
    "gb": "gigabytes",
    "mb": "megabytes",
}
SIGNS = {"%": " percent ", "&": " and ", "+": " plus ", "=": " equals ", "@": " at ", "°": " degrees ", "#": " number "}
CURRENCIES = {"$": ("dollar", "cent"), "€": ("euro", "cent"), "£": ("pound", "penny")}
CURRENCY = "[" + re.escape("".join(CURRENCIES)) + "]"


@dataclass(frozen=True)
class Sentence:
    """Words in lower case; ``marks[i]`` follows word i: ``,``, ``.``, ``?``, ``!`` or nothing."""

    words: tuple[str, ...]
    marks: tuple[str, ...]


def sentences(text: str) -> list[Sentence]:
    """Text to sentences. What is neither a word, a number nor a known sign is a pause or nothing."""
    found: list[Sentence] = []
    words: list[str] = []
    marks: list[str] = []
    for token in re.findall(r"[a-z][a-z']*|[,.?!]", spelled_out(text)):
        if token[0].isalpha():
            words.append(token.rstrip("'"))
            marks.append("")
        elif words:
            marks[-1] = max(marks[-1], token, key=" ,.!?".find) if marks[-1] else token
            if token != ",":
                found.append(Sentence(tuple(words), tuple(marks)))
                words, marks = [], []
    if words:
        marks[-1] = "."
        found.append(Sentence(tuple(words), tuple(marks)))
    return found


def spelled_out(text: str) -> str:
    """Lower case, everything in letters, and ``. , ? !`` as the only marks."""
    text = text.replace("’", "'").replace("‘", "'").replace("…", ". ")
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    text = re.sub(rf"({CURRENCY})(\d+)(?:\.(\d\d))?( (?:thousand|million|billion|trillion))?", _money, text)
    text = re.sub(r"\b(\d{1,2}):(\d\d)\b", _time, text)
    text = re.sub(r"\b(\d+)(st|nd|rd|th)\b", lambda match: ordinal(int(match[1])), text)
    text = re.sub(r"\b(1[1-9]|20)(\d\d)\b(?!\.\d)", _year, text)
    text = re.sub(r"(\d+)\s?([a-zA-Z]{1,3})\b", _unit, text)
    text = re.sub(r"-?\d+(?:\.\d+)?", _number, text)
    text = re.sub(r"\b([A-Z]{2,5})\b", _letters, text)
    text = re.sub(r"\b([A-Za-z](?:\.[A-Za-z])+|[A-Za-z]+)\.", _abbreviation, text)
    for sign, word in SIGNS.items():
        text = text.replace(sign, word)
    text = re.sub(r"[;:()\[\]\"“”]|\s[-–—]+\s|—", ", ", text.lower())
    return re.sub(r"[^a-z',.?!]+", " ", text)


def cardinal(number: int) -> str:
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10 - 2] + (f" {ONES[number % 10]}" if number % 10 else "")
    for size, name in POWERS:
        if number >= size:
            if number // size >= 1000:
                return " ".join(ONES[int(digit)] for digit in str(number))
            rest = number % size
            return f"{cardinal(number // size)} {name}" + (f" {cardinal(rest)}" if rest else "")
    raise AssertionError(number)


def ordinal(number: int) -> str:
    before, _, last = cardinal(number).rpartition(" ")
    if last in ORDINALS:
        last = ORDINALS[last]
    elif last.endswith("y"):
        last = last[:-1] + "ieth"
    else:
        last += "th"
    return f"{before} {last}".strip()


def _money(match: re.Match[str]) -> str:
    unit, small = CURRENCIES[match[1]]
    amount, cents = int(match[2]), int(match[3] or 0)
    spoken = f"{cardinal(amount)}{match[4] or ''} {unit}{'' if amount == 1 and not match[4] else 's'}"
    if cents:
        small = small if cents == 1 else {"penny": "pence"}.get(small, small + "s")
        spoken += f" and {cardinal(cents)} {small}"
    return f" {spoken} "


def _time(match: re.Match[str]) -> str:
    hour, minute = int(match[1]), int(match[2])
    if minute == 0:
        return f"{cardinal(hour)} o'clock"
    return f"{cardinal(hour)} {'oh ' if minute < 10 else ''}{cardinal(minute)}"


def _year(match: re.Match[str]) -> str:
    century, rest = int(match[1]), int(match[2])
    if century == 20 and rest < 10:
        return cardinal(2000 + rest)
    return f"{cardinal(century)} {'hundred' if rest == 0 else ('oh ' if rest < 10 else '') + cardinal(rest)}"


def _unit(match: re.Match[str]) -> str:
    name = match[2].lower()
    return f"{match[1]} {UNITS.get(name, match[2])}"


def _number(match: re.Match[str]) -> str:
    whole, _, decimals = match[0].lstrip("-").partition(".")
    spoken = cardinal(int(whole)) if len(whole) < 13 else " ".join(ONES[int(digit)] for digit in whole)
    if decimals:
        spoken += " point " + " ".join(ONES[int(digit)] for digit in decimals)
    return f" {'minus ' if match[0].startswith('-') else ''}{spoken} "


def _letters(match: re.Match[str]) -> str:
    """Acronyms letter by letter, unless the dictionary says them as words."""
    from .pronounce import dictionary

    word = match[1].lower()
    return word if word in dictionary() else " ".join(match[1])


def _abbreviation(match: re.Match[str]) -> str:
    return ABBREVIATIONS.get(match[1].lower(), match[0]) if match[1].lower() != "no" else match[0]
