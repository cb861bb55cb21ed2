"""KV caches as vLLM lays them out, and the arithmetic of its NixlConnector over them.

A region is the K or the V of one layer: `[block][head][byte]` (heads before tokens, HND), so that
the heads of one rank of a larger tensor-parallel group are one slice of each block of a smaller
group's rank. The truth that caches are filled from and checked against is per (request, region,
logical block, global head): it knows nothing of ranks, ids and offsets, and so checks all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from memory import POISON, Memory, pattern

HEAD_BYTES = 1024


@dataclass(frozen=True)
class Shape:
    """What all ranks of an engine have in common."""

    tp: int
    heads: int
    blocks: int
    regions: int = 6
    #: Latent attention: each rank holds all of it, whatever `tp` is.
    replicated: bool = False

    def heads_of(self, rank: int) -> list[int]:
        """The global heads in a rank's blocks; more ranks than heads share them."""
        if self.replicated:
            return list(range(self.heads))
        if self.heads >= self.tp:
            each = self.heads // self.tp
            return list(range(rank * each, (rank + 1) * each))
        return [rank * self.heads // self.tp]

    def block_bytes(self, rank: int = 0) -> int:
        return len(self.heads_of(rank)) * HEAD_BYTES


@dataclass(frozen=True)
class Request:
    name: str
    source_blocks: list[int]
    target_blocks: list[int]


class Cache:
    """One rank's regions, each inside a larger allocation."""

    def __init__(self, shape: Shape, rank: int):
        self.shape = shape
        self.rank = rank
        self.block_bytes = shape.block_bytes(rank)
        self.regions = [Memory(shape.blocks * self.block_bytes) for _ in range(shape.regions)]

    def registration(self) -> list[tuple[int, int, int, str]]:
        return [(region.address, region.nbytes, 0, "") for region in self.regions]

    def bases(self) -> list[int]:
        return [region.address for region in self.regions]

    def fill(self, request: Request) -> None:
        for region, at, content in self._content(request, request.source_blocks):
            self.regions[region].bytes[at : at + HEAD_BYTES] = content

    def free(self, request: Request) -> None:
        """The blocks go to another request, which overwrites them at once."""
        for region in self.regions:
            for block in request.source_blocks:
                at = block * self.block_bytes
                region.bytes[at : at + self.block_bytes] = POISON ^ 0xFF

    def expect(self, request: Request) -> None:
        for region, at, content in self._content(request, request.target_blocks):
            self.regions[region].expect(at, content)

    def wrong_bytes(self) -> int:
        return sum(region.wrong_bytes() for region in self.regions)

    def wrong_bytes_of(self, request: Request) -> int:
        """Of one request's blocks alone, to be asked the moment that they are said to be there."""
        return sum(
            int(np.count_nonzero(self.regions[region].bytes[at : at + HEAD_BYTES] != content))
            for region, at, content in self._content(request, request.target_blocks)
        )

    def _content(self, request: Request, blocks: list[int]) -> Any:
        for region in range(self.shape.regions):
            for logical, block in enumerate(blocks):
                for slot, head in enumerate(self.shape.heads_of(self.rank)):
                    at = block * self.block_bytes + slot * HEAD_BYTES
                    yield region, at, pattern(HEAD_BYTES, request.name, region, logical, head)


def strided(
    bases: list[int], length: int, stride: int, count: int, offset: int = 0
) -> npt.NDArray[np.uint64]:
    """Nx5: per region its blocks as one row (address, length, device, stride, count)."""
    rows = [(base + offset, length, 0, stride, count) for base in bases]
    return np.array(rows, dtype=np.uint64)


def descriptor_ids(regions: int, blocks_of_region: int, blocks: list[int]) -> npt.NDArray[np.int64]:
    """region x blocks + block, region by region."""
    region = np.arange(regions, dtype=np.int64)[:, None]
    return (region * blocks_of_region + np.asarray(blocks, dtype=np.int64)[None, :]).reshape(-1)


@dataclass(frozen=True)
class Share:
    """What a decode rank reads from one prefill rank: a slice of the other's blocks into a slice of
    its own."""

    source_rank: int
    length: int
    source_offset: int
    target_offset: int


def shares(prefill: Shape, decode: Shape, rank: int) -> list[Share]:
    """The reads of one decode rank; each head of its own is fetched once."""
    own = decode.block_bytes(rank)
    if prefill.replicated:
        return [Share(rank * prefill.tp // decode.tp, own, 0, 0)]
    if decode.tp >= prefill.tp:
        ratio = decode.tp // prefill.tp
        # Ranks that share a head have no more slices than the source's block has heads.
        slices = prefill.block_bytes(rank // ratio) // own
        return [Share(rank // ratio, own, (rank % ratio) * slices // ratio * own, 0)]
    ratio = prefill.tp // decode.tp
    found: list[Share] = []
    seen: set[tuple[int, ...]] = set()
    for source in range(rank * ratio, (rank + 1) * ratio):
        heads = tuple(prefill.heads_of(source))
        if heads in seen:
            continue
        seen.add(heads)
        length = len(heads) * HEAD_BYTES
        found.append(Share(source, length, 0, len(found) * length))
    return found
