"""Several processes: bytes between them, and deaths, forks, interrupts and ends at any step."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import kvrail
import numpy as np
import pytest
from conftest import SCENES, MakeAgent, run_scene


class Served:
    """The other process."""

    def __init__(self, transport: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SCENES / "serve.py"), transport],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address, *key = self.answer().split()
        self.key = [int(part) for part in key]

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, what: str) -> str:
        assert self.process.stdin is not None
        print(what, file=self.process.stdin, flush=True)
        return self.answer()


@pytest.fixture(params=["shm", "tcp"])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    served = Served(request.param)
    yield served
    served.process.kill()
    served.process.communicate(timeout=10)


@pytest.fixture
def here(served: Served, make_agent: MakeAgent, request: pytest.FixtureRequest) -> kvrail.Agent:
    return make_agent("here", transports=[request.node.callspec.params["served"]])


def test_an_array_moves_to_another_process_and_back(served: Served, here: kvrail.Agent) -> None:
    source = np.random.default_rng(1).integers(0, 256, 1 << 20, dtype=np.uint8)
    local = here.register(source)
    peer = here.connect(served.address)
    plan = here.prepare(peer, local, peer.region(served.key))
    plan.write(notify="there").wait(10)
    assert served.ask("notified") == f"here there {int(source.sum())}"
    assert served.ask("fill 7") == "filled"
    plan.read().wait(10)
    assert (source == 7).all()


def test_a_peer_that_is_killed_is_an_error_in_time(served: Served, here: kvrail.Agent) -> None:
    peer = here.connect(served.address)
    local = here.register(bytearray(1 << 20))
    plan = here.prepare(peer, local, peer.region(served.key))
    plan.write().wait(10)
    served.process.kill()
    served.process.wait(10)
    started = time.monotonic()
    with pytest.raises(kvrail.Error) as caught:
        while time.monotonic() - started < 15:
            plan.write(timeout=5).wait()
    assert time.monotonic() - started < 10
    assert isinstance(caught.value, kvrail.TransferError | kvrail.PostError)
    assert "served" in str(caught.value)


def test_a_peer_that_is_stopped_is_an_error_at_the_deadline_and_is_met_anew_when_it_runs(
    served: Served, here: kvrail.Agent
) -> None:
    peer = here.connect(served.address)
    local = here.register(bytearray(1 << 20))
    plan = here.prepare(peer, local, peer.region(served.key))
    plan.write().wait(10)
    if peer.transport == "shm":
        pytest.skip("shm copies by itself: it does not need a stopped peer's help")
    served.process.send_signal(signal.SIGSTOP)
    with pytest.raises(kvrail.TransferTimeout):
        for _ in range(100):
            plan.write(timeout=0.3).wait()
    served.process.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + 10
    while True:
        try:
            peer = here.connect(served.address, timeout=5)
            here.prepare(peer, local, peer.region(served.key)).write(timeout=1).wait()
            break
        except (kvrail.TransferError, kvrail.PostError):
            assert time.monotonic() < deadline


def test_a_restarted_process_is_another_peer(make_agent: MakeAgent) -> None:
    here = make_agent("here")
    first, second = Served("shm"), None
    try:
        before = here.connect(first.address)
        slices = before.region(first.key)[:]
        first.process.kill()
        first.process.wait(10)
        second = Served("shm")
        after = here.connect(second.address)
        assert before != after and before.name == after.name
        local = here.register(bytearray(1 << 20))
        with pytest.raises(kvrail.PrepareError, match="served in an earlier life"):
            here.prepare(after, local, slices)
        here.prepare(after, local, after.region(second.key)).write().wait(10)
    finally:
        for served in (first, second):
            if served is not None:
                served.process.kill()
                served.process.communicate(timeout=10)


def test_a_forked_child_gets_errors_and_the_parent_goes_on() -> None:
    assert run_scene("fork.py").strip() == "went on"


def test_ctrl_c_ends_every_wait() -> None:
    assert run_scene("interrupt.py").strip() == "interrupted 7"


@pytest.mark.parametrize("how", ["plain", "exception", "deleted", "cycle"])
def test_the_interpreter_ends_quietly_whatever_is_alive(how: str) -> None:
    started = time.monotonic()
    run_scene("leave.py", how)
    assert time.monotonic() - started < 10
