"""Draw a dashboard with Grafana's own components from what a Prometheus holds, as a PNG.

    python scripts/grafana_pixels/render.py --prometheus http://127.0.0.1:9090 --board overview --out overview.png

Needs node and npm (the first call installs @grafana/ui into build/grafana_pixels: 700 MB, a minute), Chromium, and the
font Inter for Grafana's widths (Debian: chromium, fonts-inter).
Three kinds of panels are no components of @grafana/ui: table, heatmap and xychart are a likeness, drawn by this page.
It shows what the panels look like, and proves nothing about a Grafana server.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "grafana_pixels"
STEP_S = 5
WINDOW, AGENT_WINDOW = "20s", "60s"
"""Grafana's `$__rate_interval` for 5 s and 15 s scrapes."""
LINE_HEIGHT_PX = 38


def main() -> int:
    """Fetch, bundle and draw; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="where the figures are")
    parser.add_argument("--board", default="overview", help="overview, communication, latency, sites or broker")
    parser.add_argument("--minutes", type=float, default=5.0, help="how far back to look")
    parser.add_argument("--width", type=int, default=1600, help="of the picture, in pixels")
    parser.add_argument("--theme", choices=("dark", "light"), default="dark", help="Grafana's theme")
    parser.add_argument("--out", type=Path, required=True, help="the picture")
    options = parser.parse_args()
    dashboard = json.loads((ROOT / "dashboards" / f"{options.board}.json").read_text(encoding="utf-8"))
    until_s = time.time()
    since_s = until_s - options.minutes * 60
    facts = {
        "dashboard": dashboard,
        "answers": answers(options.prometheus, dashboard, since_s, until_s),
        "from": since_s * 1000,
        "to": until_s * 1000,
        "width": options.width,
        "mode": options.theme,
    }
    page = bundle(facts)
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        print("no Chromium: apt-get install chromium", file=sys.stderr)
        return 1
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=9000"]
    flags += [f"--window-size={options.width},{bottom * LINE_HEIGHT_PX + 64}", f"--screenshot={options.out.resolve()}"]
    subprocess.run([browser, *flags, page.as_uri()], check=True, stderr=subprocess.DEVNULL)
    print(f"wrote {options.out}")
    return 0


def answers(url: str, dashboard: dict[str, Any], since_s: float, until_s: float) -> dict[str, list[Any]]:
    """Return what Prometheus answers to each query, by panel and query."""
    found: dict[str, list[Any]] = {}
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            expression = with_variables(target, dashboard, until_s - since_s)
            if target["instant"]:
                path, times = "query", {"time": until_s}
            else:
                path, times = "query_range", {"start": since_s, "end": until_s, "step": STEP_S}
            query = urllib.parse.urlencode({"query": expression, **times})
            with urllib.request.urlopen(f"{url}/api/v1/{path}?{query}", timeout=30) as answer:  # noqa: S310 - the user's
                found[f"{panel['id']}{target['refId']}"] = json.load(answer)["data"]["result"]
    return found


def with_variables(target: dict[str, Any], dashboard: dict[str, Any], span_s: float) -> str:
    """Replace variables by what they are at first."""
    values = {
        "__rate_interval": AGENT_WINDOW if "interval" in target else WINDOW,
        "__range": f"{span_s:.0f}s",
    }
    for variable in dashboard["templating"]["list"]:
        if variable.get("includeAll"):
            # Without a text for all of them Grafana lists the values: here the codecs, `none` left out.
            values[variable["name"]] = variable["allValue"] or "[^n].*"
        else:
            values[variable["name"]] = str(variable["current"].get("value", ""))
    return re.sub(r"\$(\w+)", lambda found: values[found.group(1)], target["expr"])


def bundle(facts: dict[str, Any]) -> Path:
    """Build the page, with everything inside, and return its file."""
    BUILD.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "package.json", BUILD)
    shutil.copy(HERE / "page.jsx", BUILD)
    if not (BUILD / "node_modules" / "@grafana" / "ui").is_dir():
        npm = shutil.which("npm") or "npm"
        install = [npm, "install", "--legacy-peer-deps", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(install, cwd=BUILD, check=True)
    # The binary itself: npm's scripts, which would link it, are not run.
    esbuild = next(BUILD.glob("node_modules/@esbuild/*/bin/esbuild"))
    command = [
        str(esbuild),
        "page.jsx",
        "--bundle",
        "--minify",
        "--outfile=bundle.js",
        "--loader:.svg=dataurl",
        "--loader:.ttf=dataurl",
    ]
    command += ['--define:process.env.NODE_ENV="production"', "--log-level=error"]
    subprocess.run(command, cwd=BUILD, check=True)
    script = (BUILD / "bundle.js").read_text(encoding="utf-8").replace("</script", "<\\/script")
    style = (BUILD / "bundle.css").read_text(encoding="utf-8")
    data = json.dumps(facts).replace("</", "<\\/")
    page = BUILD / "page.html"
    page.write_text(
        f"<!doctype html><meta charset='utf-8'><style>{style}</style><div id='root'></div>"
        f"<script>window.CUTLAYER={data}</script><script>{script}</script>",
        encoding="utf-8",
    )
    return page


if __name__ == "__main__":
    sys.exit(main())
