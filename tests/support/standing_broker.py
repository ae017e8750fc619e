"""A broker that is there already, for tests that only want connections to it."""

from __future__ import annotations

from cutlayer.broker.broker_settings import BrokerSettings, ProtocolChoice
from cutlayer.broker.mqtt import MqttTransport
from cutlayer.broker.transport import Transport
from support.live_brokers import LiveBroker

__all__ = ["StandingBroker"]


class StandingBroker(LiveBroker):
    """Clients of a broker that somebody else starts and stops.

    Args:
        url: Its address.
        protocol: The MQTT version to speak.
    """

    def __init__(self, url: str, protocol: ProtocolChoice = "5") -> None:
        self._settings = BrokerSettings(url=url, protocol=protocol)

    def transport(self, client_id: str) -> Transport:
        """Make a client of it."""
        return MqttTransport(self._settings, client_id)

    def restart(self, *, keeps: bool) -> None:
        """Refuse: it is somebody else's."""
        raise NotImplementedError

    def stop(self) -> None:
        """Refuse: it is somebody else's."""
        raise NotImplementedError
