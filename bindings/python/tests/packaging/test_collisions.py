"""NIXL's own distributions beside kvrail-nixl: whichever comes last, it is said and can be mended.

What Python itself runs is tried with the real distributions too, where they can be had; the rest
with stand-ins that install the same files.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Environment

# An installation takes a second or two each, and many more on a machine that does other things.
pytestmark = pytest.mark.timeout(300)

NAMES = {"stand-ins": ("nixl", "nixl-cu12", "nixl-cu13"), "nixl": ("nixl", "nixl-cu12")}
OURS = ("kvrail", "kvrail-nixl")
WHO = "import nixl, nixl._api; print(nixl._api.__name__)"


@pytest.fixture(params=["stand-ins", "nixl"])
def theirs(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return NAMES[request.param]


@pytest.fixture
def environment(
    request: pytest.FixtureRequest,
    theirs: tuple[str, ...],
    make_environment: Callable[[Path], Environment],
) -> Environment:
    stand_ins = theirs == NAMES["stand-ins"]
    return make_environment(
        request.getfixturevalue("shelf_with_stand_ins" if stand_ins else "shelf_with_nixl")
    )


def advice(said: str, purpose: str) -> list[list[str]]:
    """The pip commands that a message gives for a purpose."""
    found = re.search(rf"hint: {purpose}: (.*)", said)
    assert found, said
    commands = [command.split() for command in found[1].split(" && ")]
    assert all(command[0] == "pip" for command in commands), commands
    return [command[1:] for command in commands]


def named(said: str, theirs: tuple[str, ...]) -> bool:
    return "kvrail-nixl" in said and all(f"{name} 1.5.1" in said for name in theirs)


def test_after_nixl_kvrail_runs_and_says_that_both_are_there(
    environment: Environment, theirs: tuple[str, ...]
) -> None:
    environment.install(*theirs)
    environment.install(*OURS)
    for package in ("nixl", "nixl_cu12", "nixl_cu13"):
        ran = environment.run(f"import {package}; print({package}._api.__name__)")
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.strip() == "kvrail.nixl._api"
        assert named(ran.stderr, theirs), ran.stderr
        assert ran.stderr.count("overwrite each other's files") == 1, "it is said once"

    for command in advice(ran.stderr, "to run kvrail"):
        environment.pip(*command)
    ran = environment.run(WHO)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "kvrail.nixl._api\n", "")


def test_before_nixl_the_mixture_is_refused_and_said(
    environment: Environment, theirs: tuple[str, ...]
) -> None:
    environment.install(*OURS)
    environment.install(*theirs)
    for package in ("nixl", "nixl_cu12", "nixl._api"):
        ran = environment.run(f"import {package}")
        assert ran.returncode == 1
        assert "ImportError: kvrail-nixl and nixl 1.5.1" in ran.stderr, ran.stderr
        assert named(ran.stderr, theirs), ran.stderr
        # Callers take it for "not installed": the warning is what their user sees.
        ran = environment.run(f"try:\n    import {package}\nexcept ImportError:\n    pass")
        assert ran.returncode == 0
        assert "ConflictWarning" in ran.stderr and named(ran.stderr, theirs), ran.stderr

    for command in advice(ran.stderr, "to run kvrail"):
        environment.pip(*command)
    ran = environment.run(WHO)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "kvrail.nixl._api\n", "")


@pytest.mark.parametrize("theirs", ["stand-ins"], indirect=True)
@pytest.mark.parametrize("ours_first", [True, False])
def test_the_advice_for_nixl_leaves_its_files_as_they_were(
    environment: Environment, theirs: tuple[str, ...], ours_first: bool
) -> None:
    environment.install(*theirs)
    alone = files(environment.site)
    environment.pip("uninstall", "--quiet", "--yes", *theirs)
    for names in (OURS, theirs) if ours_first else (theirs, OURS):
        environment.install(*names)
    said = environment.run("import nixl").stderr
    for command in advice(said, "to run NIXL"):
        environment.pip(*command)
    environment.pip("uninstall", "--quiet", "--yes", "kvrail")
    assert files(environment.site) == alone


@pytest.mark.parametrize("theirs", ["stand-ins"], indirect=True)
def test_what_is_left_when_only_nixl_is_removed_still_runs_and_says_how_to_mend_it(
    environment: Environment, theirs: tuple[str, ...]
) -> None:
    environment.install(*theirs)
    environment.install(*OURS)
    environment.pip("uninstall", "--quiet", "--yes", *theirs)
    ran = environment.run(WHO)
    assert (ran.returncode, ran.stdout) == (0, "kvrail.nixl._api\n"), ran.stderr
    assert "nixl/__init__.py is not in place" in ran.stderr
    assert "pip install --force-reinstall --no-deps kvrail-nixl" in ran.stderr


def files(site: Path) -> dict[str, bytes]:
    """The files of NIXL's import packages."""
    found = site.glob("nixl*/**/*.*")
    return {
        str(path.relative_to(site)): path.read_bytes()
        for path in found
        if path.is_file() and "__pycache__" not in path.parts and ".dist-info" not in str(path)
    }
