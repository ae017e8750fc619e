"""The screen of `cutlayer top`: the overview's panels, from a run's state, in as many columns as there is room for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from cutlayer.broker.command_line import printable
from cutlayer.broker.messages import RunPhase
from cutlayer.dashboards.overview_board import OVERVIEW
from cutlayer.dashboards.panel_text import panel_text
from cutlayer.dashboards.panels import Panel, Shape, Unit
from cutlayer.dashboards.units import bytes_text, count_text, duration_text, latency_text, percent_text
from cutlayer.simulation.top_drawing import STYLES, Glyphs, bar, beside, columns, fitted, sparkline
from cutlayer.simulation.top_state import AgentRow, Line, TopState

__all__ = ["TopScreen", "render"]

MIN_COLUMN: Final = 38
GAP: Final = 3
MAX_NAME: Final = 22
NUMBER_WIDTH: Final = 10
"""Such as 388.0 kB/s."""
MAX_LINES: Final = 12
"""Lines of one panel: peers name kinds of messages and sites."""
MAX_AGENTS: Final = 20
LATE_S: Final = 10.0
"""A worker that is online and silent so long after this command's start may not report at all."""
NOT_KNOWN: Final = "-"


class TopScreen:
    """A state as a rich renderable, as wide as the console; as high as `height`, or as it is long.

    Args:
        state: What to show.
        waited_s: Seconds since the command's start.
        height: Lines that there are; None for as many as it takes.
    """

    def __init__(self, state: TopState, *, waited_s: float = 0.0, height: int | None = None) -> None:
        self._state = state
        self._waited_s = waited_s
        self._height = height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines."""
        glyphs = Glyphs.of(ascii_only=options.ascii_only)
        lines = render(self._state, options.max_width, glyphs, waited_s=self._waited_s)
        if self._height is not None and len(lines) > self._height:
            num_more = len(lines) - self._height + 1
            lines = [*lines[: self._height - 1], Text(f"{num_more} more lines in a higher window", "dim")]
        for line in lines:
            if options.ascii_only:
                line.plain = line.plain.replace("\N{HORIZONTAL ELLIPSIS}", ".").encode("ascii", "replace").decode()
            yield line


def render(state: TopState, width: int, glyphs: Glyphs | None = None, *, waited_s: float = 0.0) -> list[Text]:
    """Return the screen's lines, none wider than `width`.

    Args:
        state: What to show.
        width: Cells in a line.
        glyphs: What bars are made of; blocks when left out.
        waited_s: Seconds since the command's start.
    """
    drawing = glyphs or Glyphs.of(ascii_only=False)
    lines = [*_head(state, width), *_notices(state, waited_s)]
    if state.times:
        lines += [Text(), *_headlines(state, width), Text(), *_numbers(state, width), Text()]
        count = max(min((width + GAP) // (MIN_COLUMN + GAP), 3), 1)
        column = (width - GAP * (count - 1)) // count
        shown = [panel for panel in OVERVIEW.panels if panel.shape is not Shape.NUMBER]
        blocks = [_panel(state, panel, column, drawing) for panel in shown]
        lines += beside(columns(blocks, count), column, GAP)
        if state.agents:
            lines += [Text(), *_agents(state.agents, width, drawing)]
    return [_cut(line, width) for line in lines]


def _head(state: TopState, width: int) -> Iterator[Text]:
    line = Text.assemble(("cutlayer top", "bold"), "  ")
    manifest = state.manifest
    if manifest is None:
        yield line.append(printable(state.url), "dim")
        return
    num_online = sum(worker.is_online for worker in state.workers)
    facts = [
        state.phase.value if state.phase is not None else "no worker",
        f"{num_online} worker{'' if num_online == 1 else 's'}",
        manifest.window.mode,
        printable(manifest.codecs.activations),
    ]
    line.append(printable(manifest.run_id), "bold").append("  " + ", ".join(facts))
    if line.cell_len + len(state.url) + 2 <= width:
        line.append(" " * (width - line.cell_len - len(state.url))).append(printable(state.url), "dim")
    yield line


def _notices(state: TopState, waited_s: float) -> Iterator[Text]:
    if not state.is_connected:
        reason = printable(state.problem) or "connecting"
        yield Text(f"no connection to {printable(state.url)}: {reason}; trying again", "red")
    elif state.manifest is None:
        yield Text("No run is announced here: waiting for a worker (`server-worker start`).", "yellow")
    elif state.phase is RunPhase.ENDED:
        reasons = {worker.state.reason for worker in state.workers if worker.state is not None and worker.state.reason}
        yield Text(f"The run has ended{': ' + printable(min(reasons)) if reasons else ''}.", "yellow")
    elif not any(worker.is_online for worker in state.workers):
        yield Text("No worker is online: waiting for one.", "yellow")
    for worker in state.workers:
        name = printable(worker.name)
        if not state.is_connected or not worker.is_online or state.manifest is None:
            continue
        if worker.is_late and worker.age_s is not None:
            yield Text(f"{name} has said nothing for {duration_text(worker.age_s)}.", "yellow")
        elif worker.age_s is None and state.phase is not RunPhase.ENDED:
            hint = " (older releases send none)" if waited_s > LATE_S else ""
            yield Text(f"Waiting for {name}'s first report{hint}.", "yellow")


def _headlines(state: TopState, width: int) -> Iterator[Text]:
    """Yield the overview's questions with their answers; figures that do not fit beside these are a line below."""
    questions = max(len(each.question) for each in state.headlines)
    answers = min(max(len(printable(each.answer)) for each in state.headlines), width - questions - 2)
    for each in state.headlines:
        line = Text().append(each.question.ljust(questions), "dim")
        line.append("  ").append(fitted(Text(printable(each.answer), f"bold {STYLES[each.meaning]}"), answers))
        detail = Text(printable(each.detail))
        if line.cell_len + detail.cell_len + 2 <= width:
            yield line.append("  ").append(detail)
        else:
            yield line
            yield Text("  ").append(detail)


def _numbers(state: TopState, width: int) -> Iterator[Text]:
    """Yield the numbers below their titles: in one row where there is room, else in rows of equal cells."""
    panels = [panel for panel in OVERVIEW.panels if panel.shape is Shape.NUMBER]
    cells = [max(len(panel.title), NUMBER_WIDTH) + 2 for panel in panels]
    if sum(cells) > width:
        across = max(width // max(cells), 1)
        across = next(count for count in range(across, 0, -1) if len(panels) % count == 0)
        cells = [width // across] * across
    else:
        across = len(panels)
    for start in range(0, len(panels), across):
        row = list(zip(panels[start : start + across], cells, strict=False))
        yield Text().join(fitted(Text(panel.title, "dim"), cell) for panel, cell in row)
        yield Text().join(fitted(_number(state, panel), cell) for panel, cell in row)


def _number(state: TopState, panel: Panel) -> Text:
    values = [line.value for line in state.lines(panel) if line.value is not None]
    if not values:
        return Text(NOT_KNOWN)
    reached = [threshold.colour for threshold in panel.thresholds if values[0] >= threshold.value]
    colour = reached[-1] if reached else panel.targets[0].colour or "neutral"
    return Text(panel_text(panel, values[0]), f"bold {STYLES[colour]}")


def _panel(state: TopState, panel: Panel, width: int, glyphs: Glyphs) -> list[Text]:
    """Return a panel: its title, and a line for each of its values."""
    head = [Text(panel.title, "bold")]
    lines = [line for line in state.lines(panel) if line.value is not None]
    if panel.shape is Shape.BARS:
        lines = [line for line in lines if line.value or not line.labels]  # groups are there from the start, at 0
    if not lines:
        return [*head, Text(panel.empty_text or "nothing yet", "dim")]
    names = [Text(printable(line.name)) for line in lines]
    name_width = min(max(name.cell_len for name in names), MAX_NAME, width // 2)
    texts = [panel_text(panel, line.value or 0.0) for line in lines]
    text_width = max(map(len, texts))
    room = max(width - name_width - text_width - 2, 1)
    largest = _largest(panel, lines)
    for line, name, text in list(zip(lines, names, texts, strict=True))[:MAX_LINES]:
        if panel.shape is Shape.LINES:
            drawn = sparkline(line.values, room, largest, glyphs)
        else:
            drawn = bar((line.value or 0.0) / largest if largest else 0.0, room, glyphs)
        style = STYLES[panel.targets[line.target].colour or "payload"]
        row = fitted(name, name_width).append(" ").append(fitted(Text(drawn, style), room))
        head.append(row.append(f" {text:>{text_width}}"))
    if len(lines) > MAX_LINES:
        head.append(Text(f"and {len(lines) - MAX_LINES} more", "dim"))
    return head


def _largest(panel: Panel, lines: Sequence[Line]) -> float:
    """Return what a full bar, or the top of a line, stands for: one scale for all lines of a panel."""
    if panel.unit is Unit.SHARE:
        return 1.0
    values = [value for line in lines for value in (line.values if panel.shape is Shape.LINES else [line.value])]
    return max((value for value in values if value is not None), default=0.0)


_AGENT_COLUMNS: Final = (
    # Title, least width of the screen, width.
    ("done", 0, 5),
    ("up", 0, 10),
    ("down", 76, 10),
    ("moved", 50, 9),
    ("saved", 70, 6),
    ("trip 50 %", 100, 9),
    ("trip 95 %", 0, 9),
    ("again", 80, 6),
    ("samples", 110, 10),
    ("silent for", 90, 10),
)


def _agents(rows: Sequence[AgentRow], width: int, glyphs: Glyphs) -> Iterator[Text]:
    """Yield the table of sites, slowest first."""
    chosen = [(index, title, size) for index, (title, least, size) in enumerate(_AGENT_COLUMNS) if width >= least]
    bar_width = 8 if width >= 110 else 0
    bar_room = bar_width + 1 if bar_width else 0
    name_width = max(width - sum(size + 1 for _, _, size in chosen) - bar_room, 8)
    name_width = min(name_width, max(14, *(len(printable(row.agent)) for row in rows)))
    heads = "".join(f" {title:>{size}}" for _, title, size in chosen)
    yield Text(fitted(Text("Sites"), name_width + bar_room).plain + heads, "bold")
    for row in rows[:MAX_AGENTS]:
        cells = _agent_cells(row)
        line = fitted(Text(printable(row.agent)), name_width)
        if bar_width:
            line.append(" ").append(fitted(Text(bar(row.progress, bar_width, glyphs), STYLES["good"]), bar_width))
        yield line.append("".join(f" {cells[index]:>{size}}" for index, _, size in chosen))
    if len(rows) > MAX_AGENTS:
        yield Text(f"and {len(rows) - MAX_AGENTS} more", "dim")


def _agent_cells(row: AgentRow) -> tuple[str, ...]:
    rates = row.wire_bytes_per_s
    return (
        percent_text(row.progress).replace(".0 %", " %") if row.progress in (0.0, 1.0) else f"{row.progress:.0%}",
        NOT_KNOWN if rates is None else f"{bytes_text(rates.up)}/s",
        NOT_KNOWN if rates is None else f"{bytes_text(rates.down)}/s",
        bytes_text(row.wire_bytes.both),
        NOT_KNOWN if row.ratio is None else f"{row.ratio:.1f}x",
        latency_text(row.p50_s),
        latency_text(row.p95_s),
        count_text(int(row.resends)),
        count_text(int(row.samples)),
        f"{duration_text(row.silence_s)}",
    )


def _cut(line: Text, width: int) -> Text:
    line.no_wrap = True
    line.truncate(width, overflow="ellipsis")
    return line
