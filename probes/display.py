"""How fitted values look in a terminal and in a notebook: short numbers, a small table."""

import html
from collections.abc import Mapping


def short(value: object) -> str:
    """Return a number with three digits; a list of numbers by its smallest and largest."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list) and value:
        numbers = [item for item in value if isinstance(item, int | float)]
        return f"{short(min(numbers))}..{short(max(numbers))}" if numbers else f"{len(value)} items"
    return str(value)


def table(caption: str, rows: Mapping[str, object]) -> str:
    """Return an HTML table of two columns, everything in it escaped."""
    cells = "".join(
        f"<tr><th>{html.escape(key)}</th><td>{html.escape(short(item))}</td></tr>"
        for key, item in rows.items()
    )
    return f"<table><caption>{html.escape(caption)}</caption>{cells}</table>"
