"""`nixl`, `nixl_cu12` and `nixl_cu13` are kvrail under other names, cheaply."""

from __future__ import annotations

import importlib
import importlib.metadata
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("nixl", "nixl_cu12", "nixl_cu13")
MODULES = ("_api", "_bindings", "_utils", "logging")


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("module", MODULES)
def test_each_module_is_the_same_object_under_every_name(package: str, module: str) -> None:
    shown = importlib.import_module(f"{package}.{module}")
    assert shown is importlib.import_module(f"kvrail.nixl.{module}")
    assert getattr(importlib.import_module(package), module) is shown


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_shows_what_its_modules_show(package: str) -> None:
    shown = importlib.import_module(package)
    ours = importlib.import_module("kvrail.nixl")
    for name in ("nixl_agent", "nixl_agent_config", "DEFAULT_COMM_PORT", "nixlXferDList"):
        assert getattr(shown, name) is getattr(ours, name)


@pytest.mark.parametrize(
    "statement",
    [
        "from nixl._api import nixl_agent, nixl_agent_config",
        "import nixl._bindings as nixlBind; nixlBind.nixlAgent",
        "import nixl_cu12._api; nixl_cu12._api.nixl_agent",
        "from nixl.logging import get_logger",
        "import nixl._utils as utils; utils.malloc_passthru",
        "from nixl import nixl_agent",
    ],
)
def test_each_way_in_which_callers_import_it_works_alone(statement: str) -> None:
    command = [sys.executable, "-W", "error", "-c", statement]
    subprocess.run(command, check=True, timeout=60)


def test_classes_are_found_by_their_names_in_pickles_of_any_package() -> None:
    ours = importlib.import_module("kvrail.nixl._bindings").nixlXferDList
    for package in PACKAGES:
        by_name = f"c{package}._bindings\nnixlXferDList\n.".encode()
        assert pickle.loads(by_name) is ours
    assert pickle.loads(pickle.dumps(ours)) is ours


def test_the_distribution_that_provides_nixl_has_the_version_that_callers_ask_for() -> None:
    (distribution,) = set(importlib.metadata.packages_distributions()["nixl"])
    assert distribution == "kvrail-nixl"
    assert tuple(map(int, importlib.metadata.version(distribution).split("."))) >= (1, 5, 0)


@pytest.mark.parametrize("package", ["kvrail", "nixl"])
def test_an_import_brings_nothing_heavy(package: str) -> None:
    heavy = "('torch', 'numpy', 'asyncio', 'importlib.metadata')"
    code = f"import sys, {package}; print([name for name in {heavy} if name in sys.modules])"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert said.stdout.strip() == "[]"


def test_no_warning_and_no_conflict_where_kvrail_is_alone() -> None:
    import kvrail_nixl

    assert kvrail_nixl._installed() == {}


def test_the_typed_packages_say_so() -> None:
    for package in ("kvrail", *PACKAGES):
        directory = Path(importlib.import_module(package).__file__ or "").parent
        assert (directory / "py.typed").is_file(), package
