from __future__ import annotations

import random

import pytest

from cutlayer.broker.errors import PacketTooLarge
from cutlayer.broker.mqtt_packets import (
    MAX_PACKET_BYTES,
    PacketCounter,
    Protocol,
    connack_size,
    connect_size,
    disconnect_size,
    largest_payload,
    publish_size,
    suback_size,
    subscribe_size,
    unsuback_size,
    unsubscribe_size,
)
from cutlayer.broker.transport import Will

# Bytes written out by hand from the specifications.
CONNECT_3_1_1 = bytes.fromhex("10 0d 0004 4d515454 04 02 003c 0001 61")
CONNECT_5 = bytes.fromhex("10 0e 0004 4d515454 05 02 003c 00 0001 61")
CONNECT_5_ALL = bytes.fromhex(
    "10 24 0004 4d515454 05 ee 003c 05 2701000000 0001 61 00 0003 772f78 0002 6869 0001 75 0002 7077"
)
PUBLISH_QOS_0 = bytes.fromhex("30 06 0003 612f62 ff")
PUBLISH_QOS_1 = bytes.fromhex("32 08 0003 612f62 0001 ff")
PUBLISH_5_QOS_1 = bytes.fromhex("32 09 0003 612f62 0001 00 ff")
SUBSCRIBE_5 = bytes.fromhex("82 0c 0001 00 0001 61 01 0002 2b2f 01")


@pytest.mark.parametrize(
    ("size", "packet"),
    [
        (connect_size("a", protocol="3.1.1"), CONNECT_3_1_1),
        (connect_size("a", protocol="5"), CONNECT_5),
        (
            connect_size("a", protocol="5", username="u", password="pw", will=Will("w/x", b"hi"), properties_bytes=5),
            CONNECT_5_ALL,
        ),
        (publish_size("a/b", 1, qos=0, protocol="3.1.1"), PUBLISH_QOS_0),
        (publish_size("a/b", 1, qos=1, protocol="3.1.1"), PUBLISH_QOS_1),
        (publish_size("a/b", 1, qos=1, protocol="5"), PUBLISH_5_QOS_1),
        (subscribe_size(["a", "+/"], protocol="5"), SUBSCRIBE_5),
        (connack_size(protocol="3.1.1"), bytes.fromhex("20 02 00 00")),
        (connack_size(protocol="5"), bytes.fromhex("20 03 00 00 00")),
        (suback_size(2, protocol="3.1.1"), bytes.fromhex("90 04 0001 01 01")),
        (suback_size(2, protocol="5"), bytes.fromhex("90 05 0001 00 01 01")),
        (unsubscribe_size(["a"], protocol="3.1.1"), bytes.fromhex("a2 05 0001 0001 61")),
        (unsuback_size(1, protocol="3.1.1"), bytes.fromhex("b0 02 0001")),
        (unsuback_size(1, protocol="5"), bytes.fromhex("b0 04 0001 00 00")),
        (disconnect_size(protocol="3.1.1"), bytes.fromhex("e0 00")),
        (disconnect_size(protocol="5"), bytes.fromhex("e0 00")),
        (disconnect_size(protocol="5", reason_code=4), bytes.fromhex("e0 01 04")),
    ],
)
def test_a_size_is_that_of_the_packet_written_by_hand(size: int, packet: bytes) -> None:
    assert size == len(packet)
    assert packet[1] == len(packet) - 2


@pytest.mark.parametrize(
    ("remaining", "length_bytes"), [(127, 1), (128, 2), (16_383, 2), (16_384, 3), (2_097_151, 3), (2_097_152, 4)]
)
def test_the_length_field_grows_with_the_packet(remaining: int, length_bytes: int) -> None:
    payload = remaining - 3  # a topic of one character
    assert publish_size("a", payload, qos=0, protocol="3.1.1") == 1 + length_bytes + remaining


def test_a_topic_counts_in_utf_8() -> None:
    assert publish_size("é", 0, qos=0, protocol="3.1.1") == publish_size("ab", 0, qos=0, protocol="3.1.1")


def test_a_packet_that_mqtt_cannot_express_is_refused() -> None:
    with pytest.raises(PacketTooLarge):
        publish_size("a", MAX_PACKET_BYTES, qos=0, protocol="3.1.1")


@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("limit", [100, 130, 131, 132, 133, 134, 16_390, 16_391, 16_392, 1_000_000, MAX_PACKET_BYTES])
def test_the_largest_payload_fits_and_one_byte_more_does_not(limit: int, qos: int, protocol: Protocol) -> None:
    payload = largest_payload("a/b", limit)
    assert publish_size("a/b", payload, qos=qos, protocol=protocol) <= limit
    if limit < MAX_PACKET_BYTES:
        assert publish_size("a/b", payload + 1, qos=1, protocol="5") > limit


def test_a_limit_without_room_for_a_byte_says_what_it_needs() -> None:
    with pytest.raises(PacketTooLarge) as refused:
        largest_payload("clinic/07/up", 19)
    assert refused.value.needed_bytes == 20
    assert largest_payload("clinic/07/up", 20) == 1


def test_the_counter_finds_packets_in_pieces_of_any_size() -> None:
    large = bytes.fromhex("32 80 80 04 0001 61 0001") + bytes(65_536 - 5)
    stream = CONNECT_3_1_1 + PUBLISH_QOS_0 + large + bytes.fromhex("c000") + PUBLISH_QOS_1
    random_pieces = random.Random(1)
    for _ in range(20):
        counter = PacketCounter()
        position = 0
        while position < len(stream):
            step = random_pieces.choice((1, 2, 3, 50, 20_000))
            counter.feed(memoryview(stream)[position : position + step])
            position += step
        assert (counter.num_bytes, counter.num_publishes) == (len(stream), 3)


def test_the_counter_starts_over_with_a_new_connection() -> None:
    counter = PacketCounter()
    counter.feed(PUBLISH_QOS_1[:5])  # and then the connection breaks
    counter.begin()
    counter.feed(PUBLISH_QOS_1)
    assert counter.num_publishes == 2
