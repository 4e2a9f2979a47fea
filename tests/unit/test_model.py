"""The nouns: the transition table has no hole, tokens and ids are read as they were written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from districomp import model
from districomp.model import CANCELLED, DONE, ENDED_STATES, FAILED, QUEUED, RUNNING, SKIPPED, STATE_NAMES, TRANSITIONS

STATES = range(len(STATE_NAMES))


def reachable(start: int) -> list[int]:
    seen = [start]
    for state in seen:
        seen += [after for before, after in TRANSITIONS if before == state and after not in seen]
    return seen


def test_states_are_numbered_as_they_are_named() -> None:
    numbers = {name: getattr(model, name.upper()) for name in STATE_NAMES}
    assert numbers == {name: number for number, name in enumerate(STATE_NAMES)}
    assert QUEUED == 0, "a fresh array of states is all zeroes"


def test_transitions_are_between_states_that_exist_and_say_why() -> None:
    for (before, after), why in TRANSITIONS.items():
        assert before in STATES
        assert after in STATES
        assert before != after
        assert why


def test_every_state_can_be_reached_and_every_task_can_end() -> None:
    assert sorted(reachable(QUEUED)) == list(STATES)
    assert sorted([*ENDED_STATES, QUEUED, RUNNING]) == list(STATES)
    for state in STATES:
        assert any(after in ENDED_STATES for after in reachable(state)), STATE_NAMES[state]


def test_a_result_is_for_good_and_the_other_ends_only_queue_again() -> None:
    assert not any(before == DONE for before, _ in TRANSITIONS)
    for state in (FAILED, CANCELLED, SKIPPED):
        assert [after for before, after in TRANSITIONS if before == state] == [QUEUED]


def test_only_a_queued_task_is_leased() -> None:
    assert [before for before, after in TRANSITIONS if after == RUNNING] == [QUEUED]


def test_reasons_are_a_closed_list_without_repeats() -> None:
    assert len(set(model.REASONS)) == len(model.REASONS)
    assert model.REASONS[0] == "done"


EPOCHS = st.integers(0, 2**23 - 1)
NUMBERS = st.integers(0, 2**40 - 1)


@given(EPOCHS, NUMBERS)
def test_a_lease_token_gives_its_parts_back_and_fits_the_wire(epoch: int, number: int) -> None:
    token = model.lease_token(epoch, number)
    assert token < 2**63
    assert model.lease_epoch(token) == epoch
    assert model.lease_text(token) == f"{epoch}.{number}"


@given(st.tuples(EPOCHS, NUMBERS), st.tuples(EPOCHS, NUMBERS))
def test_lease_tokens_are_ordered_as_their_parts_are(one: tuple[int, int], other: tuple[int, int]) -> None:
    assert (model.lease_token(*one) < model.lease_token(*other)) == (one < other)


@given(st.integers(0, 2**63), st.integers(0, 2**63))
def test_a_task_id_is_read_as_it_was_written(job: int, index: int) -> None:
    assert model.parse_task(model.task_text(job, index)) == (job, index)


@pytest.mark.parametrize(
    "text", ["", "42", "42.", ".7", "4 2.7", "-1.2", "+1.2", "1.2.3", "1_0.2", "\u0664.\u0667", "1.2\n", "a.b"]
)
def test_what_is_no_task_id_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"JOB\.INDEX"):
        model.parse_task(text)


def test_sizes_of_payloads() -> None:
    blob = model.Blob(bytes(32), 10**12)
    assert model.payload_size(None) == 0
    assert model.payload_size(b"abc") == 3
    assert model.payload_size(blob) == 10**12
    assert model.item_content(model.File("a/b.txt", blob)) == blob
    assert model.item_content(b"line") == b"line"
