"""Headless Chromium for screenshots and tests: one page, its console, and what it has asked the network for."""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

__all__ = ["INSTALL", "HeadlessBrowser", "find_chromium", "headless_browser", "needs_chromium"]

INSTALL = "apt-get install chromium chromium-driver"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--hide-scrollbars", "--force-color-profile=srgb",
)  # fmt: skip
PHONE_WIDTH = 600
LOAD_TIMEOUT_S = 120.0


def find_chromium() -> tuple[str, str] | None:
    """Return Chromium and its driver, or None where one is missing."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


needs_chromium = (
    pytest.mark.slow,
    pytest.mark.skipif(
        find_chromium() is None and not os.environ.get("CUTLAYER_SKIP_NOTHING"),
        reason=f"Chromium or ChromeDriver is not installed ({INSTALL})",
    ),
)
"""Marks of a test."""


class HeadlessBrowser:
    """One page of a running browser.

    Args:
        driver: The browser.
    """

    def __init__(self, driver: webdriver.Chrome) -> None:
        self._driver = driver
        self._width, self._height = 1440, 900

    def look(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        """Choose the size of the window and the colour scheme; below 600 pixels it is a phone."""
        self._width, self._height = width, height
        self._resize(height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def open(self, url: str) -> None:
        """Load a page."""
        self._driver.get(url)

    def run(self, script: str, *arguments: Any) -> Any:
        """Return the value of a script's `return`."""
        return self._driver.execute_script(script, *arguments)

    def press(self, *keys: str) -> None:
        """Press keys at whatever has the focus."""
        for key in keys:
            self._driver.switch_to.active_element.send_keys(key)

    def wait_until(self, script: str, timeout_s: float) -> None:
        """Wait until a script returns something true.

        Raises:
            TimeoutError: When it does not in time; the text shows the page's.
        """
        end_at = time.monotonic() + timeout_s
        while not self.run(script):
            if time.monotonic() > end_at:
                raise TimeoutError(
                    f"not within {timeout_s:g} s: {script}\n{self.run('return document.body.innerText')}"
                )
            time.sleep(0.2)

    def screenshot(self, path: Path) -> None:
        """Write a PNG of the whole page."""
        height = int(self.run("return document.documentElement.scrollHeight"))
        self._resize(max(height, self._height))
        time.sleep(1.5)  # charts follow their boxes
        parameters = {"format": "png", "captureBeyondViewport": True}
        picture = self._driver.execute_cdp_cmd("Page.captureScreenshot", parameters)
        path.write_bytes(base64.b64decode(picture["data"]))
        self._resize(self._height)

    def console(self) -> list[str]:
        """Return what the console has said since the last call, at any level."""
        return [f"{entry['level']}: {entry['message']}" for entry in self._driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def requested(self) -> list[str]:
        """Return the addresses that the page has asked for since the last call."""
        events = (json.loads(entry["message"])["message"] for entry in self._driver.get_log("performance"))  # type: ignore[no-untyped-call]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def _resize(self, height: int) -> None:
        metrics = {"width": self._width, "height": height, "deviceScaleFactor": 1, "mobile": self._width < PHONE_WIDTH}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@contextmanager
def headless_browser() -> Iterator[HeadlessBrowser]:
    """Run a browser with a profile of its own, which is gone afterwards.

    Raises:
        FileNotFoundError: When Chromium or its driver is missing.
    """
    found = find_chromium()
    if found is None:
        raise FileNotFoundError(f"Chromium or ChromeDriver is not installed: {INSTALL}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = Options()
        options.binary_location = found[0]
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(found[1]))
        try:
            driver.set_page_load_timeout(LOAD_TIMEOUT_S)
            browser = HeadlessBrowser(driver)
            browser.look(1440)
            browser.open("about:blank")
            browser.requested()  # its own start page
            yield browser
        finally:
            driver.quit()
