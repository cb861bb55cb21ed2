"""Environments into which wheels are installed by pip, without any network."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from wheel_file import of_installed, write_wheel

STEP_DEADLINE = 120


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and the directory of the wheels that its pip may use."""

    root: Path
    shelf: Path

    @property
    def python(self) -> Path:
        return self.root / "bin/python"

    @property
    def site(self) -> Path:
        return Path(sysconfig.get_path("purelib", "venv", {"base": str(self.root)}))

    def pip(self, *words: str) -> None:
        """Runs pip upon this environment with what is on the shelf."""
        command = [sys.executable, "-m", "pip", "--python", str(self.python), *words]
        environment = {
            **_plain(),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.shelf),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
        }
        subprocess.run(command, env=environment, check=True, timeout=STEP_DEADLINE)

    def install(self, *names: str) -> None:
        self.pip("install", "--quiet", "--no-deps", *names)

    def run(self, code: str) -> subprocess.CompletedProcess[str]:
        """What Python does with `code` here."""
        command = [str(self.python), "-c", code]
        return subprocess.run(
            command,
            env=_plain(),
            capture_output=True,
            text=True,
            timeout=STEP_DEADLINE,
            check=False,
        )


def _plain() -> dict[str, str]:
    """The environment without what leads to the staged package, or changes what warnings do."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


@pytest.fixture(scope="session")
def staged() -> Path:
    """Where the distributions under test lie."""
    import kvrail

    return Path(kvrail.__file__).parent.parent


@pytest.fixture(scope="session")
def shelf(staged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheels of both distributions, packed from what is staged."""
    shelf = tmp_path_factory.mktemp("shelf")
    for project in ("kvrail", "kvrail_nixl"):
        of_installed(staged, project, shelf)
    return shelf


@pytest.fixture(scope="session")
def shelf_with_stand_ins(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, and distributions that install files where NIXL's do, and import as they do."""
    beside = tmp_path_factory.mktemp("stand-ins")
    for wheel in shelf.iterdir():
        (beside / wheel.name).symlink_to(wheel)
    front = (
        "import importlib, sys\n"
        "for half in ('nixl_cu13', 'nixl_cu12'):\n"
        "    try:\n"
        "        importlib.import_module(half)\n"
        "        break\n"
        "    except ModuleNotFoundError as missing:\n"
        "        if missing.name != half:\n"
        "            raise\n"
        "for name in ('_bindings', '_utils', 'logging', '_api'):\n"
        "    sys.modules[f'nixl.{name}'] = importlib.import_module(f'{half}.{name}')\n"
    )
    write_wheel(
        beside,
        "nixl",
        "1.5.1",
        {"nixl/__init__.py": front, "nixl/_api.py": "", "nixl/logging.py": ""},
    )
    for half in ("nixl_cu12", "nixl_cu13"):
        modules = {f"{half}/{name}.py": "" for name in ("_bindings", "_utils", "logging")}
        api = "from . import _bindings, _utils, logging\nnixl_agent = 'not kvrail'\n"
        package = {f"{half}/__init__.py": "from ._api import nixl_agent\n", f"{half}/_api.py": api}
        write_wheel(beside, half, "1.5.1", modules | package)
    return beside


@pytest.fixture(scope="session")
def shelf_with_nixl(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the real distributions instead, without the libraries that they bundle."""
    python = os.environ.get("KVRAIL_REAL_NIXL_PYTHON")
    if not python:
        pytest.skip(f"the real nixl: {os.environ.get('KVRAIL_REAL_NIXL_MISSING', 'not named')}")
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run(
        [python, "-c", where], env=_plain(), capture_output=True, text=True, timeout=60, check=True
    )
    beside = tmp_path_factory.mktemp("real")
    for wheel in shelf.iterdir():
        (beside / wheel.name).symlink_to(wheel)
    for project in ("nixl", "nixl_cu12"):
        of_installed(Path(site.stdout.strip()), project, beside)
    return beside


@pytest.fixture
def make_environment(tmp_path: Path) -> Callable[[Path], Environment]:
    """Makes an empty environment that installs from a shelf."""

    def make(shelf: Path) -> Environment:
        root = tmp_path / "environment"
        command = [sys.executable, "-m", "venv", "--without-pip", str(root)]
        subprocess.run(command, check=True, timeout=STEP_DEADLINE)
        return Environment(root, shelf)

    return make
