"""The Pythonic API alone: agents of one process, and of several."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import kvrail
import pytest

SCENES = Path(__file__).parent / "scenes"

MakeAgent = Callable[..., kvrail.Agent]


class Pair:
    """Two agents that know each other; `initiator` is the one that posts."""

    def __init__(self, initiator: kvrail.Agent, target: kvrail.Agent) -> None:
        self.initiator = initiator
        self.target = target

    def meet(self) -> kvrail.Peer:
        """Imports the target's present metadata."""
        return self.initiator.connect(self.target.metadata())


@pytest.fixture
def make_agent() -> Iterator[MakeAgent]:
    """Makes agents that are closed at the end, with deadlines short enough to be waited for."""
    agents: list[kvrail.Agent] = []

    def make(name: str, **options: object) -> kvrail.Agent:
        settings: dict[str, object] = {
            "transports": ["shm"],
            "timeout": 10.0,
            "peer_timeout": 1.0,
            "close_timeout": 0.5,
            "ignore_environment": True,
        }
        agent = kvrail.Agent(name, **(settings | options))  # type: ignore[arg-type]
        agents.append(agent)
        return agent

    yield make
    for agent in agents:
        agent.close()


@pytest.fixture
def pair(make_agent: MakeAgent) -> Pair:
    return Pair(make_agent("initiator"), make_agent("target"))


@pytest.fixture(params=["shm", "tcp"])
def each_pair(request: pytest.FixtureRequest, make_agent: MakeAgent) -> Pair:
    names = "initiator", "target"
    return Pair(*(make_agent(name, transports=[request.param]) for name in names))


@pytest.fixture
def deaf(make_agent: MakeAgent) -> kvrail.Agent:
    """An agent that nobody drives.

    It answers nothing, so that what is posted to it stays in flight.
    """
    return make_agent("deaf", progress="inline")


def run_scene(name: str, *arguments: str, timeout: float = 30.0) -> str:
    """Runs a script of `scenes` to a good end; what it printed."""
    command = [sys.executable, "-X", "faulthandler", str(SCENES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{name} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout
