"""`kvrail.nixl._utils` under NIXL's name; a package, so that a file of the same name cannot hide it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvrail.nixl._utils import *  # noqa: F403
else:
    from kvrail_nixl import show

    show(__name__)
