"""Names of topics: who owns them, which are refused, and whose a topic is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.topics import (
    MAX_AGENT_TOPIC,
    RUN,
    WORKER_STATES,
    AgentTopics,
    WorkerTopics,
    agent_of,
    model_chunk,
    model_chunks,
)


def test_an_agents_topics_lie_below_its_own() -> None:
    topics = AgentTopics("clinic/07")
    assert topics.up_activations("w1") == "clinic/07/up/w1/activations"
    assert topics.up_gradients("w1") == "clinic/07/up/w1/gradients"
    assert topics.up_to("w1") == "clinic/07/up/w1/+"
    assert topics.telemetry == "clinic/07/up/telemetry"
    assert topics.down_outputs == "clinic/07/down/outputs"
    assert topics.down_gradients == "clinic/07/down/gradients"
    assert topics.down_control == "clinic/07/down/control"
    assert topics.down_all == "clinic/07/down/+"
    assert topics.state == "clinic/07/state"


def test_the_runs_own_topics() -> None:
    assert RUN == "cutlayer/run"
    assert WorkerTopics("w1").state == "cutlayer/workers/w1/state"
    assert WorkerTopics("w1").inboxes == "cutlayer/workers/w1/inbox/#"
    assert WorkerTopics("w1").inbox_of("clinic/07") == "cutlayer/workers/w1/inbox/clinic/07"
    assert model_chunk("abc", 3) == "cutlayer/model/abc/3"


def test_the_filters_match_the_names_that_they_are_for_and_no_others() -> None:
    topics = AgentTopics("clinic/07")
    for name in (topics.up_activations("w1"), topics.up_gradients("w1")):
        assert topic_matches_sub(topics.up_to("w1"), name)
        assert not topic_matches_sub(topics.up_to("w2"), name)
    assert not topic_matches_sub(topics.up_to("w1"), topics.telemetry)
    for name in (topics.down_outputs, topics.down_gradients, topics.down_control):
        assert topic_matches_sub(topics.down_all, name)
    assert topic_matches_sub(WORKER_STATES, WorkerTopics("w1").state)
    inbox = WorkerTopics("w1").inbox_of("clinic/07")
    assert topic_matches_sub(WorkerTopics("w1").inboxes, inbox)
    assert not topic_matches_sub(WorkerTopics("w2").inboxes, inbox)
    assert not topic_matches_sub(WORKER_STATES, inbox)
    assert topic_matches_sub(model_chunks("abc"), model_chunk("abc", 3))
    assert not topic_matches_sub(model_chunks("abc"), model_chunk("abd", 3))


@pytest.mark.parametrize("root", ["a", "clinic/07", "a.b/c_d/e-f", "clinic/cutlayer", "clinic/state", "0/1/2/3"])
def test_levels_of_letters_digits_and_a_few_signs_make_an_agents_topic(root: str) -> None:
    assert AgentTopics(root).root == root


@pytest.mark.parametrize(
    "root",
    [
        "",
        "/",
        "/clinic",
        "clinic/",
        "clinic//07",
        "clinic/+",
        "+",
        "#",
        "clinic/#",
        "clinic/0 7",
        "clinic/07\n",
        "clinic/\x00",
        "$SYS/clinic",
        "-clinic",
        ".clinic",
        "klinik/ä",
        "cutlayer",
        "cutlayer/07",
        "up",
        "clinic/up",
        "clinic/down/07",
        "clinic/" + "x" * 65,
        "/".join(["x" * 60] * 4),
    ],
)
def test_wildcards_reserved_words_and_empty_levels_are_refused_with_a_fix(root: str) -> None:
    with pytest.raises(SettingsError, match="cannot be an agent's") as caught:
        AgentTopics(root)
    assert caught.value.fix


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "a b", "w\n", "-w", "ä", "w" * 65])
def test_a_workers_name_has_one_level(name: str) -> None:
    with pytest.raises(SettingsError, match="worker name"):
        WorkerTopics(name)


@pytest.mark.parametrize(
    "topic",
    [
        "clinic/07/up/w1/activations",
        "clinic/07/up/w1/gradients",
        "clinic/07/up/w1/whatever",
        "clinic/07/up/telemetry",
        "clinic/07/down/control",
        "clinic/07/state",
        "cutlayer/workers/w1/inbox/clinic/07",
    ],
)
def test_the_agent_of_each_of_its_topics_is_known(topic: str) -> None:
    assert agent_of(topic) == "clinic/07"


@pytest.mark.parametrize(
    "topic",
    [
        RUN,
        "cutlayer/workers/w1/state",
        "cutlayer/workers/w1/inbox",
        "cutlayer/workers/w1/inbox/cutlayer/07",
        "cutlayer/workers/w1/inbox/clinic/up",
        "cutlayer/workers/w1/inbox//07",
        "cutlayer/workers/w1/window",
        "cutlayer/workers/w1/outbox/clinic/07",
        "cutlayer/other/w1/inbox/clinic/07",
        "cutlayer/up/w1/activations",
        "clinic/07",
        "clinic/07/other",
        "state",
        "/state",
        "up/w1/activations",
        "clinic/+/up/w1/activations",
        "clinic//up/w1/activations",
        "",
        "x" * 70 + "/state",
    ],
)
def test_other_topics_are_no_agents(topic: str) -> None:
    assert agent_of(topic) is None


def test_a_state_below_up_is_its_agents_and_no_agent_of_its_own() -> None:
    """A subscriber to `clinic/07/up/w1/+` gets it, and answers on the topics of whom this names."""
    assert agent_of("clinic/07/up/w1/state") == "clinic/07"


LEVELS = st.sampled_from(
    ["clinic", "07", "up", "down", "state", "cutlayer", "", "+", "telemetry", "x" * 65, "ä", "workers", "inbox"]
)


@given(st.lists(LEVELS, max_size=8).map("/".join) | st.text(max_size=MAX_AGENT_TOPIC + 50))
def test_whoever_a_topic_belongs_to_can_be_answered(topic: str) -> None:
    agent = agent_of(topic)
    if agent is not None:
        AgentTopics(agent)
        assert topic.startswith(agent + "/") or topic.endswith("/inbox/" + agent)
