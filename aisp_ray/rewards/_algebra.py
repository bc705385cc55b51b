"""Mathematical answers as values: LaTeX or plain text -> sympy, without evaluating anybody's code.

The text is rewritten to plain arithmetic, parsed by Python's own syntax tree, and only numbers, a few names and a few
functions are turned into sympy objects. Powers are bounded, so no answer can keep a computer busy.
"""

from __future__ import annotations

import ast
import re
from typing import Any

MAX_LENGTH = 400  # characters of an answer
MAX_EXPONENT = 1000
MAX_BITS = 4000  # of any whole number on the way
_FUNCTIONS = ("sqrt", "sin", "cos", "tan", "cot", "asin", "acos", "atan", "log", "ln", "exp", "abs", "factorial")
_POINTS = ((0.731, 1.377, 2.113, 0.517), (1.913, 0.289, 0.839, 3.301), (2.477, 3.149, 1.171, 0.613))
_GREEK = ("alpha", "beta", "gamma", "delta", "theta", "lambda", "mu", "phi", "omega")
_UNITS = re.compile(
    r"(?<=[\d)}])\s*(?:\\?(?:degrees?|dollars?|cents?|units?|square|cubic|inch(?:es)?|feet|foot|meters?|metres?|miles?"
    r"|hours?|minutes?|seconds?|days?|weeks?|years?|cm|mm|km|kg|mph|ft|lbs?|pounds?|grams?)\b\.?\s*(?:\^?\{?[23]\}?)?)+$"
)
_REPLACED = (
    (re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![a-zA-Z])"), ""),
    (re.compile(r"(?<!\\)\\[()\[\]]"), " "),  # \( ... \) and \[ ... \]
    (re.compile(r"\\[,;:! ]|~|\\q?quad"), " "),
    (re.compile(r"\\(?:dfrac|tfrac|cfrac)"), r"\\frac"),
    (re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox|operatorname)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\(?:cdot|times|ast)(?![a-zA-Z])"), "*"),
    (re.compile(r"\\div(?![a-zA-Z])|÷"), "/"),
    (re.compile(r"×|·"), "*"),
    (re.compile(r"−|–"), "-"),
    (re.compile(r"\\pi(?![a-zA-Z])|π"), " pi "),
    (re.compile(r"\\infty(?![a-zA-Z])|∞"), " oo "),
    (re.compile(r"√\s*(\d+)"), r"sqrt(\1)"),
    (re.compile(r"\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})|\\degree|°"), ""),
    (re.compile(r"\\[$]|[$]"), ""),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\\([{}])"), r"\1"),
)


class NotAlgebraError(ValueError):
    """The text is no expression this module knows."""


def parse(text: str) -> Any:
    """A sympy expression, or a tuple of them for `(a, b)`, `[a, b)` and `{a, b}` (kind first, as a string).

    Raises:
        NotAlgebraError: it is something else, or too large.
    """
    text = plain(text)
    if len(text) > MAX_LENGTH:
        raise NotAlgebraError(f"longer than {MAX_LENGTH} characters")
    opening, closing = text[:1], text[-1:]
    if opening and opening in "([{" and closing in ")]}" and _wraps(text):
        parts = _split(text[1:-1])
        if len(parts) > 1 or opening == "{":
            kind = "set" if opening == "{" else opening + closing
            return (kind, *(_expression(part) for part in parts))
    parts = _split(text)
    if len(parts) > 1:  # "1, 2" is the set of solutions
        return ("set", *(_expression(part) for part in parts))
    return _expression(text)


def plain(text: str) -> str:
    """LaTeX and typographic marks as plain arithmetic: `\\frac{1}{2}` is `((1)/(2))`."""
    text = text.strip().rstrip(".").strip()
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    text = re.sub(r"(\d),(?=\d{3}(?!\d))", r"\1", text)  # 1,234
    text = _UNITS.sub("", text.strip().rstrip(".").strip())  # a full stop may stand inside of $ or \)
    text = re.sub(r"^[a-zA-Z](?:\([a-z]\))?\s*(?:=|\\in)\s*", "", text)  # x = 5
    text = _braced(text)
    text = re.sub(r"\\(" + "|".join((*_FUNCTIONS, *_GREEK)) + r")(?![a-zA-Z])", r" \1", text)
    return re.sub(r"\s+", " ", text).strip()


def _braced(text: str) -> str:
    """`\\frac`, `\\sqrt` and `^{...}` with their brace groups resolved, innermost first."""
    for _ in range(MAX_LENGTH):
        before = text
        text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
        text = re.sub(r"\\frac\s*\{([^{}]*)\}\s*(\d)(?!\d)", r"\\frac{\1}{\2}", text)
        text = re.sub(r"(?<=\d)\s*\\frac\s*\{(\d+)\}\s*\{(\d+)\}", r"+((\1)/(\2))", text)  # 1 1/2: a mixed number
        text = re.sub(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))", text)
        text = re.sub(r"\\sqrt\s*\[(\d+)\]\s*\{([^{}]*)\}", r"((\2)^(1/(\1)))", text)
        text = re.sub(r"\\sqrt\s*\{([^{}]*)\}", r"sqrt(\1)", text)
        text = re.sub(r"\\sqrt\s*(\d)", r"sqrt(\1)", text)
        text = re.sub(r"([\^_])\s*\{([^{}]*)\}", r"\1(\2)", text)
        if text == before:
            return text
    return text


def _wraps(text: str) -> bool:
    """Whether the first bracket is closed by the last one."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0:
            return at == len(text) - 1
    return False


def _split(text: str) -> list[str]:
    """Parts between commas outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _expression(text: str) -> Any:
    import sympy

    if re.search(r"\d_", text):
        raise NotAlgebraError(f"{text!r} is written in another base")  # to Python 4210_5 is 42105
    percent = text.endswith("%")
    source = text.rstrip("%").strip().replace("^", "**").replace("{", "(").replace("}", ")")
    source = re.sub(r"(?<![\w.])(\d+)!(?!=)", r"factorial(\1)", source)
    source = re.sub(r"(?<![\w.])0+(?=\d)", "", source)  # 007 is no Python number
    source = re.sub(r"(\d)\s*(?=[a-zA-Z(])", r"\1*", source)  # 2x, 3(4)
    source = re.sub(r"\)\s*(?=[\w(])", ")*", source)
    source = re.sub(r"(?<=\bpi)\s+(?=[\w(])", "*", source)
    source = re.sub(r"(?<![a-zA-Z])([a-zA-Z])\s+(?=[a-zA-Z(])", r"\1*", source)
    source = re.sub(r"\blambda\b", "lambda_", source)
    try:
        tree = ast.parse(source, mode="eval").body
        value = _convert(tree)
    except (SyntaxError, RecursionError, MemoryError, ZeroDivisionError, TypeError, AttributeError) as error:
        raise NotAlgebraError(f"{text!r} is no expression") from error
    return value / sympy.Integer(100) if percent else value


def _convert(node: ast.AST) -> Any:
    import sympy

    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _bounded(sympy.Integer(node.value) if type(node.value) is int else sympy.Rational(str(node.value)))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _convert(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        return _bounded(_operate(node.op, _convert(node.left), _convert(node.right)))
    if isinstance(node, ast.Name):
        return _name(node.id)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 1 and not node.keywords:
        return _call(node.func.id, _convert(node.args[0]))
    raise NotAlgebraError(f"a {type(node).__name__} is no arithmetic")


def _operate(operator: ast.operator, left: Any, right: Any) -> Any:
    import sympy

    if isinstance(operator, ast.Add):
        return left + right
    if isinstance(operator, ast.Sub):
        return left - right
    if isinstance(operator, ast.Mult):
        return left * right
    if isinstance(operator, ast.Div):
        return left / right
    if isinstance(operator, ast.Pow):
        _check_exponent(right)
        if left.is_Rational and right.is_Rational:
            bits = max(int(left.p).bit_length(), int(left.q).bit_length())
            if bits * abs(float(right)) > MAX_BITS:
                raise NotAlgebraError("a number that is too large")
        return sympy.Pow(left, right)
    raise NotAlgebraError(f"{type(operator).__name__} is no arithmetic")


def _check_exponent(exponent: Any) -> None:
    """Refuse towers: exp(exp(exp(x))) has more digits than any memory."""
    import sympy

    if exponent.is_number:
        if not abs(exponent.evalf(15)) <= MAX_EXPONENT:
            raise NotAlgebraError(f"an exponent above {MAX_EXPONENT}")
    elif any(power.exp.free_symbols for power in exponent.atoms(sympy.Pow, sympy.exp)):
        raise NotAlgebraError("a tower of powers")


def _bounded(value: Any) -> Any:
    if value.is_Rational and max(int(value.p).bit_length(), int(value.q).bit_length()) > MAX_BITS:
        raise NotAlgebraError("a number that is too large")
    return value


def _name(name: str) -> Any:
    import sympy

    constants = {"pi": sympy.pi, "oo": sympy.oo, "e": sympy.E, "i": sympy.I}
    if name in constants:
        return constants[name]
    if name in _FUNCTIONS or not re.fullmatch(r"[a-zA-Z](?:_?\w)?|" + "|".join(_GREEK) + "|lambda_", name):
        raise NotAlgebraError(f"{name!r} is no variable")
    return sympy.Symbol(name)


def _call(name: str, argument: Any) -> Any:
    import sympy

    if name == "factorial":
        if not (argument.is_Integer and 0 <= int(argument) <= 200):
            raise NotAlgebraError("a factorial above 200")
        return sympy.factorial(argument)
    if name == "exp":
        _check_exponent(argument)
    if name in _FUNCTIONS:
        known = {"ln": sympy.log, "abs": sympy.Abs}
        return known.get(name, getattr(sympy, name, None))(argument)
    return _name(name) * argument  # x(y + 1)


def equal(first: Any, second: Any, tolerance: float) -> bool:
    """Whether two parsed answers have the same value: at 30 digits, with variables at three fixed points."""
    if isinstance(first, tuple) or isinstance(second, tuple):
        if not (isinstance(first, tuple) and isinstance(second, tuple)) or len(first) != len(second):
            return False
        if first[0] != second[0]:
            return False
        if first[0] != "set":
            return all(equal(a, b, tolerance) for a, b in zip(first[1:], second[1:], strict=True))
        rest = list(second[1:])
        for value in first[1:]:
            match = next((other for other in rest if equal(value, other, tolerance)), None)
            if match is None:
                return False
            rest.remove(match)
        return True
    if first == second:
        return True
    symbols = sorted(first.free_symbols | second.free_symbols, key=str)
    if len(symbols) > len(_POINTS[0]):
        return False
    points = [dict(zip(symbols, point, strict=False)) for point in _POINTS[: 3 if symbols else 1]]
    return all(_near(first, second, point, tolerance) for point in points)


def _near(first: Any, second: Any, point: dict[Any, float], tolerance: float) -> bool:
    try:
        a, b = (complex(value.evalf(30, subs=point)) for value in (first, second))
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        return False
    return abs(a - b) <= tolerance * max(1.0, abs(a), abs(b))
