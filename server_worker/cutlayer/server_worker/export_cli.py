"""`server-worker export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cutlayer.broker.command_line import EXIT_CODES, configure_logging
from cutlayer.server_worker.cli_flags import RunId, parse_setting

__all__ = ["add_export"]


def add_export(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command(epilog=EXIT_CODES)(export)


def export(
    run: Annotated[Path, typer.Option("--run", help="Settings of the run (TOML).")],
    source: Annotated[
        Path | None,
        typer.Option("--from", help="The worker's output folder; runs/NAME of the run when left out.", file_okay=False),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--to", help="Folder of the model; `model` in the output folder when left out.", file_okay=False),
    ] = None,
    run_id: RunId = "",
    allow_untrained: Annotated[
        bool, typer.Option("--allow-untrained", help="Export a model of which nothing is trained yet, too.")
    ] = False,
    onnx: Annotated[bool, typer.Option("--onnx/--no-onnx", help="Write model.onnx, too.")] = True,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Settings that the run was started with, as SECTION.KEY=VALUE; may be repeated."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Warnings and errors only.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Everything, and tracebacks.")] = False,
) -> None:
    """Write the newest checkpoint as one model: tokenizers, encoder and head.

    As safetensors, with a loader that needs PyTorch, timm and safetensors alone; as ONNX, compared with it; and a model
    card of what the run knows. LoRA's additions go into the weights.

    **Example**

    `server-worker export --run examples/digits.toml --from runs/digits --to digits-model`
    """
    configure_logging("text", quiet=quiet, debug=debug)
    from cutlayer.server_worker.exporting import export_run

    overrides = dict(parse_setting(pair) for pair in settings or [])
    exported = export_run(
        run, overrides, source, folder, with_onnx=onnx, run_id=run_id, may_be_untrained=allow_untrained
    )
    for name in exported.files:
        typer.echo(str(exported.folder / name))
    if exported.onnx_difference is not None and not quiet:
        typer.echo(f"ONNX differs from PyTorch by {exported.onnx_difference:.1e} at most, on random samples", err=True)
