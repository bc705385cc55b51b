"""The program in a response, and what its tests really check. Python sources in, Python sources out; nothing is run."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterable, Sequence

_OPENING = re.compile(r"^[ \t>]*(?:(?:[-*+]|\d+[.)])[ \t]+)?(`{3,}|~{3,})[ \t]*\{?\.?([\w+-]*)[^\n`]*\n", re.MULTILINE)
_THOUGHTS = re.compile(r"<(think|thinking|thought|reasoning)>.*?(?:</\1>|\Z)", re.DOTALL)
_LANGUAGES = ("", "python", "py", "python3")
_MOST_CLOSINGS = 16  # that are tried for one block
_DEFINING = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
_CHECKING = re.compile(r"assert|check|raise|fail|verif|expect|exit|equal|close", re.IGNORECASE)
_IS_MAIN = ("__name__ == '__main__'", "'__main__' == __name__")
_CATCHES_ALL = {"Exception", "AssertionError", "BaseException"}
_COMPARED = ("Eq", "NotEq", "Lt", "LtE", "Gt", "GtE", "In", "NotIn")
_COMPARED_BY = {
    "eq": "Eq",
    "ne": "NotEq",
    "lt": "Lt",
    "le": "LtE",
    "gt": "Gt",
    "ge": "GtE",
    "sub": "Sub",
    "truediv": "Div",
}
_RUN_CASES = """
import unittest as _unittest
_result = _unittest.TestResult()
_unittest.TestSuite(map(_unittest.defaultTestLoader.loadTestsFromTestCase, [{cases}])).run(_result)
assert _result.testsRun and _result.wasSuccessful()
"""


def extract_code(response: str, names: Iterable[str] = ()) -> tuple[str, ...]:
    """The program of a response, as sources to run in order: the last block that defines one of `names` (the first
    block, if none does), and before it imports and helpers of other blocks that it uses.

    Thoughts in <think>...</think> hold drafts and are left out. Without blocks: the longest run of lines that is Python
    and defines something, else the response itself.
    """
    text = _THOUGHTS.sub("", response).replace("\ufeff", "")
    text = re.split(r"</(?:think|thinking|thought|reasoning)>", text)[-1]  # where the template opened it
    blocks = _blocks(text)
    if not blocks:
        return (_bare_code(text) or text,)
    wanted = set(names)
    main = next((block for block in reversed(blocks) if wanted & set(_defined(block))), None)
    if main is None:
        main = next((block for block in blocks if _mentions(block, wanted)), blocks[0])
    return (*_helpers(main, [block for block in blocks if block is not main]), main)


def _mentions(block: str, names: set[str]) -> bool:
    """Whether a block that is no Python defines one of the names: it was meant, and fails as it stands."""
    return any(
        re.search(rf"^[ \t]*(?:async[ \t]+)?(?:def|class)[ \t]+{re.escape(name)}\b", block, re.M) for name in names
    )


def _blocks(text: str) -> list[str]:
    """The fenced blocks in Python. A block ends at the first closing fence that makes it Python, so that fences in
    docstrings belong to it; where none does, at the first line that is a fence."""
    found, at = [], 0
    while opening := _OPENING.search(text, at):
        fence = opening[1]
        closings = list(re.finditer(rf"{re.escape(fence)}{fence[0]}*(?=[ \t]*$)", text[opening.end() :], re.MULTILINE))
        bodies = [text[opening.end() : opening.end() + end.start()] for end in closings[:_MOST_CLOSINGS]]
        own_line = [number for number, body in enumerate(bodies) if not body.rpartition("\n")[2].strip(" \t>")]
        python = opening[2].lower() in _LANGUAGES
        valid = [number for number, body in enumerate(bodies) if _tree(_dedented(body)) is not None] if python else []
        chosen = next(iter(valid or own_line), None)
        if python:
            found.append(_dedented(bodies[chosen] if chosen is not None else text[opening.end() :]))
        at = opening.end() + closings[chosen].end() if chosen is not None else len(text)
    return found


def _dedented(body: str) -> str:
    return textwrap.dedent(body.expandtabs(4) if body.startswith(("\t", " ")) else body).rstrip()


def _helpers(main: str, others: Sequence[str]) -> list[str]:
    """Imports and definitions of other blocks that the program uses and does not have, in the order of the response."""
    known, missing = set(_defined(main)), _used(main)
    taken: list[tuple[int, int, ast.stmt]] = []
    trees = [(number, tree) for number, block in enumerate(others) if (tree := _tree(block)) is not None]
    while missing := missing - known:
        name = missing.pop()
        known.add(name)
        for number, tree in reversed(trees):
            nodes = [node for node in tree.body if isinstance(node, _DEFINING) and name in _names(node)]
            if nodes:
                taken += [(number, node.lineno, node) for node in nodes]
                missing |= {use for node in nodes for use in _used(ast.unparse(node))}
                break
    unique = {(number, line): ast.unparse(node) for number, line, node in taken}
    return ["\n".join(unique[key] for key in sorted(unique))] if unique else []


def completed(program: Sequence[str], prompt_code: str | None, entry_point: str | None) -> tuple[str, ...]:
    """The program with what its prompt gave: imports, helpers, and the head of a function that it continues."""
    if not prompt_code:
        return tuple(program)
    if entry_point and not any(entry_point in _defined(source) for source in program):
        continued = f"{prompt_code.rstrip()}\n{textwrap.indent(textwrap.dedent(program[-1]), '    ')}"
        if _tree(continued) is not None:
            return (*program[:-1], continued)
    tree = _tree(f"{prompt_code.rstrip()}\n    pass") or _tree(prompt_code)
    given = [ast.unparse(node) for node in tree.body if entry_point not in _names(node)] if tree is not None else []
    return ("\n".join(given), *program) if given else tuple(program)


def runnable_test(test: str, entry_point: str | None) -> str:
    """The test as its runner would run it: as the main program, and with the calls that it leaves to the runner:
    check(entry_point), test functions, unittest cases.

    Raises:
        ValueError: it is no Python, or nothing that it runs can fail a wrong answer.
    """
    tree = _tree(test)
    if tree is None:
        raise ValueError("is not Python")
    if (body := _as_main(tree)) != tree.body:
        tree.body = body
        test = ast.unparse(tree)
    called = {name for node in tree.body if not isinstance(node, _DEFINING) for name in _used(ast.unparse(node))}
    called |= {name for node in tree.body if isinstance(node, ast.Assign) for name in _used(ast.unparse(node))}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name not in called:
            test += _call_of(node, entry_point)
    if not _can_fail(ast.parse(test)):
        raise ValueError("asserts nothing that is run: every program would pass it")
    return test


def _as_main(tree: ast.Module) -> list[ast.stmt]:
    """The statements that `python test.py` runs, without the start of a runner: its cases are run here."""
    runners = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name in ("unittest", "pytest")
    }
    starts = {f"{name}.main" for name in runners}
    found: list[ast.stmt] = []
    for node in tree.body:
        main = isinstance(node, ast.If) and ast.unparse(node.test) in _IS_MAIN
        found += node.body if main and isinstance(node, ast.If) else [node]
    return [node for node in found if not starts & {ast.unparse(call.func) for call in _top_calls(node)}]


def _top_calls(node: ast.stmt) -> list[ast.Call]:
    """The calls that a statement is: main(), and exit(main())."""
    call = node.value if isinstance(node, ast.Expr) else None
    return [part for part in (call, *getattr(call, "args", ())) if isinstance(part, ast.Call)]


def _call_of(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, entry_point: str | None) -> str:
    """The call that a test leaves to its runner; empty for what no runner calls."""
    if isinstance(node, ast.ClassDef):
        bases = [ast.unparse(base) for base in node.bases]
        return _RUN_CASES.format(cases=node.name) if any(base.endswith("TestCase") for base in bases) else ""
    takes_one = len(node.args.args) - len(node.args.defaults) <= 1 <= len(node.args.args)
    if not node.args.args and node.name.startswith(("test", "check")):
        call = f"{node.name}()"
    elif entry_point and takes_one and node.name == "check":
        call = f"{node.name}({entry_point})"
    else:
        return ""
    return f"\n__import__('asyncio').run({call})\n" if isinstance(node, ast.AsyncFunctionDef) else f"\n{call}\n"


def guarded(test: str) -> str:
    """The test with its comparisons handed to the sandbox's referee (`sandbox/child.py`), which lets no object of the
    answer's own classes decide about a plain value: one that claims to equal everything is no right answer."""
    tree = _tree(test)
    if tree is None:
        return test
    return ast.unparse(ast.fix_missing_locations(_Guarding(tree).visit(tree)))


def _operators(tree: ast.AST) -> dict[str, str]:
    """What a test's names of the functions of `operator` compare by, such as {"operator.eq": "Eq"}."""
    kinds = {name: kind for short, kind in _COMPARED_BY.items() for name in (short, f"__{short}__")}
    modules = {"operator"}
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name for alias in node.names if alias.name == "operator"}
        elif isinstance(node, ast.ImportFrom) and node.module == "operator":
            found |= {alias.asname or alias.name: kinds[alias.name] for alias in node.names if alias.name in kinds}
    return found | {f"{module}.{name}": kind for module in modules for name, kind in kinds.items()}


class _Guarding(ast.NodeTransformer):
    """`a == b` as `__compare__('Eq', a, b)`, and `assertEqual(a, b)` as `assertEqual(*__pair__(a, b))`."""

    def __init__(self, tree: ast.Module):
        self.defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        called = [
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        ]
        self.made = {name for name in called if name[0].isupper()}
        self.operators = _operators(tree)

    def visit_Match(self, node: ast.Match) -> ast.Match:
        self.generic_visit(node)
        kinds = {type(part) for case in node.cases for part in ast.walk(case.pattern)}
        if ast.MatchValue in kinds and ast.MatchClass not in kinds:
            node.subject = self._plain(node.subject)
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        if len(node.ops) == 1 and type(node.ops[0]).__name__ in _COMPARED:
            return self._call(type(node.ops[0]).__name__, node.left, node.comparators[0])
        if not any(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):  # a chain: plain values alone
            plain = [self._plain(part) for part in (node.left, *node.comparators)]
            node.left, node.comparators = plain[0], plain[1:]
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.op, ast.Sub | ast.Div):
            return self._call(type(node.op).__name__, node.left, node.right)
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        name = str(getattr(node.func, "attr", getattr(node.func, "id", "")))
        if (operation := self.operators.get(ast.unparse(node.func))) and len(node.args) == 2:
            return self._call(operation, *node.args)
        method = _COMPARED_BY.get(name.strip("_")) if name.startswith("__") else None
        if method and isinstance(node.func, ast.Attribute) and len(node.args) == 1:  # a.__eq__(b)
            of_super = ast.unparse(node.func).startswith(
                "super("
            )  # in a class of the test: not the two values themselves
            return node if of_super else self._call(method, node.func.value, node.args[0])
        checks = re.search(r"close|equal|assert(?:Not)?In$|assert(?:Less|Greater)", name, re.IGNORECASE)
        if checks and len(node.args) > 1 and not any(isinstance(part, ast.Starred) for part in node.args[:2]):
            pair = ast.Call(ast.Name("__pair__", ast.Load()), [*node.args[:2], self._allowed(*node.args[:2])], [])
            node.args[:2] = [ast.Starred(pair, ast.Load())]
        return node

    def _call(self, name: str, left: ast.expr, right: ast.expr) -> ast.expr:
        parts = [ast.Constant(name), left, right, self._allowed(left, right)]
        return ast.Call(ast.Name("__compare__", ast.Load()), parts, [])

    def _plain(self, part: ast.expr) -> ast.expr:
        pair = ast.Call(ast.Name("__pair__", ast.Load()), [part, ast.Constant(None), self._allowed(part)], [])
        return ast.Subscript(pair, ast.Constant(0), ast.Load())

    def _allowed(self, *parts: ast.expr) -> ast.expr:
        """Names of classes whose objects may decide: the test's own, and those that it makes objects of, where these
        are compared as they are and not a method's result."""
        by_name = [isinstance(part, ast.Name) or isinstance(getattr(part, "func", None), ast.Name) for part in parts]
        by_method = [isinstance(getattr(part, "func", None), ast.Attribute) for part in parts]
        names = self.defined | self.made if any(by_name) and not any(by_method) else self.defined
        return ast.Tuple([ast.Constant(name) for name in sorted(names)], ast.Load())


def called_names(tests: Iterable[str]) -> set[str]:
    """Names that tests use and do not define themselves."""
    return {name for test in tests for name in _used(test) - set(_defined(test))}


def _can_fail(tree: ast.Module) -> bool:
    """Whether a statement that is reached from the top can be an assertion about something."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    definitions = {node.name: node for node in tree.body if isinstance(node, kinds)}
    own = {"exit", "quit", *(name for node in tree.body for name in _names(node))}  # others are the answer's
    waiting: list[ast.AST] = [node for node in tree.body if node not in definitions.values()]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Raise) or (isinstance(node, ast.Assert) and not _is_true(node.test)):
            return True
        name = getattr(node, "id", None) or getattr(node, "attr", None)
        if name in definitions:
            waiting.append(definitions.pop(name))
        elif name and _CHECKING.search(name) and (isinstance(node, ast.Attribute) or name in own):
            return True
        waiting += _run_parts(node)
    return False


def _is_true(test: ast.expr) -> bool:
    """Whether an assertion holds whatever the program does: `assert True`, and `assert (x == 1, "a message")`."""
    return bool(test.elts) if isinstance(test, ast.Tuple) else isinstance(test, ast.Constant) and bool(test.value)


def _run_parts(node: ast.AST) -> list[ast.AST]:
    """The parts of a node, without those that are never run and those whose failures are caught and forgotten."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Constant):
        return list(node.body if node.test.value else node.orelse)
    if isinstance(node, ast.Try) and any(_forgets(handler) for handler in node.handlers):
        return [*node.handlers, *node.orelse, *node.finalbody]
    return list(ast.iter_child_nodes(node))


def _forgets(handler: ast.ExceptHandler) -> bool:
    """Whether it catches failed assertions and does nothing but pass, or print."""
    caught = _used(ast.unparse(handler.type)) if handler.type else {"Exception"}
    calls = [part for node in handler.body for part in _top_calls(node)]
    quiet = all(
        isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant | ast.Call))
        for node in handler.body
    )
    return bool(caught & _CATCHES_ALL) and quiet and all(ast.unparse(call.func) in ("print", "str") for call in calls)


def _tree(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _names(node: ast.stmt) -> list[str]:
    """Names that a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [(alias.asname or alias.name).split(".")[0] for alias in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]


def _defined(source: str) -> list[str]:
    tree = _tree(source)
    return [name for node in tree.body for name in _names(node)] if tree is not None else []


def _used(source: str) -> set[str]:
    tree = _tree(source)
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} if tree is not None else set()


def _bare_code(text: str) -> str | None:
    """Python between prose: from the first line that starts a definition, without what follows it and is none."""
    lines = text.split("\n")
    starts = [at for at, line in enumerate(lines) if re.match(r"(?:def|class|import|from|async|@)\b|@", line)]
    if not starts:
        return None
    for stop in range(len(lines), starts[0], -1):
        if _tree(candidate := "\n".join(lines[starts[0] : stop])) is not None:
            return candidate
    return None
