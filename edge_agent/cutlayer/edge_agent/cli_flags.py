"""Flags that the commands of `edge-agent` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cutlayer.broker.errors import SettingsError
from cutlayer.edge_agent.rate_text import RATE_FORMS

__all__ = [
    "ConnectTimeout",
    "Data",
    "DataOption",
    "Debug",
    "HeadFile",
    "LogFormat",
    "MaxUnreadable",
    "MaxUplink",
    "OwnState",
    "OwnTokenizer",
    "OwnWeights",
    "Quiet",
    "ShardText",
    "Topic",
    "client_identifier",
    "data_options",
    "parse_options",
]

Topic = Annotated[
    str, typer.Option(help="This agent's own MQTT topic and identity, such as clinic/07.", envvar="CUTLAYER_TOPIC")
]
Data = Annotated[
    str,
    typer.Option(
        help="This site's data: a folder or file with a table (data.csv, data.parquet), a folder a class, a .npz file, "
        "`package.module:factory` (docs/data.md); or demo:digits (spoken and written digits, made on the spot)."
    ),
]
ShardText = Annotated[str, typer.Option("--shard", help="Which part of the data set is this site's: INDEX/COUNT.")]
DataOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Option of the data as KEY=VALUE, such as image=scan_path (the column with what the run calls image), "
        "fit=pad or alpha=0.5 (label skew); may be repeated."
    ),
]
MaxUnreadable = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        help="Share of the data's files that may be unreadable: they are named and left out. 0.01 when left out.",
    ),
]
MaxUplink = Annotated[
    str | None,
    typer.Option(
        help=f"Send no more than this on average, such as {RATE_FORMS}: new microbatches wait for it. With a ladder of "
        "codecs in the run the agent goes down in precision, as far as the run allows, before it waits.",
        envvar="CUTLAYER_MAX_UPLINK",
    ),
]
HeadFile = Annotated[
    Path | None,
    typer.Option(
        "--head",
        help="File of this agent's own head (safetensors, never sent), where the run has its heads at the agents "
        "([model] head). `start` saves it there with each step, and reads it again when the agent is started again; "
        "`evaluate` and `predict` only read it.",
        dir_okay=False,
    ),
]
OwnTokenizer = Annotated[
    list[str] | None,
    typer.Option(
        "--tokenizer",
        help="This site's own tokenizer of a modality of kind tokens, as MODALITY=package.module:callable: called with "
        "specification, width and seed, it returns a torch.nn.Module (docs/tokenizers.md). May be repeated.",
    ),
]
OwnWeights = Annotated[
    list[str] | None,
    typer.Option("--tokenizer-weights", help="What it begins with, as MODALITY=FILE (safetensors). May be repeated."),
]
OwnState = Annotated[
    list[str] | None,
    typer.Option(
        "--tokenizer-state",
        help="Where it keeps what it learns, as MODALITY=FILE, in a run that trains tokenizers: read again when the "
        "agent is started again. May be repeated.",
    ),
]
ConnectTimeout = Annotated[float, typer.Option(help="Seconds that the first connection is tried.", min=0.0)]
LogFormat = Annotated[str, typer.Option(help="text or json (one object a line).")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Warnings and errors only.")]
Debug = Annotated[bool, typer.Option("--debug", help="Everything, and tracebacks.")]


def client_identifier(topic: str, incarnation: int) -> str:
    """Return an agent's MQTT client identifier, without a slash, which ACL patterns refuse.

    Each process has its own: two of one topic could otherwise only take the MQTT session from each other, and the
    first could not tell the second that the topic is taken. Sessions end with their connections, so none stays behind.
    """
    return f"cutlayer-agent-{topic.replace('/', ':')}-{incarnation}"


def parse_options(pairs: list[str]) -> dict[str, object]:
    """Read a data set's options, `KEY=VALUE` each.

    Raises:
        SettingsError: When one has another form.
    """
    options: dict[str, object] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise SettingsError(f"--data-option {pair!r} is no KEY=VALUE", "write it as in --data-option alpha=0.5")
        options[key] = value
    return options


def data_options(pairs: list[str] | None, max_unreadable: float | None) -> dict[str, object]:
    """Return a data set's options, as both of its flags say.

    Raises:
        SettingsError: As `parse_options`.
    """
    options = parse_options(pairs or [])
    return options if max_unreadable is None else {**options, "max_unreadable": max_unreadable}
