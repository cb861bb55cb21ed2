"""kvrail under NIXL's Python API.

`kvrail.nixl` stands where the package `nixl` does: `_api`, `_bindings`, `_utils` and `logging` are
its modules, and their public names are here too. The distribution kvrail-nixl makes it importable
as `nixl`.
"""

from . import _api, _bindings, _utils, logging  # noqa: F401
from ._bindings import *  # noqa: F403
from ._utils import *  # noqa: F403
from .logging import *  # noqa: F403

# isort: split
# Last, as `_bindings` has a `nixl_thread_sync_t` too: the package shows the enumeration.
from ._api import *  # type: ignore[assignment]  # noqa: F403
