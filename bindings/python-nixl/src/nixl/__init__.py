"""NIXL's Python API, carried out by kvrail: see `kvrail.nixl`.

This file is installed as `nixl`, `nixl_cu12` and `nixl_cu13`.
"""

# Before anything else: the submodules look here for whose package they are in.
__provider__ = "kvrail-nixl"

from typing import TYPE_CHECKING

from . import _api, _bindings, _utils, logging  # noqa: F401

if TYPE_CHECKING:
    from kvrail.nixl import *  # noqa: F403
else:
    import kvrail.nixl as _shown

    globals().update(
        (name, value) for name, value in vars(_shown).items() if not name.startswith("_")
    )
    del _shown, TYPE_CHECKING
