"""The `cutlayer plan` command."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Annotated, cast

import typer

from cutlayer.broker.broker_flags import DEFAULT_MAX_PACKET_BYTES, MaxPacketBytes
from cutlayer.broker.command_line import configure_logging
from cutlayer.broker.errors import SettingsError

__all__ = ["plan"]

ACTIVATION_CHOICES = ("as-the-run", "every-step")
PROTOCOLS = ("5", "3.1.1")
WORKER = "worker-0"

RunFile = Annotated[Path, typer.Option("--run", help="Run settings (TOML).")]
Data = Annotated[
    str | None,
    typer.Option(
        help="Data of the agents, as `edge-agent start --data` takes them (docs/data.md), divided over them; what the "
        "run settings name when left out."
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        min=1, help="Instead of data: training samples of all agents. Tensors are then reckoned at their largest."
    ),
]
TestSamples = Annotated[
    int | None, typer.Option(min=0, help="With --samples: test samples of all agents; a fifth of them when left out.")
]
Agents = Annotated[int, typer.Option(min=1, max=10_000, help="Agents; the data are divided over them.")]
DataOption = Annotated[
    list[str] | None,
    typer.Option(help="Option of the data set as KEY=VALUE, such as alpha=0.5 (label skew); may be repeated."),
]
Activations = Annotated[
    str, typer.Option(help="`as-the-run`, or `every-step` for sites that let nobody keep their activations.")
]
LinkText = Annotated[
    str, typer.Option("--link", help="A site's link as UP/DOWN: 5mbit/50mbit, 600kbit/6mbit, 1.5MB/10MB.")
]
Hours = Annotated[
    float | None, typer.Option(min=0.0, help="Hours that the run will take, for its reports; estimated when left out.")
]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of weights, data order and splits.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes of each agent over its own samples.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Any run setting as SECTION.KEY=VALUE; may be repeated.")]
FedRounds = Annotated[
    int | None, typer.Option(min=1, help="Rounds of federated averaging; one an epoch when left out.")
]
FedBlocks = Annotated[
    list[int] | None, typer.Option(min=1, help="Federated averaging of so many last blocks; may be repeated. 1 and 2.")
]
FedRank = Annotated[int, typer.Option(min=1, help="Rank of LoRA in federated averaging.")]
MqttVersion = Annotated[str, typer.Option("--mqtt", help="MQTT version: 5 or 3.1.1.", metavar="VERSION")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object, in bytes and seconds.")]
Debug = Annotated[bool, typer.Option("--debug", help="Everything, and tracebacks.")]


def plan(
    run: RunFile = Path("examples/digits.toml"),
    data: Data = None,
    samples: Samples = None,
    test_samples: TestSamples = None,
    agents: Agents = 4,
    data_option: DataOption = None,
    activations: Activations = "as-the-run",
    link: LinkText = "5mbit/50mbit",
    hours: Hours = None,
    seed: Seed = None,
    epochs: Epochs = None,
    settings: Set = None,
    fed_rounds: FedRounds = None,
    fed_blocks: FedBlocks = None,
    fed_rank: FedRank = 8,
    max_packet_bytes: MaxPacketBytes = DEFAULT_MAX_PACKET_BYTES,
    mqtt: MqttVersion = "5",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say what a run will cost before anything runs: bytes, time on a link, an agent's work and memory.

    Builds the run's model, opens each agent's data and encodes some microbatches of it, so that sizes are measured and
    not guessed; then stands beside federated averaging of the same model and sending the raw data, and says which is
    cheaper. Nothing is sent. docs/plan.md says what is reckoned, and how well it fits real runs.

    **Examples**

    `cutlayer plan --run examples/digits.toml --data demo:digits --agents 4 --data-option alpha=0.5`

    `cutlayer plan --run my.toml --samples 100000 --agents 20 --link 5mbit/50mbit --hours 12`

    `cutlayer plan --run examples/digits.toml --activations every-step --json > plan.json`
    """
    configure_logging("text", quiet=True, debug=debug)
    # As the agent does, whose processor time is measured here.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from cutlayer.edge_agent.rate_text import parse_rate

    if activations not in ACTIVATION_CHOICES:
        raise SettingsError(f"--activations {activations!r} is unknown", f"use {' or '.join(ACTIVATION_CHOICES)}")
    if mqtt not in PROTOCOLS:
        raise SettingsError(f"--mqtt {mqtt!r} is unknown", f"use {' or '.join(PROTOCOLS)}")
    if samples is not None and (data is not None or data_option):
        raise SettingsError("--samples stands in the place of data", "leave out --data and --data-option, or --samples")
    if samples is None and test_samples is not None:
        raise SettingsError("--test-samples is for a plan without data", "give --samples, too, or leave it out")
    up, slash, down = link.partition("/")
    if not slash:
        raise SettingsError(f"--link {link!r} is not UP/DOWN", "write it as in --link 5mbit/50mbit")
    up_rate, down_rate = parse_rate(up, name="--link, up"), parse_rate(down, name="--link, down")

    from rich.console import Console

    from cutlayer.broker.mqtt_packets import Protocol
    from cutlayer.edge_agent.cli import parse_options
    from cutlayer.edge_agent.datasets import DATA_FORMS
    from cutlayer.server_worker.cli import parse_setting
    from cutlayer.server_worker.settings import load_run_settings
    from cutlayer.simulation.plan import Conditions
    from cutlayer.simulation.plan_comparison import FederatedChoice
    from cutlayer.simulation.plan_sites import CountChoice, DataChoice
    from cutlayer.simulation.plan_text import as_json as to_json
    from cutlayer.simulation.plan_text import print_plan
    from cutlayer.simulation.plan_wire import Link

    overrides = {**dict(parse_setting(pair) for pair in settings or []), "run.seed": seed, "run.epochs": epochs}
    run_settings = load_run_settings(run, overrides)
    choice: DataChoice | CountChoice
    if samples is None:
        name = data or run_settings.data.name
        if not name:
            raise SettingsError(
                f"neither --data nor {run} names the agents' data",
                f"give --data ({DATA_FORMS}), or --samples for a plan without data",
            )
        choice = DataChoice(name, parse_options(data_option or []), agents)
    else:
        choice = CountChoice(samples, test_samples, agents)
    console = Console()
    progress = console if console.is_terminal and not as_json else Console(stderr=True)
    with contextlib.ExitStack() as stack:
        status = stack.enter_context(progress.status("building the model ...")) if progress.is_terminal else None

        def announce(what: str) -> None:
            if status is not None:
                status.update(f"{what} ...")

        from cutlayer.simulation.plan_model import plan_model
        from cutlayer.simulation.plan_report import make_report

        model = plan_model(run_settings)
        announce("timing a forward pass")
        report = make_report(
            run_settings,
            model,
            choice,
            Conditions(
                Link(cast("Protocol", mqtt), max_packet_bytes),
                run_settings.worker.credits,
                run_settings.worker.lease_s,
                may_be_kept=activations != "every-step",
                up_rate=up_rate,
                down_rate=down_rate,
                duration_s=hours * 3_600 if hours else None,
                forward_s=model.measured_forward_s(),
                step_passes=model.step_passes(),
            ),
            FederatedChoice(
                fed_rounds, tuple(fed_blocks) if fed_blocks else _some_blocks(len(model.sizes.blocks)), fed_rank
            ),
            worker=WORKER,
            announce=announce,
        )
    if as_json:
        typer.echo(json.dumps(to_json(report), indent=2, allow_nan=False))
    else:
        print_plan(console, report)


def _some_blocks(depth: int) -> tuple[int, ...]:
    return tuple(range(1, min(depth, 2) + 1))
