"""A peer that is killed or stopped at any step: an error in time, and the survivor goes on with
others."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from processes import Implementation, Role, Scene

SCRIPT = Path(__file__).parent / "scenes" / "deaths.py"
#: In these scenes a transfer's deadline is 4 s. A notification to one who does not read them has the
#: longest, 10 s; no call may take longer than that by much.
CALL_S = 13.0
STEPS = [
    "before_it_is_known",
    "before_the_post",
    "in_mid_write",
    "in_mid_read",
    "with_a_notification_outstanding",
    "while_it_was_writing",
    "before_its_metadata_are_fetched",
]


def play(implementation: Implementation, step: str) -> dict[str, Any]:
    roles = {
        "survivor": Role("survivor", {"step": step}),
        "victim": Role("victim", {"writes": step == "while_it_was_writing"}),
        "bystander": Role("bystander", {"name": "bystander"}),
        "heir": Role("bystander", {"name": "victim"}),
    }
    with Scene(implementation, SCRIPT, roles) as scene:
        survivor = scene["survivor"]
        asked = ""
        while asked != "kill":
            asked = survivor.receive()
            if asked == "kill":
                scene["victim"].kill()
            else:
                number = {"stop": signal.SIGSTOP, "continue": signal.SIGCONT}[asked]
                scene["victim"].signal(number)
            survivor.send("so it is")
        result: dict[str, Any] = survivor.result()
        for other in ("bystander", "heir"):
            assert scene[other].result() == {"told": True, "wrong_bytes": 0}
    return result


@pytest.mark.parametrize("step", STEPS)
def test_a_dead_peer_is_an_error_in_time(each_fabric: Implementation, step: str) -> None:
    result = play(each_fabric, step)
    assert result["errors"], "nothing said that the peer is dead"
    assert result["slowest"][1] < CALL_S


def test_a_stopped_peer_is_waited_for_no_longer_than_the_deadline(
    each_fabric: Implementation,
) -> None:
    result = play(each_fabric, "while_it_is_stopped")
    assert result["slowest"][1] < CALL_S
