"""Memory that was freed while it was registered: an error, never a signal, and no other memory
touched."""

from __future__ import annotations

from pathlib import Path

from processes import Implementation, Role, Scene

SCRIPT = Path(__file__).parent / "scenes" / "freed.py"


def test_freed_memory_is_an_error_and_not_a_crash(each_fabric: Implementation) -> None:
    roles = {"mover": Role("mover"), "owner": Role("owner")}
    with Scene(each_fabric, SCRIPT, roles) as scene:
        results = scene.results()
    seen = results["mover"]["seen"]
    good = {"both mapped", "it is read all the same", "afterwards"}
    raced = seen.pop("freed while transfers go on")
    assert raced, "the transfers did not notice that their memory was freed"
    assert {what for what, end in seen.items() if end == "DONE"} == good, seen
    for end in [*raced, *(end for what, end in seen.items() if what not in good)]:
        assert end == "ERR" or end.startswith("nixl"), seen
    assert results["mover"]["wrong_bytes"] == 0
    assert results["owner"] == 0, "memory that may only be read was written"
