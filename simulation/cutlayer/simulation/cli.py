"""The `cutlayer` command: the demo, a broker to try things with, plans, a view of a run, and reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cutlayer.broker.broker_cli import app as broker_app
from cutlayer.broker.command_line import EXIT_CODES, VersionOption, configure_logging, run_app
from cutlayer.simulation.doctor_cli import doctor
from cutlayer.simulation.plan_cli import plan
from cutlayer.simulation.report_cli import report, require_plots
from cutlayer.simulation.top_cli import top

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    epilog=EXIT_CODES,
)
app.add_typer(broker_app, name="broker")
app.command(epilog=f"{EXIT_CODES} A doctor that finds no problem exits 0, whatever it warns of.")(doctor)
app.command(epilog=EXIT_CODES)(plan)
app.command(epilog=EXIT_CODES)(report)
app.command(epilog=f"{EXIT_CODES} With --once, 4 also stands for no run that reports itself in time.")(top)

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
    require_plots()
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
def simulate(
    agents: Annotated[int, typer.Option(min=1, max=10_000, help="Virtual agents.")] = 50,
    epochs: Annotated[int, typer.Option(min=1, help="Passes of each agent over its samples.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Fixes every fault: the same seed is the same run.")] = 0,
    mode: Annotated[str, typer.Option(help="asynchronous or synchronous windows.")] = "asynchronous",
    loss: Annotated[float, typer.Option(help="Share of packets that vanish.")] = 0.02,
    duplication: Annotated[float, typer.Option(help="Share of packets that arrive twice.")] = 0.05,
    reordering: Annotated[float, typer.Option(help="Share of packets that later ones overtake.")] = 0.1,
    delay_s: Annotated[float, typer.Option(help="Seconds that a packet takes at least.")] = 0.02,
    jitter_s: Annotated[float, typer.Option(help="Up to so many seconds more.")] = 0.1,
    kills: Annotated[int, typer.Option(min=0, help="Agents killed at random moments; they come back.")] = 5,
    debug: Debug = False,
) -> None:
    """Try the protocol with many virtual agents over bad links, in virtual time, and check the books.

    Real sessions, drivers and messages over an in-memory broker; the worker counts instead of computing. Ends with an
    error, and the seed that repeats it, if a step was committed twice or never.

    **Examples**

    `cutlayer simulate --agents 200 --seed 7`

    `cutlayer simulate --loss 0.2 --kills 20 --mode synchronous`
    """
    configure_logging("text", quiet=True, debug=debug)
    from cutlayer.broker.errors import SettingsError
    from cutlayer.broker.faults import LinkFaults
    from cutlayer.simulation.many_agents import Scenario
    from cutlayer.simulation.many_agents import simulate as run_scenario

    if mode not in ("asynchronous", "synchronous"):
        raise SettingsError(f"--mode {mode!r} is unknown", "use asynchronous or synchronous")
    faults = LinkFaults(loss=loss, duplication=duplication, reordering=reordering, delay_s=delay_s, jitter_s=jitter_s)
    result = run_scenario(
        Scenario(seed=seed, num_agents=agents, epochs=epochs, mode=mode, faults=faults, num_kills=kills)
    )
    typer.echo(
        f"{agents} agents, {result.virtual_s:.0f} virtual seconds: {result.num_steps} steps committed in "
        f"{result.num_windows} windows, each once;\n{result.num_repeats} messages sent again, "
        f"{result.num_duplicates} duplicates recognized, {result.num_kills} agents killed and back, "
        f"at most {result.most_live} microbatches at the worker"
    )


def main() -> None:
    """Run the command line."""
    run_app(app, name="cutlayer")
