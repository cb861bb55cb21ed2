"""Handles: given back once, usable when that fails, quiet when collected."""

from __future__ import annotations

import gc
import logging

import pytest
from kvrail.nixl import _bindings as bindings
from kvrail.nixl._api import (
    nixl_agent,
    nixl_agent_config,
    nixl_prepped_dlist_handle,
    nixl_xfer_handle,
)


class Native:
    """Stands for a native agent, which refuses as often as it is told to."""

    def __init__(self, refusals: int = 0) -> None:
        self.refusals = refusals
        self.released: list[int] = []

    def releaseXferReq(self, handle: int) -> None:
        if self.refusals:
            self.refusals -= 1
            raise bindings.nixlRepostActiveError("it still runs")
        self.released.append(handle)

    releasedDlistH = releaseXferReq


KINDS = [nixl_xfer_handle, nixl_prepped_dlist_handle]


@pytest.mark.parametrize("kind", KINDS)
def test_a_handle_is_released_once(kind):
    native = Native()
    handle = kind(native, 7)
    assert (handle._handle, handle._agent, handle._released) == (7, native, False)
    handle.release()
    handle.release()
    del handle
    gc.collect()
    assert native.released == [7]


@pytest.mark.parametrize("kind", KINDS)
def test_a_release_that_raises_leaves_the_handle_as_it_was(kind):
    native = Native(refusals=2)
    handle = kind(native, 7)
    for _ in range(2):
        with pytest.raises(bindings.nixlRepostActiveError):
            handle.release()
        assert not handle._released
    handle.release()
    assert handle._released
    assert native.released == [7]


@pytest.mark.parametrize("kind", KINDS)
def test_a_handle_that_was_not_made_is_collected_in_silence(kind, capfd):
    with pytest.raises(ValueError):
        kind(Native(), "x")
    gc.collect()
    assert capfd.readouterr().err == ""


def test_a_transfer_collected_while_it_runs_is_given_to_its_agent(caplog):
    leaked: list[int] = []
    handle = nixl_xfer_handle(Native(refusals=1), 7, leaked)
    with caplog.at_level(logging.ERROR, "nixl"):
        del handle
        gc.collect()
    assert leaked == [7]
    assert "0x7" in caplog.text


def test_an_agent_ends_leaked_transfers_when_it_can():
    agent = nixl_agent("leaky", nixl_agent_config(backends=[]))
    native, agent.agent = agent.agent, Native(refusals=1)
    agent._leaked_xfer_handles += [3, 4]
    agent._end_leaked()
    assert agent._leaked_xfer_handles == [3]
    agent._end_leaked()
    assert agent._leaked_xfer_handles == []
    assert agent.agent.released == [4, 3]
    agent.agent = native


def test_an_agent_that_could_not_be_made_is_collected_in_silence(capfd):
    with pytest.raises(ValueError):
        nixl_agent("")
    gc.collect()
    assert "Exception ignored" not in capfd.readouterr().err
