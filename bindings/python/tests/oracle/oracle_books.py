"""What a driver knows of the objects that it has made: enough to tell what would be undefined in
the real NIXL.

Everything here follows from the operations and their success, not from the implementation, so that
both drivers come to the same judgement as long as they behave alike.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from operator import index
from typing import Any

Operation = dict[str, Any]
Range = tuple[int, int]

# Not undefined, but open: see `test_a_removed_agent_is_still_heard`.
HEARD_BY_NOBODY = "an agent that has removed the one that sends to it"

# What makes lists, with the classes that it knows.
GETTERS = {
    "get_remote_descs": ("nixlRemoteDList",),
    "get_xfer_descs": ("nixlXferDList", "nixlRegDList"),
    "get_reg_descs": ("nixlXferDList", "nixlRegDList"),
}
ON_LISTS = ("make_prepped_xfer",)
ON_REQUESTS = (
    "transfer",
    "check_xfer_state",
    "get_xfer_telemetry",
    "query_xfer_backend",
    "estimate_xfer_cost",
    "cost_method",
)
RELEASES = ("release", "release_xfer_handle", "release_dlist_handle")


@dataclass
class Handle:
    """A prepared list or a request: who made it, over what, and whether it is still alive."""

    owner: str
    remote: str
    ranges: list[Range] = field(default_factory=list)
    remote_ranges: list[Range] = field(default_factory=list)
    operation: str = ""
    notification: bool = False
    released: bool = False

    @property
    def is_list(self) -> bool:
        return not self.operation


class Books:
    """Registrations, handles by the slots that they are bound to, and notifications under way."""

    def __init__(self) -> None:
        self.registered: dict[str, Counter[Range]] = {}
        self.handles: dict[str, Handle] = {}
        self.underway: Counter[str] = Counter()
        # Who has removed whom.
        self.removed: set[tuple[str, str]] = set()

    # --- what is undefined

    def hazard(self, operation: Operation, target: Any, arguments: list) -> str | None:
        """Why this operation is undefined in the real one, if it is."""
        call, on = operation["call"], operation["on"]
        if call in ("__getitem__", "__setitem__") and hasattr(target, "descCount"):
            if hasattr(arguments[0], "__index__") and index(arguments[0]) >= target.descCount():
                return "an index out of range of a list"
        if call in GETTERS and _takes_an_item(call, arguments):
            return "an index out of range of a list"
        if call == "deregister_memory" and arguments and hasattr(arguments[0], "descCount"):
            ranges = _ranges(arguments[0])
            if len(set(ranges)) < len(ranges):
                return "a registration named twice"
        for handle in self._handles_in(operation):
            if handle.released and call not in RELEASES:
                return "a handle after its release"
            if handle.owner != on and call not in RELEASES:
                return "a handle of another agent"
            if call in (ON_REQUESTS if handle.is_list else ON_LISTS):
                return "a handle of another kind"
            if call in ("transfer", "make_prepped_xfer") and not self._covered(handle):
                return "memory that is no longer registered"
            if call == "transfer":
                if _overlap(handle):
                    return "parts of a transfer that overlap"
                if (handle.remote, on) in self.removed:
                    return HEARD_BY_NOBODY
        if call == "send_notif" and arguments and (_name(arguments[0]), on) in self.removed:
            return HEARD_BY_NOBODY
        return None

    def _handles_in(self, operation: Operation) -> list[Handle]:
        slots = [raw["ref"] for raw in operation.get("args", []) if _is_reference(raw)]
        return [self.handles[slot] for slot in slots if slot in self.handles]

    def _covered(self, handle: Handle) -> bool:
        # A list is about one side's memory, a request about both.
        whose = handle.owner if handle.remote in ("", "NIXL_INIT_AGENT") else handle.remote
        near = whose if handle.is_list else handle.owner
        sides = ((near, handle.ranges), (handle.remote, handle.remote_ranges))
        return all(
            any(start <= first and last <= end for start, end in self.registered.get(agent, ()))
            for agent, ranges in sides
            for first, last in ranges
        )

    # --- what has happened

    def note(self, operation: Operation, arguments: list, result: Any) -> None:
        """Takes an operation that succeeded into the books."""
        call, on = operation["call"], operation["on"]
        if call == "register_memory":
            self.registered.setdefault(on, Counter()).update(_ranges(result))
        elif call == "deregister_memory":
            left = self.registered.setdefault(on, Counter())
            left.subtract(_ranges(arguments[0]))
            self.registered[on] = +left
        elif call == "remove_remote_agent":
            self.removed.add((on, _name(arguments[0])))
        elif call == "add_remote_agent":
            self.removed.discard((on, _name(result)))
        elif call == "transfer":
            self._note_transfer(operation, arguments, result)
        elif call == "send_notif":
            self.underway[_name(arguments[0])] += 1
        elif call in RELEASES:
            for handle in [*self._handles_in(operation), *filter(None, [self.handles.get(on)])]:
                handle.released = True
        if "bind" in operation:
            made = self._made(operation, arguments)
            if made is not None:
                self.handles[operation["bind"]] = made
            else:
                self.handles.pop(operation["bind"], None)

    def _note_transfer(self, operation: Operation, arguments: list, result: Any) -> None:
        for handle in self._handles_in(operation):
            # A message given once stays the request's.
            handle.notification |= bool(arguments[1:] and arguments[1])
            if handle.notification and result == "DONE":
                self.underway[handle.remote] += 1

    def _made(self, operation: Operation, arguments: list) -> Handle | None:
        call, on = operation["call"], operation["on"]
        if call == "prep_xfer_dlist":
            return Handle(on, _name(arguments[0]), _ranges_of_argument(arguments[1]))
        if call == "initialize_xfer":
            direction, local, remote, agent, *rest = arguments
            told = bool(rest and rest[0])
            return Handle(on, _name(agent), _ranges(local), _ranges(remote), direction, told)
        if call == "make_prepped_xfer":
            direction, _local, ours, _remote, theirs, *rest = arguments
            near, far = self._handles_in(operation)
            # As the real one takes them: cut to 32 bits.
            local_ranges = [near.ranges[int(which) & 0xFFFF_FFFF] for which in ours]
            remote_ranges = [far.ranges[int(which) & 0xFFFF_FFFF] for which in theirs]
            told = bool(rest and rest[0])
            return Handle(on, far.remote, local_ranges, remote_ranges, direction, told)
        return None


def _takes_an_item(call: str, arguments: list) -> bool:
    """Whether the first element of an empty list is looked at, to see what it is a list of."""
    descs = arguments[0]
    if not hasattr(descs, "descCount") or type(descs).__name__ in GETTERS[call]:
        return False
    return descs.descCount() == 0


def _is_reference(raw: Any) -> bool:
    return isinstance(raw, dict) and "ref" in raw


def _name(agent: Any) -> str:
    return agent.decode(errors="replace") if isinstance(agent, bytes) else agent


def _ranges(descs: Any) -> list[Range]:
    rows = (descs[index] for index in range(descs.descCount()))
    return [(row[0], row[0] + row[1]) for row in rows]


def _ranges_of_argument(descs: Any) -> list[Range]:
    """What a descriptor list, a list of tuples, an Nx3 or a strided Nx5 array covers, in the order
    of the indices.
    """
    if hasattr(descs, "descCount"):
        return _ranges(descs)
    rows = [[int(number) for number in row] for row in descs]
    if rows and len(rows[0]) == 5:
        return [
            (start + index * stride, start + index * stride + length)
            for start, length, _device, stride, count in rows
            for index in range(count)
        ]
    return [(row[0], row[0] + row[1]) for row in rows]


def _overlap(handle: Handle) -> bool:
    """Whether the order in which the parts of a transfer are done would be seen in its result."""
    into, out_of = handle.ranges, handle.remote_ranges
    if handle.operation == "WRITE":
        into, out_of = out_of, into
    into = sorted(span for span in into if span[0] < span[1])
    twice = any(one[1] > other[0] for one, other in pairwise(into))
    return twice or any(one[0] < other[1] and other[0] < one[1] for one in into for other in out_of)
