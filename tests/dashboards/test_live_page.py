from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files
from pathlib import Path

import pytest

from cutlayer.dashboards import live_page
from cutlayer.dashboards.live_page import SCRIPTS, STYLES, load_live_page

HTML = load_live_page().html.decode()
POLICY = dict(part.split(" ", 1) for part in load_live_page().policy.split("; "))
VENDOR = Path(live_page.__file__).with_name("vendor")
ASSETS = Path(live_page.__file__).with_name("assets")


def sha256(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_policy_allows_nothing_but_the_page_itself_and_its_numbers() -> None:
    assert {
        "default-src": "'none'",
        "script-src": POLICY["script-src"],
        "style-src": POLICY["style-src"],
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    } == POLICY


@pytest.mark.parametrize(("tag", "directive"), [("script", "script-src"), ("style", "style-src")])
def test_policy_names_the_hash_of_the_one_script_and_the_one_style(tag: str, directive: str) -> None:
    [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", HTML, re.DOTALL)
    assert POLICY[directive] == sha256(content)


def test_page_loads_nothing_from_elsewhere() -> None:
    assert re.findall(r"(?:src|href)=\"([^\"]*)\"", HTML) == ["data:,", "/metrics"]
    assert "@import" not in HTML
    assert "url(" not in HTML


def test_no_attribute_holds_a_script_or_a_style() -> None:
    markup = (ASSETS / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"\s(on\w+|style)=", markup)


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name.startswith("assets/")])
def test_text_of_peers_cannot_become_markup_or_code(name: str) -> None:
    text = files("cutlayer.dashboards").joinpath(name).read_text(encoding="utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser", text
    )


def test_every_asset_is_part_of_the_page() -> None:
    used = {Path(name).name for name in (*SCRIPTS, *STYLES)} | {"page.html"}
    assert {path.name for path in ASSETS.iterdir()} == {name for name in used if not name.startswith("uPlot")}


@pytest.mark.parametrize("name", ["uPlot.iife.min.js", "uPlot.min.css", "uPlot.LICENSE"])
def test_vendored_files_are_those_that_were_published(name: str) -> None:
    digest = hashlib.sha256((VENDOR / name).read_bytes()).hexdigest()
    row = next(line for line in (VENDOR / "README.md").read_text(encoding="utf-8").splitlines() if f"`{name}`" in line)
    assert f"`{digest}`" in row


def test_licence_of_the_chart_library_comes_with_it() -> None:
    assert "MIT License" in (VENDOR / "uPlot.LICENSE").read_text(encoding="utf-8")


def test_colours_are_there_for_every_meaning_in_light_and_dark() -> None:
    style = (ASSETS / "page.css").read_text(encoding="utf-8")
    for meaning in ("up", "down", "good", "bad", "warn", "neutral", "raw", "payload", "wire"):
        assert len(re.findall(rf"--{meaning}: #[0-9a-f]{{6}};", style)) == 2, meaning


def luminance(colour: str) -> float:
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["ink", "muted", "up", "down", "good", "bad", "warn", "neutral", "accent"])
@pytest.mark.parametrize("ground", ["card", "page"])
def test_text_has_the_contrast_that_wcag_asks_for(name: str, ground: str, scheme: int) -> None:
    style = (ASSETS / "page.css").read_text(encoding="utf-8")
    [front], [back] = (
        re.findall(rf"--{each}: (#[0-9a-f]{{6}});", style)[scheme : scheme + 1] for each in (name, ground)
    )
    lighter, darker = sorted((luminance(front), luminance(back)), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5
