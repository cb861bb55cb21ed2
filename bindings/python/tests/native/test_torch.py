"""Tensors: the real torch where it is installed, and a stand-in with its methods everywhere."""

from __future__ import annotations

from typing import Any

import kvrail
import numpy as np
import pytest
from conftest import Pair


class Device:
    def __init__(self, kind: str) -> None:
        self.type = kind


class Tensor:
    """The methods of a tensor that kvrail calls, over a NumPy array."""

    def __init__(self, of: np.ndarray, device: str = "cpu", conj: bool = False) -> None:
        self.of, self.device, self.conj = of, Device(device), conj
        self.shape = of.shape

    def data_ptr(self) -> int:
        return int(self.of.__array_interface__["data"][0])

    def element_size(self) -> int:
        return self.of.itemsize

    def stride(self) -> tuple[int, ...]:
        return tuple(stride // self.of.itemsize for stride in self.of.strides)

    def detach(self) -> Tensor:
        return self

    def numpy(self) -> np.ndarray:
        return self.of

    def is_conj(self) -> bool:
        return self.conj

    def is_neg(self) -> bool:
        return False

    def get_device(self) -> int:
        return 5


def test_a_tensor_is_taken_by_its_address_and_strides(pair: Pair) -> None:
    numbers = np.arange(60, dtype=np.float16).reshape(3, 4, 5)
    region = pair.initiator.register(Tensor(numbers.transpose(1, 2, 0)))
    assert (region.address, region.nbytes, region.device) == (numbers.ctypes.data, 120, "cpu")
    assert region.read() == numbers.tobytes()


def test_a_tensor_names_blocks_too(pair: Pair) -> None:
    region = pair.initiator.register(bytearray(100))
    assert len(region.blocks(10, Tensor(np.array([1, 2, 9])))) == 3


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (Tensor(np.zeros((4, 4))[:, :2]), "not one block"),
        (Tensor(np.zeros(4), device="meta"), "on meta"),
        (Tensor(np.zeros(4), device="xpu"), "on xpu"),
        (Tensor(np.zeros(4, complex), conj=True), "is_conj"),
    ],
)
def test_a_tensor_whose_bytes_are_not_there_or_not_its_values_is_refused(
    pair: Pair, tensor: Any, why: str
) -> None:
    with pytest.raises(kvrail.UnsuitableMemory, match=why):
        pair.initiator.register(tensor)


def test_a_tensor_on_a_gpu_is_refused_by_the_transport(pair: Pair) -> None:
    with pytest.raises(kvrail.RegisterError, match="cuda:5"):
        pair.initiator.register(Tensor(np.zeros(4), device="cuda"))


def test_the_real_torch_moves_bytes_and_cannot_free_them_meanwhile(pair: Pair) -> None:
    torch = pytest.importorskip(
        "torch", reason="torch is not installed; the stand-in stands for it"
    )
    source = torch.arange(1000, dtype=torch.float32).to(torch.bfloat16).reshape(10, 100)
    shared = kvrail.shared((10, 100), torch.bfloat16)
    target = shared.torch()
    assert target.shape == (10, 100) and target.dtype == torch.bfloat16
    local, remote = pair.initiator.register(source), pair.target.register(target)
    peer = pair.meet()
    pair.initiator.prepare(peer, local, peer.region(remote.key)).write().wait(10)
    assert torch.equal(source, target)
    with pytest.raises(RuntimeError, match="resiz"):
        source.view(-1).resize_(1 << 20)
    indices = torch.tensor([3, 1, 2])
    assert len(local.blocks(200, indices)) == 3
    with pytest.raises(kvrail.UnsuitableMemory, match="not one block"):
        pair.initiator.register(source[:, ::2])
    with pytest.raises(kvrail.UnsuitableMemory):
        pair.initiator.register(torch.zeros(4, device="meta"))
    with pytest.raises(kvrail.UnsuitableMemory):
        pair.initiator.register(torch.eye(3).to_sparse())
