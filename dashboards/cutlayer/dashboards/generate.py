"""Writes what is generated from the catalogue, the boards and the alerts, into a checkout of this repository.

`python -m cutlayer.dashboards.generate` writes; with `--check` it only says what differs, and ends with 1 if anything
does.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from cutlayer.dashboards.alerts import rules_text
from cutlayer.dashboards.boards import BOARDS
from cutlayer.dashboards.grafana import dashboard_text
from cutlayer.dashboards.metrics_page import metrics_page

__all__ = ["generated_files", "main"]

ROOT: Final = Path(__file__).resolve().parents[3]
UID_PREFIX: Final = "cutlayer-"


def generated_files() -> dict[Path, str]:
    """Return each file's text, by its path in the repository."""
    files = {
        Path("dashboards") / f"{board.uid.removeprefix(UID_PREFIX)}.json": dashboard_text(board) for board in BOARDS
    }
    files[Path("dashboards/prometheus/rules/alerts.yml")] = rules_text()
    files[Path("docs/metrics.md")] = metrics_page()
    return files


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or compare them, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m cutlayer.dashboards.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, say what differs")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout (default: the one this module is in)")
    options = parser.parse_args(arguments)
    differing = [
        path
        for path, text in generated_files().items()
        if not (options.root / path).is_file() or (options.root / path).read_text(encoding="utf-8") != text
    ]
    for path in differing:
        if options.check:
            print(f"{path} differs: run `python -m cutlayer.dashboards.generate`", file=sys.stderr)
        else:
            (options.root / path).parent.mkdir(parents=True, exist_ok=True)
            (options.root / path).write_text(generated_files()[path], encoding="utf-8")
            print(f"wrote {path}")
    return int(options.check and bool(differing))


if __name__ == "__main__":
    sys.exit(main())
