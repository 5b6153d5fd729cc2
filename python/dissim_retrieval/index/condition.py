"""What is checked of an SQL condition before Lance reads it."""

from __future__ import annotations

import re

#: So many of OPERATORS may be in a condition. Lance nests a call for each, and a thousand can overflow its stack.
MAX_OPERATORS = 100
#: After a value, so that the sign of a number is none.
OPERATORS = re.compile(r"(?<=[\w)\]'`])\s*(?:\|\||::|[-+*/%])")
#: Strings, names in backticks, and comments, which do not nest.
QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|--[^\n]*|/\*.*?\*/""", re.DOTALL)


def without_strings(condition: str) -> str:
    """The condition without its comments, and with all strings empty. Names in backticks stay."""
    return QUOTED.sub(_replacement, condition)


def _replacement(found: re.Match) -> str:
    text = found[0]
    return text if text[0] == "`" else "''" if text[0] in "'\"" else " "


def in_parentheses(condition: str) -> str:
    """The condition in parentheses, because Lance ignores what comes after a condition, as LIMIT or a misspelled AND.

    Raises ValueError if a parenthesis of the condition would close these, or if it has too many operators.
    """
    text, depth = without_strings(condition), 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if depth < 0:
            raise ValueError("a parenthesis is closed that was not opened")
    count = len(OPERATORS.findall(text))
    if count > MAX_OPERATORS:
        raise ValueError(f"expected at most {MAX_OPERATORS} operators + - * / % || ::, got {count}; filter by ids")
    return f"({condition}\n)"  # on a line of its own, because the condition may end with a comment
