"""What a command returns, and tables as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Output(NamedTuple):
    """The result of a command: `text` for people, `record` for --json. Without text, nothing is printed."""

    text: str
    record: Any


def facts(shown: Mapping[str, Any], record: Mapping[str, Any]) -> Output:
    """A line for each of the values that are `shown`, under their names."""
    width = max(map(len, shown))
    return Output("\n".join(f"{name:<{width}}  {value}" for name, value in shown.items()), dict(record))


def tab_separated(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A line for each row under a line of headings; floats with six digits, text with ESCAPES."""
    lines = ["\t".join(columns)]
    lines += ["\t".join(_cell(row[column]) for column in columns) for row in rows]
    return "\n".join(lines)


#: What would end a cell or a line, and the backslash.
ESCAPES = str.maketrans({"\t": r"\t", "\n": r"\n", "\r": r"\r", "\\": r"\\"})


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value).translate(ESCAPES)
