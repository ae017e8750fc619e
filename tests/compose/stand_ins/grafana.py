"""What stands in for Grafana where its image cannot be pulled: says what it is given, and reaches the data source."""

import json
import os
import re
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DATA_SOURCE = Path("/etc/grafana/provisioning/datasources")
DASHBOARD_PROVIDERS = Path("/etc/grafana/provisioning/dashboards")
DATA = Path("/var/lib/grafana")


class Handler(BaseHTTPRequestHandler):
    """`/api/health`, `/given`, and `/api/datasources/proxy/...` to Prometheus."""

    def do_GET(self) -> None:
        """Answer one request."""
        if self.path == "/api/health":
            self._answer({"database": "none: a stand-in"})
        elif self.path == "/given":
            self._answer(given())
        else:
            query = self.path.removeprefix("/api/datasources/proxy/uid/prometheus")
            with urllib.request.urlopen(data_source_url() + query, timeout=10) as reply:  # noqa: S310 - http, and ours
                self._answer(json.load(reply))

    def _answer(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def data_source_url() -> str:
    """Return the address in the provisioned data source."""
    texts = [file.read_text(encoding="utf-8") for file in sorted(DATA_SOURCE.glob("*.y*ml"))]
    found = re.search(r"(?m)^\s*url:\s*(\S+)$", "\n".join(texts))
    if found is None:
        raise LookupError(f"no url in {DATA_SOURCE}")
    return found.group(1)


def given() -> dict[str, object]:
    """Return what has reached this container."""
    home = Path(os.environ["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    providers = "\n".join(file.read_text(encoding="utf-8") for file in sorted(DASHBOARD_PROVIDERS.glob("*.y*ml")))
    paths = re.findall(r"(?m)^\s*path:\s*(\S+)$", providers)
    probe = DATA / "probe"
    probe.touch()
    probe.unlink()
    return {
        "home_uid": json.loads(home.read_text(encoding="utf-8"))["uid"],
        "dashboards": sorted(file.name for path in paths for file in Path(path).glob("*.json")),
        "user": os.getuid(),
        "settings": {key: value for key, value in os.environ.items() if key.startswith("GF_")},
    }


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", 3000), Handler).serve_forever()  # noqa: S104 - inside a container
