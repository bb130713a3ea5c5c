"""The rows as a table: what passed, how long it took, what was measured, why it failed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd


def show_rows(console: Console, rows: Sequence[dict[str, Any]], *, separator: str = "; ") -> None:
    """Print a row per step, with what went wrong and its figures in the last column, separated."""
    table = Table("step", "", "s", "CPU s", "figures")
    for row in rows:
        texts = [f"{name} {number(value)}" for name, value in row["figures"].items()]
        if row["skipped"]:
            texts.insert(0, f"skipped: {row['skipped']}")
        if row["error"]:
            texts.insert(0, f"[red]{escape(row['error'])}[/]")
        times = [number(row[name]) for name in ("seconds", "cpu_seconds")]
        table.add_row(row["what"], verdict(row), *times, separator.join(texts))
    console.print(table)


def verdict(row: dict[str, Any]) -> str:
    """Describe whether a step passed."""
    return "[red]failed[/]" if not row["ok"] else "skipped" if row["skipped"] else "ok"


def number(value: Any) -> str:
    """Format a figure: three digits, or all those before the point; None as a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return escape(str(value))
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:.3g}"


def show(console: Console, rows: pd.DataFrame) -> None:
    """Print a table of written results, whose figures are JSON."""
    decoded = [{**row, "figures": json.loads(row["figures"])} for row in rows.to_dict("records")]
    show_rows(console, [{str(key): value for key, value in row.items()} for row in decoded])
