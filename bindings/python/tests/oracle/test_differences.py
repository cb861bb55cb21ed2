"""Each deliberate difference is there, on both sides."""

from __future__ import annotations

from typing import Any

import pytest
from differences import (
    AGENTS_BEGINNING,
    LIST_BEGINNING,
    OF_AGENTS,
    OF_LISTS,
    UNDEFINED,
    X_CONTENTS,
    Difference,
)
from oracle_agents import beginning
from oracle_process import Implementation
from oracle_value import Operation, call, octets, ref

Answers = dict[str, dict[str, Any]]


def answers(who: Implementation, before: list[Operation], cases: list[Difference]) -> Answers:
    """The last answer of each case: all of them in one sequence, for agents take their time to
    make.
    """
    operations, last = list(before), {}
    for case in cases:
        undefined = who.may_crash and case.real == UNDEFINED
        operations += case.operations[: -1 if undefined else None]
        if not undefined:
            last[case.name] = len(operations) - 1
    outcomes = who.run(operations)
    assert len(outcomes) == len(operations), (
        f"{who}: {operations[len(outcomes) - 1]}: {outcomes[-1]}"
    )
    return {name: outcomes[index] for name, index in last.items()}


@pytest.fixture(scope="module")
def all_answers(pair: tuple[Implementation, Implementation]) -> tuple[Answers, Answers]:
    groups = ((LIST_BEGINNING, OF_LISTS), (AGENTS_BEGINNING, OF_AGENTS))
    of_both = []
    for who in pair:
        merged: Answers = {}
        for before, cases in groups:
            merged |= answers(who, before, cases)
        of_both.append(merged)
    return of_both[0], of_both[1]


# Agents of the real one take seconds to make on a busy machine.
pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("case", OF_LISTS + OF_AGENTS, ids=lambda case: case.name)
def test_it_differs(
    pair: tuple[Implementation, Implementation],
    all_answers: tuple[Answers, Answers],
    case: Difference,
) -> None:
    real, ours = all_answers
    if case.real != UNDEFINED:
        assert real[case.name] == case.real, "the real one has changed"
    if not pair[1].may_crash:
        found = {key: value for key, value in ours[case.name].items() if key != "hazard"}
        assert found == case.ours, case.why


def test_what_the_real_one_serialised_is_read_here(
    pair: tuple[Implementation, Implementation],
) -> None:
    real, ours = pair
    *_, sent = real.run([*LIST_BEGINNING, call("driver", "serialized", ref("n"), ref("x"))])
    data = bytes.fromhex(sent["ok"]["bytes"])
    *_, read = ours.run([*LIST_BEGINNING, call("n", "deserialize_descs", octets(data))])
    assert read == {"ok": X_CONTENTS}


def test_a_removed_agent_is_still_heard(pair: tuple[Implementation, Implementation]) -> None:
    # Only what the receiver would do to the sender has ended; whoever sends is told that it arrived.
    _real, ours = pair
    if ours.may_crash:
        pytest.fail("the real one, for which books call it a hazard")
    removed = [call("a", "remove_remote_agent", "b"), call("b", "transfer", ref("h2"), "told")]
    *_, sent, heard = ours.run([*beginning(), *removed, call("a", "get_new_notifs")])
    assert sent["ok"] == "DONE"
    assert heard == {"ok": {"dict": [["b", {"list": [{"bytes": b"told".hex()}]}]]}}


def test_a_message_of_a_megabyte_arrives(pair: tuple[Implementation, Implementation]) -> None:
    _real, ours = pair
    told = bytes(range(256)) * 4096
    *_, sent, heard = ours.run(
        [*beginning(), call("b", "transfer", ref("h2"), octets(told)), call("a", "get_new_notifs")]
    )
    assert sent["ok"] == "DONE"
    assert heard == {"ok": {"dict": [["b", {"list": [{"bytes": told.hex()}]}]]}}
