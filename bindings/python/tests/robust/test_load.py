"""Under load: the interpreter's lock is let go, threads share an agent, nothing leaks, released is
over."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from processes import Implementation, Role, Scene

SCRIPT = Path(__file__).parent / "scenes" / "load.py"
#: A quick look by default; `KVRAIL_LEAK_TRANSFERS=1000000` is the soak.
LEAK_TRANSFERS = int(os.environ.get("KVRAIL_LEAK_TRANSFERS", "40000"))
#: Calls that take longer must have let other threads run.
LONG_S = 0.01
LEAK_DEADLINE_S = 60 + LEAK_TRANSFERS / 500


def play(
    implementation: Implementation, role: str, size: int, timeout_s: float = 60, **arguments: Any
) -> Any:
    roles = {
        "loaded": Role(role, {"size": size, **arguments}),
        "partner": Role("partner", {"size": size}),
    }
    with Scene(implementation, SCRIPT, roles, deadline_s=timeout_s) as scene:
        results = scene.results(timeout_s)
    assert results["partner"] == 0, "notifications too many, or too few"
    return results["loaded"]


def test_other_threads_run_while_an_agent_works(each_fabric: Implementation) -> None:
    seen = play(each_fabric, "interpreter_lock", 64 << 20)
    # On a busy machine the counting thread is not awake at once: calls that are short prove nothing.
    long = {what: counted for what, (took, counted) in seen.items() if took > LONG_S}
    assert [what for what, counted in long.items() if not counted] == [], seen
    assert long, f"no call took long enough to tell: {seen}"


@pytest.mark.parametrize("strict", [False, True], ids=["as-vllm-does", "strict"])
def test_many_threads_share_an_agent(each_fabric: Implementation, strict: bool) -> None:
    result = play(each_fabric, "threads", 6 * 16 * 4096, strict=strict, rounds=60)
    assert result == {"problems": [], "states": ["DONE"], "done": 6 * 60 * 2}


@pytest.mark.timeout(LEAK_DEADLINE_S + 30)
def test_transfers_leave_nothing_behind(ours: Implementation) -> None:
    result = play(ours, "leaks", 256 * 4096, LEAK_DEADLINE_S, transfers=LEAK_TRANSFERS)
    assert result["failures"] == 0
    assert result["leaked"] == 0
    grown = result["grown"]
    assert grown["descriptors"] == 0
    assert grown["threads"] == 0
    assert grown["mappings"] < 16, grown
    assert grown["objects"] < 200, grown
    # 100 bytes for each transfer would be 3.5 MiB after the quick look alone.
    assert grown["resident_kib"] < 2048, grown


def test_agents_that_come_and_go_leave_nothing_behind(each_fabric: Implementation) -> None:
    grown = play(each_fabric, "agents", 4096, count=40)
    assert grown["descriptors"] <= 0, grown
    assert grown["threads"] <= 0, grown
    assert grown["resident_kib"] < 40 * 64, grown


def test_released_in_flight_is_over_or_refused(each_fabric: Implementation) -> None:
    outcome = play(each_fabric, "release_in_flight", 32 << 20, rounds=12)
    assert outcome["late"] == 0, "bytes arrived after the release had returned"
    assert outcome.get("released", 0) + outcome.get("refused", 0) == 12
