"""The books of files that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from cutlayer.broker.errors import SettingsError
from cutlayer.edge_agent.data_unreadable import NUM_LOGGED, Unreadable, UnreadableFiles


def test_share_is_borne_up_to_its_limit(caplog: pytest.LogCaptureFixture) -> None:
    files = UnreadableFiles(200, 0.01)
    files.add(Path("a.png"), "truncated")
    files.add(Path("a.png"), "truncated")
    files.add(Path("b.png"), "no image")
    files.check()
    assert caplog.messages == ["cannot read a.png: truncated", "cannot read b.png: no image"]
    files.add(Path("c.png"), "no image")
    with pytest.raises(SettingsError, match=r"3 of 200 files cannot be read, more than 0\.01 of them:") as caught:
        files.check()
    assert "\n    a.png: truncated\n    b.png: no image\n    c.png: no image" in caught.value.problem
    assert "--max-unreadable" in caught.value.fix


def test_of_many_files_the_head_and_the_number_are_told(caplog: pytest.LogCaptureFixture) -> None:
    files = UnreadableFiles(1_000, 0.5)
    for number in range(600):
        files.add(Path(f"{number}.png"), "gone")
    with pytest.raises(SettingsError) as caught:
        files.check()
    assert caught.value.problem.endswith("\n    4.png: gone\n    and 595 more")
    assert len(caplog.messages) == NUM_LOGGED


def test_nothing_may_be_unreadable_where_nothing_is_borne() -> None:
    files = UnreadableFiles(10, 0.0)
    files.check()
    files.add(Path("a.png"), "gone")
    with pytest.raises(SettingsError):
        files.check()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError(2, "No such file or directory", "a.png"), "No such file or directory"),
        (OSError("image file is truncated\n(3 bytes)"), "image file is truncated (3 bytes)"),
        (EOFError(), "EOFError"),
    ],
)
def test_reason_is_one_line_without_the_files_name(error: Exception, reason: str) -> None:
    assert Unreadable.of(error).reason == reason
