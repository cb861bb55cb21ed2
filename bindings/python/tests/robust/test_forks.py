"""After a fork the parent's agent is the parent's."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import Implementation, Role, Scene

SCRIPT = Path(__file__).parent / "scenes" / "forks.py"


def play(ours: Implementation, case: str) -> tuple[int, int, int]:
    roles = {"parent": Role("parent", {"case": case}), "peer": Role("peer")}
    with Scene(ours, SCRIPT, roles) as scene:
        results = scene.results()
    return results["parent"]["status"], results["parent"]["notifs"], results["peer"]


@pytest.mark.parametrize(
    "case",
    [
        "parents_agent_in_a_child_that_exits_at_once",
        "parents_agent_in_a_child_that_ends_as_python_does",
        "parents_agent_by_multiprocessing",
        "fork_in_mid_transfer",
    ],
)
def test_each_use_of_the_parents_agent_in_a_child_is_an_error_that_names_the_fork(
    each_fabric: Implementation, case: str
) -> None:
    assert play(each_fabric, case) == (0, 0, 0)


def test_a_child_has_an_agent_of_its_own(each_fabric: Implementation) -> None:
    assert play(each_fabric, "an_agent_of_the_childs_own") == (0, 0, 1)
