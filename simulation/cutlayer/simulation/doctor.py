"""`cutlayer doctor`: looks at all that an agent needs before one is started, in the order in which it is needed."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.mqtt_packets import Protocol
from cutlayer.broker.probe import probe_answers
from cutlayer.broker.topics import AgentTopics
from cutlayer.compression.errors import CodecError
from cutlayer.simulation.doctor_client import DoctorClient
from cutlayer.simulation.doctor_data import SiteData, check_site_data
from cutlayer.simulation.doctor_mqtt import check_credentials, check_features, check_packets
from cutlayer.simulation.doctor_network import check_name, check_port, check_tls
from cutlayer.simulation.doctor_report import EXIT_RUN, Finding, Verdict, problem, skipped
from cutlayer.simulation.doctor_rights import RightsCheck
from cutlayer.simulation.doctor_run import check_agent, check_clock, check_manifest, check_weights, check_workers
from cutlayer.simulation.doctor_scene import Scene, fetch_model, look_around, probe_workers
from cutlayer.simulation.doctor_speed import check_down, check_round_trip, check_up, make_sample

__all__ = ["DoctorSettings", "examine"]

NEEDS_CONNECTION: Final = ("rights", "packets", "round-trip", "up", "down", "clock", "manifest", "weights", "workers")
GIVE_A_TOPIC: Final = "give --topic, the agent's, to have this looked at"


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorSettings:
    """What to look at.

    Attributes:
        broker: The broker, as an agent would reach it.
        topic: The agent's topic; None leaves out what needs one.
        timeout_s: Seconds that each answer is waited for.
        data: The agent's data; None leaves them out.
    """

    broker: BrokerSettings
    topic: str | None = None
    timeout_s: float = 5.0
    data: SiteData | None = None


def examine(settings: DoctorSettings, announce: Callable[[str], None] = lambda _: None) -> Iterator[Finding]:
    """Make every check, and yield each finding as soon as it is there.

    What cannot be looked at since an earlier check failed is yielded too, as skipped.

    Args:
        settings: What to look at.
        announce: Takes what is being done next, for a person who waits.

    Raises:
        SettingsError: When the topic cannot be an agent's, or a certificate, key or password file cannot be read.
    """
    topics = AgentTopics(settings.topic) if settings.topic is not None else None
    protocol: Protocol | None = None
    failed = ""
    for check in ("name", "port", "tls", "credentials"):
        if failed:
            yield skipped(check, f"the check `{failed}` has failed")
            continue
        announce(f"checking {check}")
        if check == "credentials":
            finding, protocol = check_credentials(settings.broker, settings.timeout_s)
        else:
            look = {"name": check_name, "port": check_port, "tls": check_tls}[check]
            finding = look(settings.broker, settings.timeout_s)
        yield finding
        failed = check if finding.verdict is Verdict.PROBLEM else ""
    if protocol is None:
        yield from (skipped(check, f"the check `{failed}` has failed") for check in NEEDS_CONNECTION)
        yield from _examine_data(settings, None, announce)
        return
    with DoctorClient(settings.broker, protocol, settings.timeout_s) as client:
        answer = client.open()
        if not answer.is_accepted:
            yield from (skipped(check, f"the connection ended: {answer.text}") for check in NEEDS_CONNECTION)
            yield from _examine_data(settings, None, announce)
            return
        yield from _examine_broker(settings, client, topics, announce)


def _examine_broker(
    settings: DoctorSettings, client: DoctorClient, topics: AgentTopics | None, announce: Callable[[str], None]
) -> Iterator[Finding]:
    if (lacking := check_features(client)) is not None:
        yield lacking
    announce("listening to what the broker keeps")
    scene = look_around(client, topics)
    if topics is not None:
        announce("asking the workers that are online")
        probe_workers(client, scene)
    if scene.manifest is not None:
        announce("reading the model")
        fetch_model(client, scene)
    if topics is None:
        yield skipped("rights", GIVE_A_TOPIC)
        yield check_packets(client, settings.broker, None)
        yield from (skipped(check, GIVE_A_TOPIC) for check in ("round-trip", "up", "down"))
    else:
        announce("trying the rights of this user")
        rights = RightsCheck(client, settings.broker, scene)
        yield from rights.findings()
        yield from _examine_link(settings, client, scene, rights, announce)
    yield skipped("clock", GIVE_A_TOPIC) if topics is None else check_clock(scene)
    yield check_manifest(scene)
    yield check_weights(scene)
    yield check_workers(scene)
    if (agent := check_agent(scene)) is not None:
        yield agent
    yield from _examine_data(settings, scene.manifest, announce)


def _examine_data(
    settings: DoctorSettings, manifest: Manifest | None, announce: Callable[[str], None]
) -> Iterator[Finding]:
    if settings.data is not None:
        announce("opening the data")
        yield check_site_data(manifest, settings.data)


def _examine_link(
    settings: DoctorSettings, client: DoctorClient, scene: Scene, rights: RightsCheck, announce: Callable[[str], None]
) -> Iterator[Finding]:
    assert scene.topics is not None
    announce("trying packets")
    packets = check_packets(client, settings.broker, rights.quiet_topic)
    yield packets
    limit = packets.values.get("limit_bytes")
    max_packet_bytes = settings.broker.max_packet_bytes
    if isinstance(limit, int) and limit > 0:
        max_packet_bytes = min(max_packet_bytes, limit)
    if packets.verdict is Verdict.PROBLEM and not limit:
        yield from (skipped(check, "the check `packets` has failed") for check in ("round-trip", "up", "down"))
        return
    if rights.may_publish:
        announce("timing small messages")
        yield check_round_trip(client, scene, rights.quiet_topic)
        announce("timing a microbatch")
        try:
            sample = make_sample(scene.manifest)
        except CodecError as error:
            fix = "install the same release here and at the worker"
            yield problem("up", f"the run's codec cannot be used here: {error}", fix, exit_code=EXIT_RUN)
        else:
            yield check_up(client, sample, rights.quiet_topic, max_packet_bytes)
    else:
        yield from (skipped(check, "this user may not publish on its up/ topics") for check in ("round-trip", "up"))
    announce("timing what comes down")
    echo = probe_answers(scene.topics.root, secrets.randbits(53)) if rights.is_open else None
    yield check_down(client, scene, echo, max_packet_bytes)
