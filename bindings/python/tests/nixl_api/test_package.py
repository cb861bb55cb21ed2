"""The package as a whole: what importing and logging do to a program."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def program(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program of its own."""
    base = {name: value for name, value in os.environ.items() if not name.startswith("NIXL_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**base, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )


def test_importing_loads_neither_numpy_nor_torch():
    code = "import sys, kvrail.nixl; print([m for m in ('numpy', 'torch') if m in sys.modules])"
    assert program(code).stdout == "[]\n"


def test_the_package_shows_the_names_of_its_modules():
    code = (
        "import kvrail.nixl as n; "
        "print(n.nixl_agent.__name__, n.nixlAgent.__name__, n.malloc_passthru.__name__, "
        "n.get_logger.__name__, n.logging.__name__, list(n.nixl_thread_sync_t)[0].name)"
    )
    assert program(code).stdout.split() == [
        "nixl_agent",
        "nixlAgent",
        "malloc_passthru",
        "get_logger",
        "kvrail.nixl.logging",
        "NIXL_THREAD_SYNC_NONE",
    ]


AGENT = "import kvrail.nixl as k; a = k.nixl_agent('a', k.nixl_agent_config(backends=['NONE']))"


def test_an_agent_configures_nobodys_logging():
    code = (
        "import logging; before = logging.raiseExceptions\n"
        f"{AGENT}\n"
        "n = logging.getLogger('nixl')\n"
        "print(n.handlers, n.level, n.propagate, logging.raiseExceptions == before)"
    )
    done = program(code)
    assert done.stdout == "[] 0 True True\n"
    # The standard library's last resort.
    assert "skipped backend NONE" in done.stderr
    assert "is ready" not in done.stderr


def test_who_asks_for_a_logger_gets_a_console():
    code = f"import kvrail.nixl.logging as l; l.get_logger('__main__').info('hello'); {AGENT}"
    done = program(code)
    assert done.stdout == ""
    assert "hello" in done.stderr
    assert "is ready" in done.stderr


def test_an_applications_handlers_say_everything_once():
    code = (
        "import logging, sys\n"
        "logging.basicConfig(stream=sys.stdout, format='%(name)s %(message)s')\n"
        "import kvrail.nixl.logging as l; l.get_logger('_app').info('hello')"
    )
    done = program(code)
    assert done.stdout == "nixl.app hello\n"
    assert done.stderr == ""


@pytest.mark.parametrize(("level", "said"), [("ERROR", False), ("debug", True)])
def test_the_environment_sets_the_level(level, said):
    code = "import kvrail.nixl.logging as l; l.get_logger('x').info('hello')"
    assert ("hello" in program(code, NIXL_LOG_LEVEL=level).stderr) is said


def test_a_level_that_is_none_is_said():
    done = program("import kvrail.nixl", NIXL_LOG_LEVEL="LOUD")
    assert "NIXL_LOG_LEVEL=LOUD" in done.stderr
