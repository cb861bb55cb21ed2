"""One implementation of NIXL's Python API as a process that does what it is told.

`python oracle_driver.py --module nixl` reads operations as JSON lines and answers each with its
outcome: `{"ok": value}`, `{"raises": type}`, `{"unbound": slot}`, or `{"hazard": why}` for what
would be undefined in the real NIXL, which then is not done there. The process is single-threaded
and deterministic as far as the implementation is.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import hashlib
import importlib
import json
import os
import pickle
import sys
import tempfile
import time
from typing import Any

from oracle_books import Books
from oracle_value import (
    AGENTS,
    MEMORY_BYTES,
    Decoder,
    Unbound,
    address,
    encode,
)

ARRIVAL_S = 5.0
TRANSFER_S = 10.0

# Results that each implementation fills as it likes; only what they are is compared.
OWN_AFFAIR = {
    "__getstate__",
    "__hash__",
    "estimate_xfer_cost",
    "get_agent_metadata",
    "get_backend_params",
    "get_partial_agent_metadata",
    "get_plugin_list",
    "get_plugin_params",
    "get_serialized_descs",
}

# Numbers of file descriptors that mean the same file in every driver.
FILES = {200: 8192, 201: 100}


class Driver:
    """The implementation, what operations have bound, and what is known about it."""

    def __init__(self, module: str, may_crash: bool):
        self.api = importlib.import_module(f"{module}._api")
        self.bindings = importlib.import_module(f"{module}._bindings")
        # `nixl` leaves an attribute of the same name that is the standard library's module.
        importlib.import_module(f"{module}.logging")
        self.modules = {
            "api": self.api,
            "bindings": self.bindings,
            "utils": importlib.import_module(f"{module}._utils"),
            "driver": self,
        }
        self.may_crash = may_crash
        self.slots: dict[str, Any] = {}
        self.decode = Decoder(self.bindings, self.slots)
        self.books = Books()
        self._map_memory()
        self._open_files()

    # --- what every implementation has alike: memory at fixed addresses, files at fixed numbers

    def _map_memory(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = (
            [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
        )
        prot_read_write, private_anonymous_fixed_noreplace = 3, 0x10_0022
        for agent in AGENTS:
            at = libc.mmap(
                address(agent),
                MEMORY_BYTES,
                prot_read_write,
                private_anonymous_fixed_noreplace,
                -1,
                0,
            )
            if at != address(agent):
                raise OSError(ctypes.get_errno(), f"no memory at {address(agent):#x}")

    def _open_files(self) -> None:
        for number in FILES:
            with tempfile.TemporaryFile() as file:
                os.dup2(file.fileno(), number)

    def reset(self) -> None:
        """Forgets every object; memory and files as in the beginning."""
        # Handles before the agents that they are of.
        for slot in [slot for slot in self.slots if slot not in AGENTS]:
            del self.slots[slot]
        gc.collect()
        self.slots.clear()
        gc.collect()
        self.books = Books()
        for index, agent in enumerate(AGENTS):
            pattern = bytes(
                (index * 85 + 7 * offset + offset // 251) % 256 for offset in range(4096)
            )
            for page in range(0, MEMORY_BYTES, len(pattern)):
                ctypes.memmove(address(agent, page), pattern, len(pattern))
        for number, size in FILES.items():
            os.ftruncate(number, 0)
            os.ftruncate(number, size)

    def memory(self, agent: str) -> str:
        """A digest of an agent's memory."""
        return hashlib.sha256(ctypes.string_at(address(agent), MEMORY_BYTES)).hexdigest()[:16]

    def file(self, number: int) -> str:
        """A digest of a file's contents."""
        return hashlib.sha256(os.pread(number, 1 << 20, 0)).hexdigest()[:16]

    def cut(self, data: bytes, end: int) -> bytes:
        """Part of what was bound."""
        return data[:end]

    def serialized(self, agent: Any, descs: Any) -> bytes:
        """A list as this implementation sends it."""
        return agent.get_serialized_descs(descs)

    # --- operations

    def outcome(self, operation: dict[str, Any]) -> dict[str, Any]:
        try:
            target = self._target(operation["on"])
            arguments = [self.decode(value) for value in operation.get("args", [])]
            named = {
                name: self.decode(value) for name, value in operation.get("kwargs", {}).items()
            }
        except Unbound as unbound:
            return {"unbound": str(unbound)}
        hazard = self.books.hazard(operation, target, arguments)
        if hazard is not None and self.may_crash:
            return {"hazard": hazard}
        try:
            result = self._call(operation["call"], target, arguments, named, operation)
        except Exception as error:
            answer = {"raises": type(error).__name__}
        else:
            if "bind" in operation:
                # A slot that is filled again drops what it had: finalizers are part of the surface.
                self.slots[operation["bind"]] = result
            self.books.note(operation, arguments, result)
            answer = {"ok": self._shown(operation["call"], result)}
        return answer | {"hazard": hazard} if hazard is not None else answer

    def _target(self, name: str) -> Any:
        if name in self.modules:
            return self.modules[name]
        if name not in self.slots:
            raise Unbound(name)
        return self.slots[name]

    def _call(self, call: str, target: Any, arguments: list, named: dict, operation: dict) -> Any:
        special = getattr(self, f"_{call}", None)
        if special is not None and operation["on"] in AGENTS:
            return special(operation["on"], target, *arguments, **named)
        if call == "pickled":
            return pickle.loads(pickle.dumps(target, *arguments))
        if call == "nixl_agent" and len(arguments) == 2 and isinstance(arguments[1], dict):
            arguments = [arguments[0], self.api.nixl_agent_config(**arguments[1])]
        if call in ("get", "set"):
            return getattr(target, arguments[0]) if call == "get" else setattr(target, *arguments)
        if call == "equals":
            return target == arguments[0]
        return getattr(target, call)(*arguments, **named)

    @staticmethod
    def _shown(call: str, result: Any) -> Any:
        if call in OWN_AFFAIR:
            return {"opaque": type(result).__name__}
        # The real one lists the same kinds in one order for a plug-in, in another for its backend.
        return encode(sorted(result) if call.endswith("_mem_types") else result)

    # --- operations whose result depends on time: they end when what was begun has ended

    def _transfer(self, _name: str, agent: Any, handle: Any, *rest: Any, **named: Any) -> Any:
        state = agent.transfer(handle, *rest, **named)
        deadline = time.monotonic() + TRANSFER_S
        while state == "PROC":
            state = agent.check_xfer_state(handle)
            if time.monotonic() > deadline:
                return "PROC for ever"
        return state

    def _cost_method(self, _name: str, agent: Any, handle: Any) -> Any:
        return agent.estimate_xfer_cost(handle)[2]

    def _get_new_notifs(self, name: str, agent: Any, *rest: Any) -> Any:
        found: dict[str, list[bytes]] = {}
        for _ in self._until_arrived(name, lambda: sum(map(len, found.values()))):
            for sender, messages in agent.get_new_notifs(*rest).items():
                found.setdefault(sender, []).extend(messages)
        # Messages of one sender by different ways have no order among them.
        return {sender: sorted(messages) for sender, messages in found.items()}

    def _update_notifs(self, name: str, agent: Any, *rest: Any) -> Any:
        self._settle(name, agent, *rest)
        return {sender: sorted(messages) for sender, messages in agent.notifs.items()}

    def _check_remote_xfer_done(
        self, name: str, agent: Any, sender: Any, tag: Any, *rest: Any
    ) -> Any:
        self._settle(name, agent)
        # The first match is removed, and which is first must not depend on the order of arrival.
        for messages in agent.notifs.values():
            messages.sort()
        return agent.check_remote_xfer_done(sender, tag, *rest)

    def _settle(self, name: str, agent: Any, *rest: Any) -> None:
        before = sum(map(len, agent.notifs.values()))
        for _ in self._until_arrived(name, lambda: sum(map(len, agent.notifs.values())) - before):
            agent.update_notifs(*rest)

    def _until_arrived(self, name: str, count: Any) -> Any:
        """Once at least, then until what was sent to the agent has arrived, or the deadline."""
        awaited = self.books.underway[name]
        deadline = time.monotonic() + ARRIVAL_S
        yield
        while count() < awaited and time.monotonic() < deadline:
            time.sleep(0.001)
            yield
        # Only now: a call that was refused has taken nothing.
        self.books.underway[name] = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--module", required=True, help="nixl, or kvrail.nixl")
    parser.add_argument("--may-crash", action="store_true", help="leave out what is undefined")
    arguments = parser.parse_args()
    # The implementations write to stdout, C++'s included; the answers have a way of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    driver = Driver(arguments.module, arguments.may_crash)
    for line in sys.stdin:
        request = json.loads(line)
        if request == "reset":
            with contextlib.suppress(Exception):
                driver.reset()
            answer: Any = "ready"
        else:
            answer = driver.outcome(request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    # The real one crashes while the interpreter ends.
    os._exit(0)


if __name__ == "__main__":
    main()
