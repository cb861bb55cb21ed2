"""What the import packages `nixl`, `nixl_cu12` and `nixl_cu13` have in common.

Their modules are those of `kvrail.nixl` under other names: the same objects, so that `isinstance` and pickles agree across all of
them.

The distributions `nixl`, `nixl-cu12` and `nixl-cu13` install files at the same places, and pip lets whichever comes last overwrite
the other's in silence. Both orders are found out here, because what matters is out of the other's reach: the modules are
directories, which Python prefers to files of the same name, so `nixl_cu12._api` is this one even where everything else has been
overwritten. Where the package itself is still this distribution's, kvrail runs and a warning says that both are there. Where
it is the other's, a mixture would run: the import fails, and it is said as a warning too, because callers take an `ImportError` for
"not installed" and say nothing.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import warnings

__all__ = ["ConflictWarning", "show"]

_PROVIDER = "kvrail-nixl"
#: The distributions that install files at the same places, by their directories' first part.
_OTHERS = {"nixl": "nixl", "nixl_cu12": "nixl-cu12", "nixl_cu13": "nixl-cu13"}
_PACKAGES = ("nixl", "nixl_cu12", "nixl_cu13")
_SITE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

_said: set[str] = set()


class ConflictWarning(RuntimeWarning):
    """Two distributions provide the import packages of NIXL."""


def show(name: str) -> None:
    """Makes the module `name`, such as `nixl._api`, be its namesake in `kvrail.nixl`.

    Raises:
        ImportError: the package that the module is in belongs to another distribution.
    """
    package, _, module = name.partition(".")
    _check(package)
    sys.modules[name] = importlib.import_module(f"kvrail.nixl.{module}")


def _check(package: str) -> None:
    """Whether this package, and those of the others that are imported, are this distribution's."""
    others = _installed()
    imported = [sys.modules[name] for name in _PACKAGES if name in sys.modules]
    strangers = [module for module in imported if getattr(module, "__provider__", "") != _PROVIDER]
    if not strangers and not others:
        return
    stranger = next((module for module in strangers if getattr(module, "__file__", None)), None)
    if others:
        problem = _conflict(others)
    else:
        problem = (
            f"kvrail-nixl's file {strangers[0].__name__}/__init__.py is not in place: a distribution that"
            " installs the same file has been here.\n"
            "hint: pip install --force-reinstall --no-deps kvrail-nixl"
        )
    _warn(problem)
    # A package without any file shows its modules and nothing else, and those are all kvrail's.
    if stranger is not None:
        raise ImportError(problem, name=package, path=stranger.__file__)


@functools.cache
def _installed() -> dict[str, str]:
    """The other distributions beside this one, with their versions, by a look at directory names only."""
    found = {}
    for entry in os.listdir(_SITE):
        # Thousands of others may be there: nothing more is done with them.
        if entry.startswith("nixl") and entry.endswith(".dist-info"):
            project, _, version = entry.removesuffix(".dist-info").partition("-")
            if project in _OTHERS:
                found[_OTHERS[project]] = version
    return dict(sorted(found.items()))


def _conflict(others: dict[str, str]) -> str:
    named = ", ".join(f"{other} {version}" for other, version in others.items())
    files = ", ".join(f"{package} is {_owner(package)}" for package in _PACKAGES)
    names = " ".join(others)
    return (
        f"kvrail-nixl and {named} are both installed in {_SITE} and overwrite each other's files"
        f" (now {files}).\n"
        f"hint: to run kvrail: pip uninstall -y {names} &&"
        " pip install --force-reinstall --no-deps kvrail-nixl\n"
        "hint: to run NIXL: pip uninstall -y kvrail-nixl &&"
        f" pip install --force-reinstall --no-deps {names}"
    )


def _owner(package: str) -> str:
    """Whose file a package's `__init__.py` is."""
    try:
        with open(os.path.join(_SITE, package, "__init__.py"), encoding="utf-8") as file:
            text = file.read()
    except OSError:
        return "missing"
    return "kvrail-nixl's" if f'__provider__ = "{_PROVIDER}"' in text else "NIXL's"


def _warn(problem: str) -> None:
    if problem not in _said:
        _said.add(problem)
        warnings.warn(problem, ConflictWarning, stacklevel=2)
