"""The state table of an exchange, pair by pair."""

from __future__ import annotations

import pytest

from cutlayer.broker.messages import (
    MESSAGE_TYPES,
    ActivationGradients,
    Activations,
    Mode,
    OutputGradients,
    Outputs,
    Resend,
)
from cutlayer.broker.states import TABLES, ExchangeState, next_state

I, A, O, G, D = ExchangeState  # noqa: E741 - a table reads better with one letter a state
EVENTS = (Activations, Outputs, OutputGradients, ActivationGradients, Resend)

# Each row a state, each column an event in the order of EVENTS; None is refused.
TRAINING = {
    I: (A, None, None, D, I),
    A: (A, O, None, D, I),
    O: (O, O, G, D, I),
    G: (G, G, G, D, I),
    D: (D, D, D, D, None),
}
FORWARD_ONLY = {
    I: (A, None, None, None, I),
    A: (A, D, None, None, I),
    O: (None, None, None, None, None),
    G: (None, None, None, None, None),
    D: (D, D, None, None, None),
}
ROWS = [
    (mode, state, event, after)
    for mode, table in ((Mode.TRAIN, TRAINING), (Mode.EVAL, FORWARD_ONLY), (Mode.PREDICT, FORWARD_ONLY))
    for state, row in table.items()
    for event, after in zip(EVENTS, row, strict=True)
]


@pytest.mark.parametrize(("mode", "state", "event", "after"), ROWS)
def test_each_pair_of_state_and_event_leads_where_the_table_says(
    mode: Mode, state: ExchangeState, event: type, after: ExchangeState | None
) -> None:
    assert next_state(mode, state, event) is after


def test_every_mode_has_a_table() -> None:
    assert set(TABLES) == set(Mode)


@pytest.mark.parametrize("kind", [kind for kind in MESSAGE_TYPES.values() if kind not in EVENTS])
def test_no_other_message_moves_an_exchange(kind: type) -> None:
    assert all(next_state(mode, state, kind) is None for mode in Mode for state in ExchangeState)


@pytest.mark.parametrize("event", [Activations, Outputs, OutputGradients, ActivationGradients])
def test_a_repeated_message_changes_nothing(event: type) -> None:
    for mode in Mode:
        for state in ExchangeState:
            once = next_state(mode, state, event)
            if once is not None:
                assert next_state(mode, once, event) is once


def test_the_order_of_the_messages_leads_from_the_first_state_to_the_last() -> None:
    state: ExchangeState | None = I
    for event in (Activations, Outputs, OutputGradients, ActivationGradients):
        assert state is not None
        state = next_state(Mode.TRAIN, state, event)
    assert state is D
