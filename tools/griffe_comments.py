"""Extensions of griffe for the docstrings here: comments behind fields, `name: meaning` lines of arguments."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path
from typing import Any

import griffe


class TrailingComments(griffe.Extension):
    """Gives attributes without a docstring the comment at the end of their last line."""

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, agent: Any, **kwargs: Any) -> None:
        if attr.docstring is not None or not isinstance(node, ast.AST):
            return
        if not isinstance(attr.filepath, Path) or attr.endlineno is None:
            return
        comment = _comment_of(attr.lines_collection[attr.filepath][attr.endlineno - 1])
        if comment:
            attr.docstring = griffe.Docstring(comment, lineno=attr.endlineno, parent=attr)


class ArgumentLists(griffe.Extension):
    """Makes a list of the lines `name: meaning` of a function's arguments, which Markdown would run together."""

    def on_function_instance(self, *, func: griffe.Function, **kwargs: Any) -> None:
        if func.docstring is None:
            return
        names = "|".join(re.escape(parameter.name.lstrip("*")) for parameter in func.parameters)
        items = re.compile(rf"^({names})((?:, \w+)*): ", re.M)
        func.docstring.value = items.sub(r"- `\1\2`: ", func.docstring.value)


def _comment_of(line: str) -> str:
    """The comment at the end of a line, without its mark and without notes to tools."""
    found = ""
    try:
        for token in tokenize.generate_tokens(io.StringIO(line.strip()).readline):
            found = token.string if token.type == tokenize.COMMENT else found
    except (tokenize.TokenError, IndentationError):  # the end of a longer expression
        pass
    text = found.removeprefix("#").strip()
    return "" if text.startswith(("type:", "noqa", "fmt:")) else text
