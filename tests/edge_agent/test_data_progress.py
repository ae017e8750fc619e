"""What takes long is passed on one by one, whether or not anybody sees it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cutlayer.edge_agent.data_progress import with_progress


@pytest.mark.parametrize("count", [0, 5, 3_000])
def test_items_are_passed_on_as_they_come(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for item in range(count):
            made.append(item)
            yield item

    for item in with_progress(items(), count, "files"):
        assert made[-1] == item
    assert len(made) == count
    assert capsys.readouterr() == ("", "")  # no terminal


def test_bar_is_drawn_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert len(list(with_progress(iter(range(3_000)), 3_000, "image files"))) == 3_000
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "image files" in shown.err
