"""Two processes of one identity: the first goes on and the second stops, whatever comes first at whom."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import pytest

from cutlayer.broker.actions import AgentAction, Fail, Publish
from cutlayer.broker.agent_identity import CLAIM_S, SPEAK_EVERY_S, IdentityClaim
from cutlayer.broker.errors import IdentityTaken
from cutlayer.broker.messages import AgentState
from cutlayer.broker.topics import AgentTopics

TOPICS = AgentTopics("clinic/07")
OWN, OTHER = 1_000, 2_000


def claim(incarnation: int = OWN, *, at: float = 0.0) -> IdentityClaim:
    """Return a claim that is made at a time."""
    made = IdentityClaim(TOPICS, incarnation)
    made.connected(at)
    return made


def said(actions: Sequence[AgentAction]) -> list[AgentState]:
    """Return the states that are published, each retained on the agent's topic."""
    states = []
    for action in actions:
        assert isinstance(action, Publish)
        assert action.topic == TOPICS.state
        assert action.retain
        assert isinstance(action.message, AgentState)
        states.append(action.message)
    return states


def is_told_to_stop(actions: Sequence[AgentAction]) -> bool:
    """Return whether the process is to end since its identity is taken."""
    return any(isinstance(action, Fail) and isinstance(action.error, IdentityTaken) for action in actions)


def answer(to: int, by: int = OTHER) -> AgentState:
    """Return the state with which a process answers a claim."""
    return AgentState(online=True, incarnation=by, answers=to)


def test_a_connection_claims_the_topic_with_the_retained_state() -> None:
    assert said([IdentityClaim(TOPICS, OWN).connected(0.0)]) == [AgentState(True, OWN)]


def test_a_claim_that_nobody_answers_stands_after_a_while_and_is_made_anew_with_each_connection() -> None:
    mine = claim(at=5.0)
    assert not mine.is_established(5.0 + CLAIM_S - 0.01)
    assert mine.is_established(5.0 + CLAIM_S)
    mine.connected(60.0)
    assert not mine.is_established(60.0)


@pytest.mark.parametrize("newcomer", [OWN + 1, OWN - 1], ids=["later", "of an earlier clock"])
def test_the_process_that_is_there_answers_a_newcomer_and_goes_on(newcomer: int) -> None:
    mine = claim()
    assert said(mine.receive(AgentState(True, newcomer), CLAIM_S)) == [AgentState(True, OWN, answers=newcomer)]


def test_a_claim_that_is_answered_is_given_up() -> None:
    mine = claim()
    actions = mine.receive(answer(OWN), 1.0)
    assert is_told_to_stop(actions)
    assert mine.receive(AgentState(True, OTHER), 1.1) == []
    assert mine.receive(AgentState(False, OTHER), 1.2) == []
    assert mine.tick(9.0) == []


def test_an_answer_to_somebody_else_is_none() -> None:
    assert not is_told_to_stop(claim().receive(answer(OWN + 5), 1.0))


def test_an_answer_to_an_established_claim_is_ignored() -> None:
    """Or two processes that have both been let in would answer each other for ever."""
    assert claim().receive(answer(OWN), CLAIM_S) == []


def test_after_another_connection_the_one_that_came_in_meanwhile_is_the_first() -> None:
    mine = claim()
    mine.connected(50.0)
    assert is_told_to_stop(mine.receive(answer(OWN), 50.1))


def test_of_two_new_claims_the_earlier_process_answers() -> None:
    assert said(claim(OWN).receive(AgentState(True, OTHER), 0.1)) == [AgentState(True, OWN, answers=OTHER)]


def test_of_two_new_claims_the_later_process_claims_again_since_the_other_may_not_have_seen_it() -> None:
    assert said(claim(OTHER).receive(AgentState(True, OWN), 0.1)) == [AgentState(True, OTHER)]


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (AgentState(False, OTHER), "a dead predecessor's will comes late"),
        (AgentState(False, OWN), "its own will comes late: it is connected again"),
    ],
)
def test_a_state_that_says_offline_of_a_living_process_is_put_right(state: AgentState, why: str) -> None:
    assert said(claim().receive(state, 60.0)) == [AgentState(True, OWN)], why


def test_its_own_words_are_no_news() -> None:
    mine = claim()
    assert mine.receive(AgentState(True, OWN), 0.1) == []
    assert mine.receive(AgentState(True, OWN, answers=OTHER), 5.0) == []


def test_after_it_is_given_up_nothing_contradicts_the_last_state() -> None:
    mine = claim()
    assert said([mine.give_up()]) == [AgentState(False, OWN)]
    assert mine.receive(AgentState(False, OWN), 5.0) == []
    assert mine.receive(AgentState(True, OTHER), 5.0) == []


def test_before_it_is_connected_a_process_claims_nothing() -> None:
    mine = IdentityClaim(TOPICS, OWN)
    assert mine.receive(AgentState(True, OTHER), 0.0) == []
    assert not mine.is_established(100.0)


def test_whatever_comes_in_one_state_a_second_goes_out_and_the_last_answer_is_not_lost() -> None:
    mine = claim()
    now, num_said = 10.0, 0
    for number in range(1_000):
        now += 0.01
        num_said += len(mine.receive(AgentState(number % 2 == 0, OTHER + number), now))
    assert num_said <= 10.0 / SPEAK_EVERY_S + 1
    due = mine.next_deadline()
    assert due is not None
    assert said(mine.tick(due)) == [AgentState(True, OWN, answers=OTHER + 998)]
    assert mine.next_deadline() is None


# Two processes and a broker -----------------------------------------------------------------------------------


class Topic:
    """The state topic: what each process publishes reaches all that have subscribed, after a delay."""

    DELAY_S = 0.05

    def __init__(self) -> None:
        self.now = 0.0
        self.claims: dict[int, IdentityClaim] = {}
        self.taken: set[int] = set()
        self.under_way: list[tuple[float, int, AgentState]] = []

    def start(self, incarnation: int) -> None:
        """Start a process: it publishes its claim and then subscribes."""
        made = IdentityClaim(TOPICS, incarnation)
        self.publish([made.connected(self.now)])
        self.claims[incarnation] = made

    def reconnect(self, incarnation: int) -> None:
        """Make a process's connection anew."""
        self.publish([self.claims[incarnation].connected(self.now)])

    def publish(self, actions: Sequence[AgentAction]) -> None:
        """Publish states to all that have subscribed by now."""
        for state in said(actions):
            self.under_way += [(self.now + self.DELAY_S, to, state) for to in self.claims]

    def until(self, now: float) -> None:
        """Let time pass."""
        while self.now < now:
            self.now += 0.01
            due = [entry for entry in self.under_way if entry[0] <= self.now]
            self.under_way = [entry for entry in self.under_way if entry[0] > self.now]
            for _, to, state in due:
                if to in self.claims:
                    self.take(to, self.claims[to].receive(state, self.now))
            for incarnation, made in list(self.claims.items()):
                self.take(incarnation, made.tick(self.now))

    def take(self, incarnation: int, actions: list[AgentAction]) -> None:
        if is_told_to_stop(actions):
            self.taken.add(incarnation)
            del self.claims[incarnation]
        else:
            self.publish(actions)


@pytest.mark.parametrize("gap_s", [0.0, 0.02, 0.05, 0.2, 2.9, 3.0, 60.0])
@pytest.mark.parametrize(("first", "second"), [(OWN, OTHER), (OTHER, OWN)], ids=["in order", "clock put back"])
def test_of_two_processes_one_is_left_whatever_the_gap_between_them(first: int, second: int, gap_s: float) -> None:
    topic = Topic()
    topic.start(first)
    topic.until(gap_s)
    topic.start(second)
    topic.until(topic.now + 10.0)
    assert len(topic.claims) == 1
    if gap_s >= CLAIM_S or first < second:
        assert set(topic.claims) == {first}, "the first goes on"


@pytest.mark.parametrize("order", list(permutations([1, 2, 3])), ids=str)
def test_of_three_processes_at_once_the_earliest_is_left(order: tuple[int, ...]) -> None:
    topic = Topic()
    for incarnation in order:
        topic.start(incarnation)
        topic.until(topic.now + 0.02)
    topic.until(20.0)
    assert set(topic.claims) == {1}
    assert topic.taken == {2, 3}


def test_a_connection_that_is_made_anew_while_a_newcomer_is_told_costs_nothing() -> None:
    topic = Topic()
    topic.start(OWN)
    topic.until(10.0)
    topic.start(OTHER)
    topic.until(10.02)
    topic.reconnect(OWN)
    topic.until(20.0)
    assert set(topic.claims) == {OWN}


def test_a_process_whose_predecessor_was_killed_gets_in() -> None:
    topic = Topic()
    topic.start(OWN)
    topic.until(10.0)
    del topic.claims[OWN]
    topic.start(OTHER)
    topic.until(20.0)
    assert topic.claims[OTHER].is_established(topic.now)
    topic.take(OTHER, topic.claims[OTHER].receive(AgentState(False, OWN), topic.now))
    assert [state for _, _, state in topic.under_way] == [AgentState(True, OTHER)]
