"""Whether two mathematical answers are the same, by the library `math-verify` (Hugging Face).

The library reads LaTeX and compares equations, inequalities, sets and formulas. Added here: styles that it does not
read (thousands, units in words, repeating decimals), and the comparison of numbers: exact where both are written
exactly, relative otherwise; an infinite value equals only the same infinity. Called in a process with limits
(`sandbox/maths.py`): no bound on time or memory is kept here.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

DIGITS = 60  # of numerical comparisons
_SAME = 1e-40  # relative difference of two numbers that are written exactly and evaluated numerically
_MARKS = str.maketrans({
    **dict.fromkeys("−–—", "-"), "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "π": r"\pi ", "∞": r"\infty ",
    "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∪": r"\cup ", "∩": r"\cap ", "°": r"^\circ ",
    "∅": r"\emptyset ", "∈": r"\in ", "²": "^2", "³": "^3", "\u00a0": " ", "\u202f": " ", "\u2009": " ",
})  # fmt: skip
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|bm|boldsymbol)\s*\{([^{}]*)\}")
_ENCLOSING = (
    re.compile(r"\$\$?(.*?)\$?\$", re.DOTALL),
    re.compile(r"\\\((.*)\\\)", re.DOTALL),
    re.compile(r"\\\[(.*)\\\]", re.DOTALL),
    re.compile(r"\*\*?(.*?)\*?\*", re.DOTALL),
)
_TRIG = r"\\(sin|cos|tan|cot|sec|csc)\s*[({]?\s*(\d+(?:\.\d+)?)\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})\s*[)}]?"
_NO_UNIT = "and or to by if where mod choose times plus minus over sqrt pi sin cos tan cot log ln exp oo inf infty"
_WORDS = re.compile(
    r"(?<=[\d})!])\s*(?:(?<=\s)|(?<=[})])|(?<=\d)(?=[a-z]{2}))((?:[A-Za-z]{2,}[.,]?|/|a)(?:\s+|$|(?=/)))+$"
)
_REWRITTEN: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"),
        (r"\\(?:geqslant|geq)(?![a-zA-Z])|>=|=>", r"\\ge "),
        (r"\\(?:leqslant|leq)(?![a-zA-Z])|<=|=<", r"\\le "),
        (r"\\varnothing(?![a-zA-Z])", r"\\emptyset "),
        (r"\\(?:displaystyle|limits|bigg?|Bigg?)(?![a-zA-Z])", ""),
        (r"(?<=\d)(?:,?\\[,!;: ]|\{,\}|,)(?=\d{3}(?!\d))", ""),  # 10,\!080  14{,}400  14\,400  1,234
        (r"\\[,!;:]|~|\\q?quad(?![a-zA-Z])", " "),
        (r"\\?[$]|[€£¥₹]", ""),
        (r"\\binom\s*(\d)\s*(\d)", r"\\binom{\1}{\2}"),
        (r"(?<![a-zA-Z\d.])(\d+(?:\.\d+)?)[eE]([+-]?\d+)(?![\d.])", r"\1\\cdot 10^{\2}"),
        (r"\*\*", "^"),
        (r"√\s*\(([^()]*)\)|√\s*\{([^{}]*)\}|√\s*([\w.]+)", r"\\sqrt{\1\2\3}"),
        (r"(?<![a-zA-Z\\])(pi)(?![a-zA-Z])", r"\\pi "),
        (r"(?<![a-zA-Z\\])(?:oo|inf|infinity)(?![a-zA-Z])", r"\\infty "),
        (_TRIG, r"\\\1(\\frac{\2\\pi}{180})"),
        (r"\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})|\\degrees?(?![a-zA-Z])", ""),
        (r"(?<![\d.\\])(-?)(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])", r"\1\2\\frac{\3}{\4}"),  # 1 1/2: a mixed number
    )
)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as text that `math-verify` reads."""

    latex: str
    exact: bool  # no decimal fraction is in it
    percent: bool  # it ends with a percent sign
    folded: str  # for comparing texts: no spaces, no markup, lower case


def read(text: str) -> Answer:
    """The answer without enclosing marks, units and typographic forms; decimals as fractions."""
    text = _unwrapped(text.translate(_MARKS))
    folded = fold(text)
    text = "".join(map(_vulgar, text))
    for pattern, replacement in _REWRITTEN:
        text = pattern.sub(replacement, text)
    percent = bool(re.search(r"(?:\\?%|\bpercent)\s*$", text))
    text = _without_unit(re.sub(r"\\?%|\bpercent\b", "", text).strip())
    text = re.sub(r"(\d*)\.(\d*)\\overline\s*(?:\{(\d+)\}|(\d))", _repeating, text)
    exact = not re.search(r"\d?\.\d", text)
    text = re.sub(r"(?<![\d.])(\d*)\.(\d+)(?![\d.])", lambda found: _latex(Fraction(f"0{found[0]}")), text)
    return Answer(_both_signs(text.strip()), exact, percent, folded)


def fold(text: str) -> str:
    """The text without spaces, case and what only typesets it."""
    text = _TEXT.sub(r"\1", _unwrapped(text))
    text = re.sub(r"\\(?:left|right)(?![a-zA-Z])|\\[,!;: ]|[\s$]", "", text)
    text = re.sub(r"(?<!\\)\{([\w,])\}", r"\1", text)  # braces around more say what belongs together
    text = text.rstrip(".").casefold()
    return text[1:-1] if re.fullmatch(r"\([a-z]\)", text) else text


def same(given: str, expected: str, tolerance: float, percent_as_number: bool) -> bool:
    """Whether two answers are equal.

    tolerance: relative difference of two numbers of which one is written as a decimal fraction.
    percent_as_number: 60% equals 60 as well as 0.6.
    """
    first, second = read(given), read(expected)
    if first.folded == second.folded:
        return bool(first.folded)
    if re.search(r"\d_|\d\s*:\s*\d", first.folded + second.folded):
        return False  # another base, a ratio or a time of day: only the same text is the same
    a, b = _parsed(first.latex), _parsed(second.latex)
    if a is None or b is None:
        return False
    near = tolerance if not (first.exact and second.exact) else None
    if first.percent == second.percent:
        return _equal(a, b, near)
    share, other = (a, b) if first.percent else (b, a)
    if not (_is_number(share) and _is_number(other)):
        return _equal(a, b, near)
    return _equal(share / 100, other, near) or (percent_as_number and _equal(share, other, near))


def _unwrapped(text: str) -> str:
    """Without enclosing $ $, \\( \\), \\[ \\] and ** **, and without a full stop."""
    before = None
    while text != before:
        before, text = text, text.strip().removesuffix(".").strip()
        for pattern in _ENCLOSING:
            if found := pattern.fullmatch(text):
                text = found[1]
    return text


def _vulgar(letter: str) -> str:
    """½ as \\frac{1}{2}."""
    if unicodedata.category(letter) != "No" or "⁄" not in (parts := unicodedata.normalize("NFKC", letter)):
        return letter
    above, _, below = parts.partition("⁄")
    return rf"\frac{{{above}}}{{{below}}}"


def _latex(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _repeating(found: re.Match[str]) -> str:
    """0.1\\overline{6} as \\frac{1}{6}."""
    whole, start, period = found[1] or "0", found[2], found[3] or found[4]
    value = Fraction(int(whole + start + period) - int(whole + start), 10 ** len(start) * (10 ** len(period) - 1))
    return _latex(value)


def _without_unit(text: str) -> str:
    """Without the unit behind a value: \\text{ m/s}^2, or words."""
    bare = re.sub(r"\s*\\(?:text|mathrm|mbox|textrm)\s*\{[^{}]*\}\s*(?:\^\s*(?:\{\d\}|\d))?$", "", text)
    if bare and bare != text and re.search(r"[\d})a-z]$", bare):
        return _without_unit(bare)
    found = _WORDS.search(text)
    if found and not set(re.findall(r"[a-z]+", found[0].lower())) & set(_NO_UNIT.split()):
        return text[: found.start()].strip()
    return text


def _both_signs(text: str) -> str:
    """1\\pm\\sqrt2 as the two values."""
    if r"\pm" not in text and r"\mp" not in text:
        return text
    plus = text.replace(r"\pm", "+").replace(r"\mp", "-")
    minus = text.replace(r"\pm", "-").replace(r"\mp", "+")
    plus = re.sub(r"(^|[=({,])\s*[+]", r"\1", plus)
    return f"{plus}, {minus}"


@lru_cache(1024)  # one reference meets many answers
def _parsed(latex: str) -> Any:
    """A sympy object; None where the library reads none."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse
    from sympy import Basic, I, MatrixBase

    found = parse(
        f"${latex}$",
        extraction_config=[LatexExtractionConfig(), ExprExtractionConfig()],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    value = next((item for item in found if isinstance(item, Basic | MatrixBase)), None)
    units = [symbol for symbol in getattr(value, "free_symbols", ()) if symbol.name == "i"]
    return (
        value.subs(units[0], I) if value is not None and units else value
    )  # a new set would forget how often a member was written


def _is_number(value: Any) -> bool:
    from sympy import Expr

    return isinstance(value, Expr) and not value.free_symbols


def _equal(a: Any, b: Any, near: float | None) -> bool:
    """near: the relative tolerance; None compares exactly."""
    from latex2sympy2_extended.sets import FiniteSet
    from math_verify import verify
    from sympy import FiniteSet as SympySet
    from sympy import Interval, MatrixBase, Tuple

    if _is_number(a) and _is_number(b):
        return _equal_numbers(a.doit(), b.doit(), near)
    if isinstance(a, MatrixBase) and isinstance(b, MatrixBase):
        return a.shape == b.shape and all(_equal(x, y, near) for x, y in zip(a.flat(), b.flat(), strict=True))
    if isinstance(a, Tuple) and isinstance(b, Tuple):
        return len(a) == len(b) and all(_equal(x, y, near) for x, y in zip(a, b, strict=True))
    if isinstance(a, Interval) and isinstance(b, Interval):
        open_ends = (a.left_open, a.right_open) == (b.left_open, b.right_open)
        return open_ends and _equal(a.start, b.start, near) and _equal(a.end, b.end, near)
    if isinstance(a, SympySet | FiniteSet) and isinstance(b, SympySet | FiniteSet):
        return _equal_lists(list(_members(a)), list(_members(b)), near)
    return bool(verify(b, a, allow_set_relation_comp=True, timeout_seconds=None))


def _members(values: Any) -> Any:
    """The members of a set as they were written, repeated ones too; of x = 2 the 2."""
    from sympy import Eq

    members = getattr(values, "_unsorted_args", values.args)
    return [member.rhs if isinstance(member, Eq) and member.lhs.is_Symbol else member for member in members]


def _equal_lists(first: list[Any], second: list[Any], near: float | None) -> bool:
    """Whether the members are the same in some order."""
    if len(first) != len(second):
        return False
    for value in first:
        match = next((at for at, other in enumerate(second) if _equal(value, other, near)), None)
        if match is None:
            return False
        del second[match]
    return True


def _equal_numbers(a: Any, b: Any, near: float | None) -> bool:
    from sympy import nan, zoo

    if a in (nan, zoo) or b in (nan, zoo):
        return False
    if a.is_infinite or b.is_infinite or a == b:
        return bool(a == b)
    if near is None and a.is_Rational and b.is_Rational:
        return False
    if near is None and (a - b).is_Rational:
        return bool(a - b == 0)
    difference, size = (abs(value.evalf(DIGITS)) for value in (a - b, b if b != 0 else a))
    return bool(difference.is_Number and size.is_Number and difference <= (near or _SAME) * size)
