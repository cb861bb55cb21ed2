"""What becomes a descriptor list, what becomes None, and what raises."""

from __future__ import annotations

import sys
import types

import numpy
import pytest
from kvrail.nixl import _bindings as bindings
from kvrail.nixl._api import nixl_agent, nixl_agent_config


@pytest.fixture(scope="module")
def agent():
    return nixl_agent("lists", nixl_agent_config(backends=[]))


class Tensor:
    """A torch tensor as far as descriptors go."""

    def __init__(self, address=4096, count=10, device=-1, contiguous=True):
        self.address, self.count, self.device, self.contiguous = address, count, device, contiguous
        self.shape = (count,)

    def data_ptr(self):
        return self.address

    def numel(self):
        return self.count

    def element_size(self):
        return 4

    def get_device(self):
        return self.device

    def is_contiguous(self):
        return self.contiguous

    def __getitem__(self, index):
        return self


@pytest.fixture
def torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(Tensor=Tensor))


def rows(descs):
    return [descs[i] for i in range(descs.descCount())]


def test_tuples_and_arrays_make_the_same_list(agent):
    wanted = [(4096, 10, 0), (8192, 20, 1)]
    for descs in (wanted, numpy.array(wanted, numpy.uint64), numpy.array(wanted, numpy.int64)):
        assert rows(agent.get_xfer_descs(descs, "DRAM")) == wanted
    named = [(*row, b"") for row in wanted]
    for descs in (named, numpy.array(wanted, numpy.uint64)):
        assert rows(agent.get_reg_descs(descs, "VRAM")) == named


def test_tensors_bring_their_memory_type(agent, torch):
    assert rows(agent.get_xfer_descs(Tensor())) == [(4096, 40, 0)]
    assert agent.get_xfer_descs(Tensor()).getType() == bindings.DRAM_SEG
    on_gpu = agent.get_reg_descs([Tensor(device=1), Tensor(8192, device=1)])
    assert rows(on_gpu) == [(4096, 40, 1, b""), (8192, 40, 1, b"")]
    assert on_gpu.getType() == bindings.VRAM_SEG


@pytest.mark.parametrize(
    "tensors",
    [
        Tensor(contiguous=False),
        [Tensor(), Tensor(contiguous=False)],
        [Tensor(), Tensor(device=0)],
        [Tensor(), (1, 2, 3)],
    ],
)
def test_tensors_that_are_not_one_memory_are_refused_with_the_reason(agent, torch, caplog, tensors):
    assert agent.get_xfer_descs(tensors) is None
    assert "tensor" in caplog.text
    with pytest.raises(TypeError, match="tensor"):
        agent.register_memory(tensors)


def test_lists_pass_and_lists_of_the_other_kind_do_not(agent):
    xfer = agent.get_xfer_descs([(1, 2, 3)], "DRAM")
    reg = agent.get_reg_descs([(1, 2, 3, "")], "DRAM")
    remote = agent.get_remote_descs([(1, 2, 3, "peer")], "DRAM")
    assert agent.get_xfer_descs(xfer) is xfer
    assert agent.get_reg_descs(reg) is reg
    assert agent.get_remote_descs(remote) is remote
    assert agent.get_xfer_descs(reg) is None
    assert agent.get_reg_descs(xfer) is None


@pytest.mark.parametrize(
    ("descs", "mem_type"),
    [
        ([(1, 2, 3)], None),
        ([(1, 2)], "DRAM"),
        (numpy.zeros((2, 3), numpy.uint64), None),
        (numpy.zeros((2, 4), numpy.uint64), "DRAM"),
        (numpy.zeros(3, numpy.uint64), "DRAM"),
        (["text"], "DRAM"),
    ],
)
def test_what_is_no_list_is_none_and_a_type_error_where_one_is_needed(agent, descs, mem_type):
    assert agent.get_xfer_descs(descs, mem_type) is None
    with pytest.raises(TypeError):
        agent.prep_xfer_dlist("", descs, mem_type)


@pytest.mark.parametrize(
    ("descs", "mem_type", "error"),
    [
        ([(1, 2, 3)], "V-RAM", KeyError),
        ([], "DRAM", IndexError),
        (numpy.zeros((0, 3), numpy.uint64), "DRAM", IndexError),
        (None, "DRAM", TypeError),
        ([(1, 2, 3), (1, 2)], "DRAM", ValueError),
        ([(1, 2, 3), [1, 2, 3]], "DRAM", TypeError),
        (numpy.zeros((2, 3), numpy.int32), "DRAM", ValueError),
        (numpy.zeros((2, 3)), "DRAM", ValueError),
        (numpy.zeros((4, 3), numpy.uint64)[::2], "DRAM", ValueError),
        (numpy.zeros((2, 3), ">u8"), "DRAM", ValueError),
    ],
)
def test_what_is_nearly_a_list_raises(agent, descs, mem_type, error):
    with pytest.raises(error):
        agent.get_xfer_descs(descs, mem_type)


def test_strided_rows_need_a_memory_type(agent):
    strided = numpy.array([[4096, 10, 0, 20, 5]], numpy.uint64)
    with pytest.raises(ValueError, match="mem_type"):
        agent.prep_xfer_dlist("", strided)
    assert agent.get_xfer_descs(strided, "DRAM") is None
