"""The real NIXL and kvrail.nixl answer the same random sequences of calls alike.

Results, types of exceptions and the bytes that arrived are compared; messages are not. What would
be undefined in the real one is left out there and must be an exception here.
`KVRAIL_ORACLE_EXAMPLES=1000` searches longer, with a new seed each time.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from differences import MAY_WORK, SAME_MISTAKE
from hypothesis import HealthCheck, given, note, settings
from oracle_agents import AGENT_SEQUENCES
from oracle_lists import LIST_SEQUENCES
from oracle_process import Implementation

# Each sequence makes agents of the real one, which take their time on a busy machine.
pytestmark = pytest.mark.timeout(86_400 if "KVRAIL_ORACLE_EXAMPLES" in os.environ else 300)

SEARCH = os.environ.get("KVRAIL_ORACLE_EXAMPLES")


def examples(count: int) -> Any:
    """Settings: by default the same few sequences on every machine."""
    return settings(
        max_examples=int(SEARCH) if SEARCH else count,
        derandomize=not SEARCH,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


@examples(60)
@given(operations=LIST_SEQUENCES)
def test_descriptor_lists_are_the_same(pair: Any, operations: list[dict[str, Any]]) -> None:
    compare(*pair, operations)


@examples(12)
@given(operations=AGENT_SEQUENCES)
def test_agents_behave_the_same(pair: Any, operations: list[dict[str, Any]]) -> None:
    compare(*pair, operations)


def compare(real: Implementation, ours: Implementation, operations: list[dict[str, Any]]) -> None:
    """Runs a sequence on both; the first operation that they answer differently is the failure."""
    expected, found = real.run(operations), ours.run(operations)
    for operation, theirs, mine in zip(operations, expected, found, strict=False):
        note(f"{json.dumps(operation)}\n    real {json.dumps(theirs)}\n    ours {json.dumps(mine)}")
        assert "died" not in mine, f"{ours} {mine['died']}: {json.dumps(operation)}\n{ours.log()}"
        assert "died" not in theirs, f"{real} {theirs['died']}: {json.dumps(operation)}"
        if "hazard" in theirs:
            if theirs["hazard"] in MAY_WORK and not ours.may_crash:
                # It was done here and not there: what follows need not agree.
                return
            assert "raises" in mine or ours.may_crash, (
                f"not refused, {theirs['hazard']}: {operation}"
            )
            continue
        if mine.get("raises") in SAME_MISTAKE.get(theirs.get("raises", ""), ()):
            continue
        assert mine == theirs, f"{json.dumps(operation)}\n{ours.log()}"
