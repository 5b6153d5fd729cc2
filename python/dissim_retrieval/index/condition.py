"""What is checked of an SQL condition before Lance reads it."""

from __future__ import annotations

import re

#: So many operators may be in a condition. Lance nests a call for each: a thousand can overflow its stack, and 500
#: take it seconds. A comparison is counted only if one is before it, as in ``a = b = c``.
MAX_OPERATORS = 100
#: What is counted or ends what is counted. Operators are after a value, so that the sign of a number is none.
PARTS = re.compile(r"[()]|\b(?:and|or)\b|[<>=!]+|(?<=[\w)\].'`])\s*(?:\|\||::|[-+*/%])", re.IGNORECASE)
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
    count, compared = 0, [False]  # for each open parenthesis, whether a comparison was there since AND or OR
    for part in PARTS.findall(without_strings(condition)):
        if part == "(":
            compared.append(False)
        elif part == ")":
            compared.pop()
            if not compared:
                raise ValueError("a parenthesis is closed that was not opened")
        elif part.lower() in ("and", "or"):
            compared[-1] = False
        elif part[0] in "<>=!":
            count += compared[-1]
            compared[-1] = True
        else:
            count += 1
    if count > MAX_OPERATORS:
        raise ValueError(
            f"expected at most {MAX_OPERATORS} operators + - * / % || :: and comparisons after another, as in"
            f" a = b = c, got {count}; filter by ids"
        )
    return f"({condition}\n)"  # on a line of its own, because the condition may end with a comment
