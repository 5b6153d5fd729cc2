"""What a command returns, and tables as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Output(NamedTuple):
    """The result of a command: `text` for people, `record` for --json. Without text, nothing is printed."""

    text: str
    record: Any


def facts(record: Mapping[str, Any]) -> Output:
    """A result of named values, a line for each."""
    width = max(map(len, record))
    return Output("\n".join(f"{name:<{width}}  {value}" for name, value in record.items()), dict(record))


def tab_separated(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A line for each row under a line of headings; floats with six digits."""
    lines = ["\t".join(columns)]
    for row in rows:
        cells = (row[column] for column in columns)
        lines.append("\t".join(f"{cell:.6g}" if isinstance(cell, float) else str(cell) for cell in cells))
    return "\n".join(lines)
