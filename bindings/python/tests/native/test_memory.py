"""Whose memory is taken, whose is refused, and how long it is kept."""

from __future__ import annotations

import array
import ctypes
import gc
import mmap
import weakref
from multiprocessing.shared_memory import SharedMemory as PythonSharedMemory
from typing import Any

import kvrail
import numpy as np
import pytest
from conftest import MakeAgent, Pair


def moved(pair: Pair, memory: Any, expected: bytes) -> None:
    """The bytes that a peer reads of this memory."""
    region = pair.initiator.register(memory)
    assert region.nbytes == len(expected)
    target = bytearray(len(expected))
    remote = pair.target.register(target)
    peer = pair.meet()
    pair.initiator.prepare(peer, region, peer.region(remote.key)).write().wait(10)
    assert bytes(target) == expected
    region.deregister()


def test_buffers_of_every_kind_are_taken(pair: Pair) -> None:
    moved(pair, bytearray(b"bytearray"), b"bytearray")
    moved(pair, memoryview(bytearray(b"0123456789"))[2:6], b"2345")
    moved(pair, array.array("H", [1, 2]), b"\1\0\2\0")
    moved(pair, (ctypes.c_uint16 * 2)(3, 4), b"\3\0\4\0")
    with mmap.mmap(-1, 4096) as mapping:
        mapping[:4] = b"mmap"
        moved(pair, memoryview(mapping)[:4], b"mmap")
        gc.collect()


def test_arrays_are_taken_in_any_dense_order_of_dimensions(pair: Pair) -> None:
    numbers = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    raw = numbers.tobytes()
    moved(pair, numbers, raw)
    moved(pair, numbers.transpose(2, 0, 1), raw)
    moved(
        pair, np.asfortranarray(np.arange(6).reshape(2, 3)), np.array([0, 3, 1, 4, 2, 5]).tobytes()
    )
    moved(pair, numbers[1:2], raw[24:])
    moved(
        pair, np.array(["2026-11-21"], "datetime64[ns]"), np.array([1795219200 * 10**9]).tobytes()
    )
    moved(pair, np.array(["äb"]), np.array(["äb"]).tobytes())


class Dlpack:
    """Only DLPack, from before and since version 1."""

    def __init__(self, of: np.ndarray, legacy: bool) -> None:
        self.of, self.legacy = of, legacy

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.of.__dlpack_device__()

    def __dlpack__(self, **arguments: Any) -> Any:
        if self.legacy and arguments:
            raise TypeError("unexpected keyword argument")
        return self.of.__dlpack__(**arguments)


@pytest.mark.parametrize("legacy", [True, False])
def test_dlpack_tensors_are_taken_and_kept(pair: Pair, legacy: bool) -> None:
    numbers = np.arange(100, dtype=np.float32)[10:20]
    moved(pair, Dlpack(numbers, legacy), numbers.tobytes())
    with pytest.raises(kvrail.UnsuitableMemory, match="not one block"):
        pair.initiator.register(Dlpack(np.arange(100)[::2], legacy))


def test_a_read_only_dlpack_tensor_is_refused(pair: Pair) -> None:
    numbers = np.arange(4)
    numbers.flags.writeable = False
    with pytest.raises((kvrail.UnsuitableMemory, BufferError)):
        pair.initiator.register(Dlpack(numbers, legacy=False))


def refusals() -> list[Any]:
    read_only = np.zeros(4)
    read_only.flags.writeable = False
    return [
        pytest.param(b"bytes", "read-only", id="bytes"),
        pytest.param(memoryview(b"bytes"), "read-only", id="view_of_bytes"),
        pytest.param(read_only, "read-only", id="read_only_array"),
        pytest.param(np.broadcast_to(np.zeros(1), (5,)), "read-only", id="broadcast"),
        pytest.param(np.zeros((4, 8))[:, ::2], r"strides \[64, 16\]", id="gaps"),
        pytest.param(np.zeros(8)[::-1], r"strides \[-8\]", id="reversed"),
        pytest.param(memoryview(bytearray(8))[::2], r"strides \[2\]", id="strided_view"),
        pytest.param(np.zeros(0), "no bytes", id="empty_array"),
        pytest.param(bytearray(), "no bytes", id="empty_buffer"),
        pytest.param(np.array([object()]), "Python objects", id="objects"),
        pytest.param(np.zeros(1, [("a", "O")]), "Python objects", id="object_fields"),
    ]


@pytest.mark.parametrize(("memory", "why"), refusals())
def test_memory_that_cannot_be_a_region_is_refused_with_the_reason(
    pair: Pair, memory: Any, why: str
) -> None:
    with pytest.raises(kvrail.UnsuitableMemory, match=why) as caught:
        pair.initiator.register(memory)
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, kvrail.RegisterError)


@pytest.mark.parametrize("thing", [None, 7, "text", [1, 2], {}, object()])
def test_what_is_no_memory_is_a_type_error(pair: Pair, thing: Any) -> None:
    with pytest.raises(TypeError, match="cannot register a"):
        pair.initiator.register(thing)


class Claim:
    """An array interface that lies."""

    def __init__(self, **claims: Any) -> None:
        good = {"version": 3, "shape": (4,), "typestr": "|u1", "data": (4096, False)}
        self.__array_interface__ = good | claims


@pytest.mark.parametrize(
    "claims",
    [
        {"data": (0, False)},
        {"shape": (-1,)},
        {"shape": (1 << 62, 1 << 62)},
        {"data": (2**64 - 2, False)},
        {"typestr": "nonsense"},
        {"typestr": "|V"},
        {"typestr": ""},
        {"shape": (4, 2), "strides": (2,)},
        {"shape": "four"},
        {"data": "here"},
    ],
)
def test_an_interface_that_cannot_be_true_is_an_error(pair: Pair, claims: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        pair.initiator.register(Claim(**claims))


class CudaArray:
    """What CuPy or Numba would hand over; no GPU is touched."""

    def __init__(self, ordinal: int | None) -> None:
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": (16,),
            "typestr": "<f2",
            "data": (0x7F00_0000_0000, False),
            "strides": None,
        }
        if ordinal is not None:
            self.__dlpack_device__ = lambda: (2, ordinal)


def test_memory_of_a_gpu_is_refused_by_the_transport_that_cannot_take_it(pair: Pair) -> None:
    with pytest.raises(kvrail.RegisterError, match=r"shm refused to register .*cuda:3") as caught:
        pair.initiator.register(CudaArray(3))
    assert caught.value.facts["transport"] == "shm"
    assert caught.value.hints == ["build the agent without shm, or register host memory"]
    with pytest.raises(kvrail.UnsuitableMemory, match="which GPU"):
        pair.initiator.register(CudaArray(None))


class Owned(np.ndarray):
    """An array that can be watched."""


def owned(nbytes: int) -> tuple[Owned, weakref.ref[Owned]]:
    memory = np.zeros(nbytes, np.uint8).view(Owned)
    return memory, weakref.ref(memory)


def test_an_array_lives_exactly_as_long_as_it_is_registered(pair: Pair) -> None:
    memory, alive = owned(4096)
    key = pair.target.register(memory).key
    del memory
    gc.collect()
    peer = pair.meet()
    plan = pair.initiator.prepare(peer, pair.initiator.register(bytearray(4096)), peer.region(key))
    plan.write().wait(10)
    assert alive() is not None, "a region that nobody holds is still registered: its peers use it"
    pair.target.close()
    pair.target.poll_notification()
    gc.collect()
    assert alive() is None
    memory, alive = owned(4096)
    region = pair.initiator.register(memory)
    slices = region[:100]
    del memory
    region.deregister()
    assert alive() is not None, "the region's source is still at hand"
    del region
    gc.collect()
    assert alive() is None and len(slices) == 1


def test_an_agent_that_is_dropped_gives_its_memory_back(make_agent: MakeAgent) -> None:
    memory, alive = owned(4096)
    agent = kvrail.Agent("dropped", transports=["shm"], ignore_environment=True)
    agent.register(memory)
    del memory, agent
    gc.collect()
    make_agent("other").poll_notification()
    assert alive() is None


def test_a_transfer_in_flight_keeps_its_memory_whatever_is_dropped(
    pair: Pair, deaf: kvrail.Agent
) -> None:
    memory, alive = owned(4096)
    remote = deaf.register(bytearray(4096))
    peer = pair.initiator.connect(deaf.metadata())
    region = pair.initiator.register(memory)
    transfer = pair.initiator.prepare(peer, region, peer.region(remote.key)).write()
    with pytest.raises(kvrail.WaitTimeout, match="was not free within"):
        region.deregister(timeout=0.05)
    del memory, region
    gc.collect()
    assert not transfer.done and alive() is not None
    transfer.cancel()
    with pytest.raises(kvrail.TransferCancelled):
        transfer.wait(5)
    del transfer
    gc.collect()
    pair.initiator.poll_notification()
    assert alive() is None


def test_a_bytearray_cannot_be_resized_while_it_is_registered(pair: Pair) -> None:
    memory = bytearray(100)
    region = pair.initiator.register(memory)
    with pytest.raises(BufferError):
        memory.extend(b"more")
    region.deregister()
    memory.extend(b"more")


def test_pythons_own_shared_memory_cannot_be_unmapped_while_it_is_registered(pair: Pair) -> None:
    memory = PythonSharedMemory(create=True, size=4096)
    try:
        region = pair.initiator.register(memory.buf)
        with pytest.raises(BufferError):
            memory.close()
        region.deregister()
        del region
        gc.collect()
        memory.close()
    finally:
        memory.unlink()


def test_of_a_list_with_one_bad_entry_nothing_is_registered(pair: Pair) -> None:
    memory, alive = owned(64)
    with pytest.raises(kvrail.UnsuitableMemory):
        pair.initiator.register_many([memory, b"read-only"])
    del memory
    gc.collect()
    assert alive() is None and pair.initiator.stats()["regions"] == 0


def test_leaving_a_region_deregisters_it(pair: Pair) -> None:
    with pair.initiator.register(bytearray(8)) as region:
        assert region.registered and pair.initiator.stats()["regions"] == 1
    assert not region.registered and pair.initiator.stats()["regions"] == 0
    region.deregister()
    for use in (lambda: region[:], region.read, lambda: pair.initiator.metadata([region])):
        with pytest.raises(kvrail.AccessError, match="deregistered"):
            use()


@pytest.mark.parametrize("dtype", ["complex256", "object", "nothing"])
def test_shared_memory_of_an_unknown_type_is_a_type_error(dtype: str) -> None:
    with pytest.raises(TypeError, match="no shared memory of type"):
        kvrail.shared(4, dtype)


def test_shared_memory_of_no_bytes_or_of_more_than_there_is_is_an_error() -> None:
    with pytest.raises(kvrail.AllocateError):
        kvrail.shared(0)
    with pytest.raises((kvrail.AllocateError, OverflowError)):
        kvrail.shared(1 << 60)
    with pytest.raises(ValueError, match="negative"):
        kvrail.shared((-1, 4))
