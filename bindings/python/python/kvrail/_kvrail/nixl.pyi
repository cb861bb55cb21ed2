from kvrail.nixl._bindings import *  # noqa: F403
