"""The states of one exchange, as a table that both roles use.

An *exchange* is one microbatch's conversation. Both sides keep its state and apply the same events to it: an agent
applies `Activations` when it publishes them, a worker when it accepts them, and so on for the four messages. So the
two can only disagree by messages under way, and a repeated message is an event that leads back to its own state.

    training                                              evaluation, prediction

    IDLE --Activations--> ACTIVATIONS --Outputs--> OUTPUTS     IDLE --Activations--> ACTIVATIONS --Outputs--> DONE
                                                    |
                  DONE <--ActivationGradients-- GRADIENTS <--OutputGradients

`Resend` leads back to IDLE from everywhere but DONE: the worker has no graph for this step (it restarted, or the
weights moved on too far), and the activations go up again. `ActivationGradients` is the commit and leads to DONE from
everywhere: the ledger may know that a step is committed when this agent's process, new since, does not.

An event that is not in the table is a fault of the other side or a message that lost its race: it is counted and
changes nothing (`next_state` returns None).
"""

from __future__ import annotations

from enum import Enum, auto

from cutlayer.broker.messages import (
    ActivationGradients,
    Activations,
    Message,
    Mode,
    OutputGradients,
    Outputs,
    Resend,
)

__all__ = ["TABLES", "ExchangeState", "next_state"]


class ExchangeState(Enum):
    """Where one exchange stands; named for the last of its messages."""

    IDLE = auto()
    ACTIVATIONS = auto()
    OUTPUTS = auto()
    GRADIENTS = auto()
    DONE = auto()


_S = ExchangeState
_Table = dict[ExchangeState, dict[type[Message], ExchangeState]]

_TRAINING: _Table = {
    _S.IDLE: {Activations: _S.ACTIVATIONS, ActivationGradients: _S.DONE, Resend: _S.IDLE},
    _S.ACTIVATIONS: {
        Activations: _S.ACTIVATIONS,
        Outputs: _S.OUTPUTS,
        ActivationGradients: _S.DONE,
        Resend: _S.IDLE,
    },
    _S.OUTPUTS: {
        Activations: _S.OUTPUTS,
        Outputs: _S.OUTPUTS,
        OutputGradients: _S.GRADIENTS,
        ActivationGradients: _S.DONE,
        Resend: _S.IDLE,
    },
    _S.GRADIENTS: {
        Activations: _S.GRADIENTS,
        Outputs: _S.GRADIENTS,
        OutputGradients: _S.GRADIENTS,
        ActivationGradients: _S.DONE,
        Resend: _S.IDLE,
    },
    _S.DONE: {
        Activations: _S.DONE,
        Outputs: _S.DONE,
        OutputGradients: _S.DONE,
        ActivationGradients: _S.DONE,
    },
}

_FORWARD_ONLY: _Table = {
    _S.IDLE: {Activations: _S.ACTIVATIONS, Resend: _S.IDLE},
    _S.ACTIVATIONS: {Activations: _S.ACTIVATIONS, Outputs: _S.DONE, Resend: _S.IDLE},
    _S.DONE: {Activations: _S.DONE, Outputs: _S.DONE},
}

TABLES: dict[Mode, _Table] = {Mode.TRAIN: _TRAINING, Mode.EVAL: _FORWARD_ONLY, Mode.PREDICT: _FORWARD_ONLY}


def next_state(mode: Mode, state: ExchangeState, event: type[Message]) -> ExchangeState | None:
    """Return the state after an event, or None where the table has none.

    Args:
        mode: What the microbatch is for.
        state: Where the exchange stands.
        event: Class of the message sent or received.
    """
    return TABLES[mode].get(state, {}).get(event)
