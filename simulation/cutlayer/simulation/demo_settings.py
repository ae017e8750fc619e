"""What a demo is called with, checked at once, and the commands that follow from it."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from cutlayer.broker.broker_options import BrokerKind
from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.errors import SettingsError
from cutlayer.compression import CodecError, codec_from_name
from cutlayer.simulation.demo_processes import Command, console_script

__all__ = ["WORKER", "DemoSettings", "agent_commands", "make_run_folder", "worker_command"]

WORKER: Final = "worker-0"
DATA: Final = "demo:digits"
DEFAULT_NAME: Final = "demo"
MAX_AGENTS: Final = 64
"""Processes on one machine."""
BROKER_KINDS: Final[dict[str, BrokerKind]] = {"auto": "auto", "embedded": "amqtt", "mosquitto": "mosquitto"}
MODES: Final = ("asynchronous", "synchronous")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # what a run may be called (cutlayer.broker.manifest)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """A demo.

    Attributes:
        name: Name of the run and of its folder; None picks a free one.
        agents: Number of agents.
        epochs: Passes of each agent over its samples; None for what the run settings say.
        seed: Seed; None for what the run settings say.
        alpha: Concentration of the Dirichlet partition over the agents, smaller is more skewed; 0 for an even one.
        mode: Kind of window; None for what the run settings say.
        codec: Codec of activations; `identity` goes for all tensors. None for what the run settings say.
        broker: `embedded`, `mosquitto`, `auto`, or the URL of a running broker.
        run_file: Run settings (TOML).
        output: Folder of all runs.
        data_options: Further options of the data set, `KEY=VALUE`.
        run_settings: Further run settings, `SECTION.KEY=VALUE`.

    Raises:
        SettingsError: When a value cannot work, naming the flag and the fix.
    """

    name: str | None = None
    agents: int = 4
    epochs: int | None = None
    seed: int | None = None
    alpha: float = 0.5
    mode: str | None = None
    codec: str | None = None
    broker: str = "embedded"
    run_file: Path = Path("examples/digits.toml")
    output: Path = Path("runs")
    data_options: tuple[str, ...] = ()
    run_settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise SettingsError(
                f"--name {self.name!r} cannot be a run's", "use letters, digits, '.', '_' and '-', at most 64"
            )
        if not 1 <= self.agents <= MAX_AGENTS:
            raise SettingsError(f"--agents is {self.agents}", f"use 1 to {MAX_AGENTS}")
        if not 0 <= self.alpha < float("inf"):
            raise SettingsError(
                f"--alpha is {self.alpha}", "use a number above 0 (0.5 is skewed), or 0 for an even split"
            )
        if self.mode is not None and self.mode not in MODES:
            raise SettingsError(f"--mode {self.mode!r} is unknown", f"use {' or '.join(MODES)}")
        if not self.run_file.is_file():
            raise SettingsError(
                f"no run settings {self.run_file}",
                "start the demo in the folder of the clone, or name a file with --run",
            )
        if self.codec is not None:
            try:
                codec_from_name(self.codec)
            except CodecError as error:
                raise SettingsError(f"--codec: {error}", "name one of them") from error
        if self.broker_kind is None:
            BrokerSettings(url=self.broker)

    @property
    def broker_kind(self) -> BrokerKind | None:
        """The broker to start, or None where one runs already."""
        return BROKER_KINDS.get(self.broker)

    @property
    def topics(self) -> tuple[str, ...]:
        """The agents' topics."""
        return tuple(f"clinic/{index:02d}" for index in range(self.agents))


def make_run_folder(settings: DemoSettings) -> tuple[DemoSettings, Path]:
    """Make the run's folder, and return the settings with the name that it got.

    Raises:
        SettingsError: When the name asked for is taken, or the folder cannot be made.
    """
    wanted = settings.name or DEFAULT_NAME
    names = itertools.chain([wanted], (f"{wanted}-{number}" for number in itertools.count(2)))
    for name in names:
        folder = settings.output / name
        try:
            folder.mkdir(parents=True)
        except FileExistsError as error:
            if settings.name is not None:
                raise SettingsError(
                    f"--name {name}: {folder} exists", "choose another name, leave --name out, or delete the folder"
                ) from error
            continue
        except OSError as error:
            raise SettingsError(f"cannot make {folder}: {error.strerror}", "choose another --output") from error
        return replace(settings, name=name), folder
    raise AssertionError("the names never end")


def worker_command(settings: DemoSettings, broker_url: str, folder: Path) -> Command:
    """Return the command line of the server worker.

    Args:
        settings: The demo, with its name.
        broker_url: Where the broker is.
        folder: The run's folder.
    """
    assert settings.name is not None, "make_run_folder gives it one"
    arguments = ["start", "--run", str(settings.run_file), "--broker", broker_url, "--name", WORKER]
    arguments += ["--output", str(folder), "--min-agents", str(settings.agents), "--http-port", "0"]
    for flag, number in (("--seed", settings.seed), ("--epochs", settings.epochs)):
        if number is not None:
            arguments += [flag, str(number)]
    for pair in (f"run.name={settings.name}", *_window_settings(settings), *settings.run_settings):
        arguments += ["--set", pair]
    return Command(WORKER, console_script("server-worker"), tuple(arguments), f"{WORKER}.log")


def agent_commands(settings: DemoSettings, broker_url: str) -> list[Command]:
    """Return the command lines of the edge agents.

    Args:
        settings: The demo.
        broker_url: Where the broker is.
    """
    program = console_script("edge-agent")
    options = [f"alpha={settings.alpha:g}"] if settings.alpha else []
    options += settings.data_options
    commands = []
    for index, topic in enumerate(settings.topics):
        arguments = ["start", "--topic", topic, "--broker", broker_url, "--data", DATA]
        arguments += ["--shard", f"{index}/{settings.agents}"]
        for option in options:
            arguments += ["--data-option", option]
        commands.append(Command(f"agent {topic}", program, tuple(arguments), f"agent-{topic.replace('/', '-')}.log"))
    return commands


def _window_settings(settings: DemoSettings) -> list[str]:
    pairs = [f"window.mode={settings.mode}"] if settings.mode is not None else []
    if settings.codec is not None:
        kinds: tuple[Literal["activations", "activation_gradients", "outputs", "output_gradients"], ...]
        kinds = ("activations", "activation_gradients")
        if settings.codec.partition("+")[0] == "identity":
            # Who asks for exact tensors means all of them.
            kinds = (*kinds, "outputs", "output_gradients")
        pairs += [f"codecs.{kind}={settings.codec}" for kind in kinds]
    return pairs
