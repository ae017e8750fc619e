"""The `cutlayer` command: the demo, a broker to try things with, and reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cutlayer.broker.broker_cli import app as broker_app
from cutlayer.broker.command_line import EXIT_CODES, VersionOption, configure_logging, run_app

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    epilog=EXIT_CODES,
)
app.add_typer(broker_app, name="broker")

Debug = Annotated[bool, typer.Option("--debug", help="Everything, and tracebacks.")]


@app.callback()
def _group(version: VersionOption = False) -> None:
    """Fine-tune one multimodal transformer across sites that may not share data, over MQTT.

    `cutlayer demo` shows all of it on this machine. By hand, in three terminals:

    `cutlayer broker start`

    `server-worker start --run examples/digits.toml`

    `edge-agent start --topic clinic/07 --data demo:digits --shard 0/4`
    """


@app.command(epilog=f"{EXIT_CODES} The demo exits 1 when one of its processes fails, and shows its last words.")
def demo(
    name: Annotated[
        str | None, typer.Option(help="Name of the run and its folder; demo, demo-2, ... when left out.")
    ] = None,
    agents: Annotated[int, typer.Option(help="Number of edge agents.")] = 4,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes of each agent over its samples; else as --run says.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, data order and the split.")] = 0,
    alpha: Annotated[
        float, typer.Option(help="Skew of labels over agents (Dirichlet): smaller is more skewed, 0 an even split.")
    ] = 0.5,
    mode: Annotated[str | None, typer.Option(help="asynchronous or synchronous windows; else as --run says.")] = None,
    codec: Annotated[
        str | None, typer.Option(help="Codec of activations, such as int8+zstd or identity; else as --run says.")
    ] = None,
    broker: Annotated[
        str, typer.Option(help="embedded, mosquitto, auto (Mosquitto where installed), or mqtt://HOST:PORT.")
    ] = "embedded",
    run: Annotated[Path, typer.Option("--run", help="Run settings (TOML).")] = Path("examples/digits.toml"),
    output: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    data_option: Annotated[
        list[str] | None, typer.Option(help="Option of the data set as KEY=VALUE; may be repeated.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Run setting as SECTION.KEY=VALUE; may be repeated.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but the path of run.json.")] = False,
    no_live: Annotated[bool, typer.Option("--no-live", help="Lines instead of a table that redraws itself.")] = False,
    debug: Debug = False,
) -> None:
    """Train one transformer on spoken and written digits: a broker, a server worker and several edge agents.

    Each is a process of its own, started through its real command line, and logs to runs/NAME/logs. At the end
    runs/NAME has run.json and report.html; the path of run.json is the last line printed.

    **Examples**

    `cutlayer demo`

    `cutlayer demo --agents 8 --alpha 0.1 --epochs 5`

    `cutlayer demo --mode synchronous --codec identity --broker mosquitto --name exact`
    """
    configure_logging("text", quiet=True, debug=debug)
    from rich.console import Console

    from cutlayer.simulation.demo import run_demo
    from cutlayer.simulation.demo_settings import DemoSettings

    console = Console(quiet=quiet)
    path = run_demo(
        DemoSettings(
            name=name,
            agents=agents,
            epochs=epochs,
            seed=seed,
            alpha=alpha,
            mode=mode,
            codec=codec,
            broker=broker,
            run_file=run,
            output=output,
            data_options=tuple(data_option or ()),
            run_settings=tuple(settings or ()),
        ),
        console,
        live=console.is_terminal and not no_live and not quiet,
    )
    typer.echo(path)


@app.command()
def report(
    run_json: Annotated[Path, typer.Argument(metavar="RUN_JSON", help="A run.json.")],
    output: Annotated[
        Path | None, typer.Option(help="File to write; report.html beside the run.json when left out.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write the HTML report of a finished run again; its path is printed.

    **Examples**

    `cutlayer report runs/demo/run.json`

    `cutlayer report runs/demo/run.json --output /tmp/report.html`
    """
    configure_logging("text", quiet=True, debug=debug)
    from cutlayer.broker.errors import SettingsError
    from cutlayer.dashboards.report import render_report
    from cutlayer.dashboards.run_record import load_run
    from cutlayer.simulation.demo import REPORT_FILE, write_text

    document = render_report(load_run(run_json))
    path = output or run_json.with_name(REPORT_FILE)
    try:
        write_text(path, document)
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error.strerror}", "choose another --output") from error
    typer.echo(path)


def main() -> None:
    """Run the command line."""
    run_app(app, name="cutlayer")
