"""What a run says of itself before it begins, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cutlayer.broker.command_line import printable
from cutlayer.dashboards.units import count_text
from cutlayer.server_worker.disclosure import Disclosure, Tuned

__all__ = ["disclosure_view"]


def disclosure_view(disclosure: Disclosure) -> RenderableType:
    """Return the block that begins a run."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("sent", "", "shape", "codec", "when"):
        table.add_column(name)
    for sent in disclosure.sent:
        shape = " x ".join(map(str, sent.shape))
        table.add_row(Text(printable(sent.what)), sent.direction, shape, Text(printable(sent.codec)), sent.when)
    return Group(
        _tuned(disclosure.tuned),
        table,
        *_listed("The server can infer (codecs change nothing about that):", disclosure.server_can_infer),
        *_listed("What stays at a site:", disclosure.stays),
    )


def _tuned(tuned: Tuned) -> Text:
    trained, all_of_them = count_text(tuned.trained_parameters), count_text(tuned.all_parameters)
    share = tuned.trained_parameters / tuned.all_parameters
    lines = [
        f"  {tuned.mode}: {trained} of {all_of_them} parameters of the encoder train ({share:.1%}): {tuned.what}",
        f"  tokenizers: {count_text(tuned.tokenizer_parameters)} parameters, {tuned.tokenizers}",
    ]
    if tuned.mode in ("last", "frozen"):
        lines.append(
            "  gradients go back through all blocks, since what stands before them trains"
            if tuned.goes_back_through_all
            else "  frozen blocks cost a forward pass alone"
        )
    return Text.assemble(("Tuning", "bold"), "\n" + "\n".join(lines))


def _listed(title: str, sentences: Sequence[str]) -> list[RenderableType]:
    grid = Table.grid(padding=(0, 1))
    for sentence in sentences:
        grid.add_row(" -", Text(printable(sentence)))
    return [Text(title, style="bold"), grid]
