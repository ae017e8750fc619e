from __future__ import annotations

import pytest

from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.errors import IdentityTaken, NotAuthorized, PacketTooLarge, SettingsError
from cutlayer.broker.mqtt_reasons import ShortLives, fatal_connack, fatal_disconnect, fatal_socket_error, socket_text

SETTINGS = BrokerSettings(url="mqtt://hub", username="alice", password="hunter2")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (0x84, SettingsError),
        (0x85, SettingsError),
        (0x86, NotAuthorized),
        (0x87, NotAuthorized),
        (0x8A, NotAuthorized),
        (0x88, None),  # server unavailable
        (0x89, None),  # server busy
        (0x97, None),  # quota exceeded
        (0x9F, None),  # connection rate exceeded
    ],
)
def test_only_what_a_retry_cannot_help_is_fatal_at_the_start(code: int, expected: type[Exception] | None) -> None:
    error = fatal_connack(code, "Some reason", SETTINGS, "id")
    assert (type(error) if error else None) is expected
    assert "hunter2" not in str(error)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (0x8E, IdentityTaken),
        (0x87, NotAuthorized),
        (0x95, PacketTooLarge),
        (0x8B, None),  # server shutting down
        (0x8D, None),  # keep alive timeout
        (0x98, None),  # administrative action
    ],
)
def test_only_what_a_retry_cannot_help_is_fatal_later(code: int, expected: type[Exception] | None) -> None:
    error = fatal_disconnect(code, SETTINGS, "clinic/07", 200_000)
    assert (type(error) if error else None) is expected


def test_an_ordinary_socket_error_is_text_only() -> None:
    assert fatal_socket_error(ConnectionRefusedError(111, "Connection refused"), SETTINGS) is None
    assert socket_text(ConnectionRefusedError(111, "Connection refused")) == "Connection refused"
    assert socket_text(ConnectionRefusedError("the broker refuses")) == "the broker refuses"
    assert socket_text(TimeoutError()) == "TimeoutError"
    assert socket_text(None) == "the broker closed the connection"


def test_the_third_short_life_in_a_row_brings_a_hint() -> None:
    lives = ShortLives("cutlayer-agent-7")
    hints = []
    for now_s in (0.0, 10.0, 20.0):
        lives.begin(now_s)
        hints.append(lives.hint_at_end(now_s + 1.0, 70_000))
    assert hints[:2] == ["", ""]
    assert "'cutlayer-agent-7'" in hints[2]
    assert "70000 B" in hints[2]


def test_a_long_life_and_one_that_never_began_count_for_what_they_are() -> None:
    lives = ShortLives("x")
    assert lives.hint_at_end(0.0, 0) == ""
    assert lives.hint_at_end(1.0, 0) == ""
    lives.begin(2.0)
    assert lives.hint_at_end(60.0, 0) == ""
    lives.begin(61.0)
    assert lives.hint_at_end(62.0, 0) == ""
