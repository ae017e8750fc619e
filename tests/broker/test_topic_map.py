"""The mirror of the filter map: topics are kept, filters asked."""

from __future__ import annotations

import random

import pytest
from paho.mqtt.client import topic_matches_sub

from cutlayer.broker.topic_map import TopicMap

TOPICS = ["a", "a/b", "a/b/c", "a/c", "b", "b/b", "$SYS/x", "a//c", "/a"]
FILTERS = [
    "a",
    "a/b",
    "a/+",
    "a/#",
    "#",
    "+",
    "+/b",
    "+/+/c",
    "a/b/#",
    "$SYS/#",
    "$SYS/+",
    "+/x",
    "nothing/#",
    "a/b/c/+",
]


def test_what_is_set_is_there_until_it_is_discarded() -> None:
    topics: TopicMap[int] = TopicMap()
    topics["a/b"] = 1
    topics["a/b"] = 2
    assert dict(topics) == {"a/b": 2}
    topics.discard("a/b")
    topics.discard("a/b")
    assert len(topics) == 0
    assert list(topics.matching("#")) == []


@pytest.mark.parametrize("topic_filter", FILTERS)
def test_filters_match_as_pahos_do(topic_filter: str) -> None:
    topics: TopicMap[str] = TopicMap()
    for topic in TOPICS:
        topics[topic] = topic
    found = list(topics.matching(topic_filter))
    assert sorted(found) == sorted(topic for topic in TOPICS if topic_matches_sub(topic_filter, topic))


def test_any_history_of_settings_and_discards_is_followed() -> None:
    rng = random.Random(7)
    topics: TopicMap[str] = TopicMap()
    kept: set[str] = set()
    for _ in range(2_000):
        topic = "/".join(rng.choices("abc", k=rng.randint(1, 4)))
        if rng.random() < 0.5:
            topics[topic] = topic
            kept.add(topic)
        else:
            topics.discard(topic)
            kept.discard(topic)
        topic_filter = rng.choice(["#", "a/#", "+/b", "a/+/c", "+/+/+/+", "c"])
        matched = {topic for topic in kept if topic_matches_sub(topic_filter, topic)}
        assert set(topics.matching(topic_filter)) == matched
    for topic in kept:
        topics.discard(topic)
    assert topics._root.below == {}


def test_clearing_forgets_everything() -> None:
    topics: TopicMap[int] = TopicMap()
    topics["a/b"] = 1
    topics.clear()
    assert not topics
    assert list(topics.matching("a/b")) == []
