"""Takes the pictures of the docs (`make screenshots`): a real run, as the live page and `cutlayer top` show it.

Starts Mosquitto, a worker and four agents (digits), one of them behind a slow link, waits until every panel shows
something, and writes docs/img/live-page.png, live-page-dark.png, live-page-phone.png and top.png. Needs Mosquitto,
Chromium and ChromeDriver.
"""

from __future__ import annotations

import argparse
import contextlib
import html
import io
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.terminal_theme import MONOKAI

from cutlayer.broker.broker_options import BrokerOptions
from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.launcher import launch_broker
from cutlayer.broker.mqtt import MqttTransport
from cutlayer.simulation.top_feed import TopFeed
from cutlayer.simulation.top_view import TopScreen
from support.headless_browser import HeadlessBrowser, headless_browser

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
NUM_AGENTS = 4
SLOW_BYTES_PER_S = 160_000
SLOW_SITE = "clinic/03"
FILLED = (
    "return document.querySelectorAll('.panel').length > 0"
    " && document.querySelectorAll('.panel .empty:not([hidden])').length === 0"
)
FILLED_WITHIN_S = 240.0
TOP_WIDTH = 132
NUM_COLOURS = 256
PICTURES = ("live-page.png", "live-page-dark.png", "live-page-phone.png", "top.png")


class SlowLink:
    """A TCP relay that lets so many bytes a second through, each way.

    Args:
        port: The server's port on the loopback interface.
        bytes_per_s: What the link carries.
    """

    def __init__(self, port: int, bytes_per_s: float) -> None:
        self._target, self._bytes_per_s = port, bytes_per_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            # Small buffers: what the kernel holds has crossed no link yet.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            server = socket.create_connection(("127.0.0.1", self._target))
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                time.sleep(len(data) / self._bytes_per_s)
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def small_run(folder: Path) -> Iterator[tuple[str, str]]:
    """Run broker, worker and agents.

    Yields:
        Address of the broker, and of the live page.
    """
    processes: list[subprocess.Popen[bytes]] = []

    def start(log: str, *command: str) -> None:
        with (folder / log).open("wb") as file:
            processes.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT))

    with launch_broker(BrokerOptions(kind="mosquitto", figures_s=1)) as broker:
        slow = SlowLink(broker.port, SLOW_BYTES_PER_S)
        try:
            worker = [str(BIN / "server-worker"), "start", "--run", str(ROOT / "examples" / "digits.toml")]
            worker += ["--broker", broker.url, "--name", "w0", "--output", str(folder / "run"), "--http-port", "0"]
            start("worker.log", *worker, "--min-agents", str(NUM_AGENTS), "--epochs", "100")
            for index in range(NUM_AGENTS):
                topic = f"clinic/{index:02d}"
                url = f"mqtt://127.0.0.1:{slow.port}" if topic == SLOW_SITE else broker.url
                agent = [str(BIN / "edge-agent"), "start", "--topic", topic, "--data", "demo:digits"]
                start(f"agent-{index}.log", *agent, "--shard", f"{index}/{NUM_AGENTS}", "--broker", url)
            yield broker.url, _page_address(folder / "worker.log")
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.wait()
            slow.close()


def _page_address(log: Path) -> str:
    for _ in range(300):
        _, found, rest = log.read_text(encoding="utf-8").partition("live page at ")
        if found and "/," in rest:
            return rest.partition(",")[0]
        time.sleep(0.1)
    raise SystemExit(f"no live page: {log.read_text(encoding='utf-8')}")


def take_page(browser: HeadlessBrowser, url: str, folder: Path, settle_s: float) -> None:
    """Write the pictures of the live page."""
    browser.look(1440)
    browser.open(url)
    browser.wait_until(FILLED, FILLED_WITHIN_S)
    time.sleep(settle_s)
    browser.screenshot(folder / "live-page.png")
    browser.look(1440, dark=True)
    browser.screenshot(folder / "live-page-dark.png")
    browser.look(390, 844)
    browser.open(url)
    browser.wait_until(FILLED, 30.0)
    browser.screenshot(folder / "live-page-phone.png")
    if problems := browser.console():
        raise SystemExit("\n".join(problems))


def take_top(browser: HeadlessBrowser, feed: TopFeed, path: Path) -> None:
    """Write the picture of `cutlayer top`, by way of SVG."""
    console = Console(record=True, width=TOP_WIDTH, force_terminal=True, color_system="truecolor", file=io.StringIO())
    console.print(TopScreen(feed.state()))
    # Without its style sheet of web fonts, which would be fetched.
    drawing = console.export_svg(title="cutlayer top", theme=MONOKAI, font_aspect_ratio=0.602)
    start, end = drawing.find("@font-face"), drawing.find("    .terminal-")
    drawing = drawing[: max(start, 0)] + drawing[end if start >= 0 else 0 :]
    page = path.with_suffix(".html")
    text = (
        f"<!doctype html><meta charset=utf-8><title>{html.escape('cutlayer top')}</title><body style=margin:0>{drawing}"
    )
    page.write_text(text.replace("Fira Code", "DejaVu Sans Mono"), encoding="utf-8")
    browser.look(1200, 200)
    browser.open(page.resolve().as_uri())
    browser.screenshot(path)
    page.unlink()


def _shrink(path: Path) -> None:
    """Write a picture anew with a palette of its commonest colours: a third of the bytes, and no fill changes."""
    with Image.open(path) as picture:
        whole = picture.convert("RGB")
    red_green_blue = whole.tobytes()
    colours = Counter(red_green_blue[at : at + 3] for at in range(0, len(red_green_blue), 3))
    palette = Image.new("P", (1, 1))
    palette.putpalette(b"".join(colour for colour, _ in colours.most_common(NUM_COLOURS)))
    whole.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "img", help="folder (default: docs/img)")
    parser.add_argument("--settle", type=float, default=90.0, help="seconds of a filled page before the first picture")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        small_run(Path(folder)) as (broker, page),
        headless_browser() as browser,
    ):
        feed = TopFeed(MqttTransport(BrokerSettings(url=broker), "cutlayer-top-screenshots"), broker)
        feed.start()
        is_over = threading.Event()

        def follow() -> None:
            while not is_over.is_set():
                feed.wait(0.2)
                feed.pump()

        follower = threading.Thread(target=follow)
        follower.start()
        try:
            take_page(browser, page, options.output, options.settle)
        finally:
            is_over.set()
            follower.join()
        take_top(browser, feed, options.output / "top.png")
        feed.close()
    for path in (options.output / name for name in PICTURES):
        _shrink(path)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
