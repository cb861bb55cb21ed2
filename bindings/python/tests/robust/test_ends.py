"""No end of the interpreter is a crash, and none takes the peer along."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from processes import Implementation, Role, Scene

SCRIPT = Path(__file__).parent / "scenes" / "ends.py"
SHAPES = {
    "module_globals": 0,
    "in_mid_transfer": 0,
    "agent_before_its_handles": 0,
    "handles_before_their_agent": 0,
    "a_cycle_with_a_finaliser": 0,
    "a_daemon_thread_that_polls": 0,
    "a_daemon_thread_that_transfers": 0,
    "a_thread_that_outlives_the_main_one": 0,
    "a_listening_agent": 0,
    "a_strict_agent_in_threads": 0,
    "many_agents_that_know_each_other": 0,
    "an_agent_that_was_never_made": 0,
    "used_at_exit": 0,
    "sys_exit_in_mid_transfer": 3,
    "sys_exit_in_a_thread": 0,
    "an_exception_that_nobody_catches": 1,
    "an_interrupt": -signal.SIGINT,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_interpreter_ends_as_it_would_without_an_agent(
    ours: Implementation, shape: str
) -> None:
    roles = {"ending": Role(shape), "peer": Role("peer")}
    with Scene(ours, SCRIPT, roles) as scene:
        scene["ending"].ended(expected=SHAPES[shape])
        assert "Fatal Python error" not in scene["ending"].output
        assert "panicked" not in scene["ending"].output
        assert "Exception ignored" not in scene["ending"].output, scene["ending"].output
        scene["peer"].send("go on alone")
        assert scene["peer"].result(30) == {"state": "DONE", "right": True}


def test_an_agent_ends_on_the_fabric_of_sockets_too(each_fabric: Implementation) -> None:
    roles = {"ending": Role("in_mid_transfer"), "peer": Role("peer")}
    with Scene(each_fabric, SCRIPT, roles) as scene:
        scene["ending"].ended()
        scene["peer"].send("go on alone")
        assert scene["peer"].result(30) == {"state": "DONE", "right": True}
