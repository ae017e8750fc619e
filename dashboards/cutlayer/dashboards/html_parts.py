"""What the reports' pages are put together from: one file each that needs nothing else, neither network nor script.

Names in it come from peers (an agent chooses its own topic), so every text is escaped, and a content security
policy forbids whatever might get through.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Final

from cutlayer.dashboards.report_style import STYLE_SHEET

__all__ = ["Row", "flattened", "folded", "page", "pair", "section", "table"]

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

Row = Sequence[str]


def page(title: str, parts: Iterable[str]) -> str:
    """Return a self-contained HTML document; `parts` are HTML."""
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>Cutlayer: {escape(title)}</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n<link rel="icon" href="data:,">\n'
        f"<style>{STYLE_SHEET}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def section(title: str, content: str, note: str = "") -> str:
    """Return a card: a heading, HTML below it, and a note."""
    text = f"<p>{escape(note)}</p>" if note else ""
    return f"<section><h2>{escape(title)}</h2>{content}{text}</section>"


def pair(*sections: str) -> str:
    """Return cards side by side where there is room."""
    return f'<div class="pair">{"".join(sections)}</div>'


def folded(title: str, head: Row, rows: Iterable[Row]) -> str:
    """Return a table that opens when its title is clicked."""
    shown = table(head, rows, num_names=len(head), kind="words")
    return f"<section><details><summary>{escape(title)}</summary>{shown}</details></section>"


def table(head: Row, rows: Iterable[Row], *, num_names: int = 1, kind: str = "counts") -> str:
    """Return a table whose first `num_names` columns are names, to the left; the others are numbers."""

    def line(cells: Row, tag: str) -> str:
        names = "".join(f'<{tag} class="name">{escape(cell)}</{tag}>' for cell in cells[:num_names])
        return f"<tr>{names}{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells[num_names:])}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table class="{kind}">{line(head, "th")}{body}</table></div>'


def flattened(settings: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as (dotted key, text), sorted."""
    rows: list[tuple[str, str]] = []
    for key, value in sorted(settings.items()):
        if isinstance(value, Mapping):
            rows += flattened(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value):
            rows.append((prefix + key, ", ".join(value)))
        else:
            rows.append((prefix + key, value if isinstance(value, str) else json.dumps(value, default=str)))
    return rows
