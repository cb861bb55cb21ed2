"""The package itself.

Light to import, typed as it is, documented in both places alike, with examples that run.
"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import kvrail
import pytest
from kvrail._kvrail import native

PACKAGE = Path(kvrail.__file__).parent
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
IMPORT_SECONDS = 0.050


def test_the_import_is_light_and_brings_no_array_library_along() -> None:
    script = (
        "import sys, time; started = time.process_time(); import kvrail; "
        "took = time.process_time() - started; "
        "print(took, *({'numpy', 'torch', 'asyncio', 'ctypes'} & set(sys.modules)))"
    )
    took = []
    for _ in range(5):
        said = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        seconds, *heavy = said.stdout.split()
        assert not heavy
        took.append(float(seconds))
    assert min(took) < IMPORT_SECONDS, took


def stub() -> ast.Module:
    return ast.parse((PACKAGE / "_kvrail" / "native.pyi").read_text())


def described() -> list[Any]:
    found = []
    for node in stub().body:
        if isinstance(node, ast.ClassDef):
            if hasattr(native, node.name):
                found.append(pytest.param(getattr(native, node.name), node, id=node.name))
            for entry in node.body:
                if isinstance(entry, ast.FunctionDef) and ast.get_docstring(entry):
                    runtime = getattr(getattr(native, node.name), entry.name)
                    found.append(pytest.param(runtime, entry, id=f"{node.name}.{entry.name}"))
    return found


@pytest.mark.parametrize(("runtime", "node"), described())
def test_stub_and_native_module_say_the_same(runtime: Any, node: ast.AST) -> None:
    assert inspect.getdoc(runtime) == ast.get_docstring(node)  # type: ignore[arg-type]
    if isinstance(node, ast.FunctionDef) and callable(runtime):
        arguments = node.args
        names = [argument.arg for argument in (*arguments.args, *arguments.kwonlyargs)]
        assert list(inspect.signature(runtime).parameters) == names


def test_the_stub_has_every_public_name_and_no_other() -> None:
    classes = {node.name: node for node in stub().body if isinstance(node, ast.ClassDef)}
    public = {name for name in dir(native) if inspect.isclass(getattr(native, name))}
    assert public == {name for name in classes if not name.startswith("_")}
    for name in public:
        there = {entry for entry in vars(getattr(native, name)) if not entry.startswith("_")}
        stubbed = {entry.name for entry in classes[name].body if isinstance(entry, ast.FunctionDef)}
        assert there == {entry for entry in stubbed if not entry.startswith("_")}, name


def test_every_public_name_is_there_and_documented() -> None:
    for name in kvrail.__all__:
        thing = getattr(kvrail, name)
        assert name in ("__version__", "NOTIFICATION_BYTES_MAX") or inspect.getdoc(thing), name
    assert re.fullmatch(r"\d+\.\d+\.\d+", kvrail.__version__)
    assert (PACKAGE / "py.typed").exists()


def test_the_types_hold_in_strict_mode() -> None:
    pytest.importorskip("mypy", reason="mypy is not installed")
    command = [sys.executable, "-m", "mypy", "--strict", "--python-version", "3.10", "-p", "kvrail"]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_the_examples_run(example: str) -> None:
    if "torch" in example:
        pytest.importorskip("torch", reason="torch is not installed")
    started = time.monotonic()
    command = [sys.executable, str(EXAMPLES / example)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() and time.monotonic() - started < 30
