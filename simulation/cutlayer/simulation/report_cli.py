"""The `cutlayer report` command: the page of one run, or several runs beside each other."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Annotated

import typer

from cutlayer.broker.command_line import configure_logging
from cutlayer.broker.errors import SettingsError

__all__ = ["report", "require_plots"]

COMPARISON_FILE = "comparison.html"

Runs = Annotated[list[Path], typer.Argument(metavar="RUN_JSON...", help="One run.json, or several to compare.")]
Output = Annotated[
    Path | None,
    typer.Option(
        help="HTML file to write; report.html or, for several, comparison.html beside the first run.json when left out."
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the figures as JSON; HTML is then written only with --output.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Everything, and tracebacks.")]


def report(run_json: Runs, output: Output = None, as_json: AsJson = False, debug: Debug = False) -> None:
    """Write the HTML report of a finished run again, or compare several runs.

    Several are compared in a table here and, with plots, on one self-contained HTML page: accuracy, bytes, time,
    what no codec and federated averaging would have moved, and the settings that differ. A run is called by its
    folder. The path of what is written is the last line printed.

    **Examples**

    `cutlayer report runs/demo/run.json`

    `cutlayer report runs/demo/run.json runs/demo-2/run.json --output /tmp/comparison.html`

    `cutlayer report runs/*/run.json --json > comparison.json`
    """
    configure_logging("text", quiet=True, debug=debug)
    if not as_json or output is not None:
        require_plots()
    from rich.console import Console

    from cutlayer.dashboards.comparison import comparison_json, load_runs
    from cutlayer.dashboards.run_record import load_run

    # Told before anything is printed or written: half a comparison is none.
    runs = load_runs(run_json)
    if as_json:
        typer.echo(json.dumps(comparison_json(runs), indent=2, allow_nan=False))
        if output is None:
            return
    if len(runs) == 1:
        from cutlayer.dashboards.report import render_report
        from cutlayer.simulation.demo import REPORT_FILE

        path, document = output or run_json[0].with_name(REPORT_FILE), render_report(load_run(run_json[0]))
    else:
        from cutlayer.dashboards.comparison_report import render_comparison
        from cutlayer.dashboards.comparison_table import ComparisonTable

        path, document = output or run_json[0].with_name(COMPARISON_FILE), render_comparison(runs)
        if not as_json:
            Console().print(ComparisonTable(runs))
    _write(path, document)
    if not as_json:
        typer.echo(path)


def require_plots() -> None:
    """Check that plots can be drawn.

    Raises:
        SettingsError: When Matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise SettingsError(
            "matplotlib, which draws the report's plots, is not installed", "pip install 'cutlayer[server]'"
        )


def _write(path: Path, document: str) -> None:
    from cutlayer.simulation.demo import write_text

    try:
        write_text(path, document)
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error.strerror}", "choose another --output") from error
