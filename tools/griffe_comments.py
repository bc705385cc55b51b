"""An extension of griffe: the comment behind a field or constant is its documentation, as it is in `--help`."""

from __future__ import annotations

import ast
import io
import tokenize
from typing import Any

import griffe


class TrailingComments(griffe.Extension):
    """Gives attributes without a docstring the comment at the end of their last line."""

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, agent: Any, **kwargs: Any) -> None:
        if attr.docstring is not None or not isinstance(node, ast.AST):
            return
        last = attr.lines_collection[attr.filepath][(attr.endlineno or attr.lineno or 1) - 1]
        comment = _comment_of(last)
        if comment:
            attr.docstring = griffe.Docstring(comment, lineno=attr.endlineno, parent=attr)


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
