"""The worker's live page: one HTML file that holds its style, its scripts and its chart library.

The parts stand in `assets/` and `vendor/`. The page loads nothing but `/api/stats.json` from where it came from, and
its content security policy says so: scripts and styles run by their hashes only, so that a name that a peer has chosen
can never become code.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

__all__ = ["SCRIPTS", "STYLES", "LivePage", "load_live_page"]

STYLES: Final = ("vendor/uPlot.min.css", "assets/page.css")
SCRIPTS: Final = (
    "vendor/uPlot.iife.min.js",
    "assets/units.js",
    "assets/dom.js",
    "assets/store.js",
    "assets/numbers.js",
    "assets/charts.js",
    "assets/page.js",
)
"""In the order in which they run."""


@dataclass(frozen=True, slots=True)
class LivePage:
    """The page.

    Attributes:
        html: All of it.
        policy: Its content security policy, for the header of that name.
    """

    html: bytes
    policy: str


def load_live_page() -> LivePage:
    """Put the page together."""
    style = "\n".join(_text(name) for name in STYLES)
    script = "\n".join(_text(name) for name in SCRIPTS)
    html = _text("assets/page.html").replace("/*STYLE*/", style).replace("/*SCRIPT*/", script)
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(style)}'",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    return LivePage(html.encode(), policy)


def _text(name: str) -> str:
    text = files("cutlayer.dashboards").joinpath(name).read_text(encoding="utf-8")
    assert "</script" not in text or name.endswith(".html"), f"{name} would end the script that holds it"
    return text


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
