"""Loggers under NIXL's names, for `nixl.logging`.

The package itself logs to `nixl.*` loggers and configures nothing: what the application set up
decides, and where it set up nothing, warnings and errors reach stderr by the standard library's
last resort.

Who calls `get_logger` asks for NIXL's own console: from then on records of `nixl.*` at INFO and
above are written to stderr, unless the application has handlers of its own. `NIXL_LOG_LEVEL` sets
the level of `nixl`, whether or not anybody calls.
"""

from __future__ import annotations

import logging
import os

__all__ = ["get_logger", "set_log_level_by_env", "setup_logging"]

_LEVELS = {
    "TRACE": logging.DEBUG,
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARN": logging.WARNING,
    "ERROR": logging.ERROR,
    "FATAL": logging.CRITICAL,
}


class _Console(logging.StreamHandler):  # type: ignore[type-arg]  # generic in stubs only
    """Writes to stderr as long as nobody else handles the records: an application's log says each
    thing once.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            super().emit(record)


def set_log_level_by_env(nixl_logger: logging.Logger) -> None:
    """Give the logger the level that `NIXL_LOG_LEVEL` names; a value that names none is said and
    ignored.
    """
    value = os.environ.get("NIXL_LOG_LEVEL")
    if not value:
        return
    level = _LEVELS.get(value.upper())
    if level is None:
        nixl_logger.warning("NIXL_LOG_LEVEL=%s is none of %s: ignored", value, ", ".join(_LEVELS))
    else:
        nixl_logger.setLevel(level)


def setup_logging() -> None:
    """Give `nixl.*` a console on stderr, once. No other logger is touched."""
    root = logging.getLogger("nixl")
    if any(isinstance(handler, _Console) for handler in root.handlers):
        return
    console = _Console()
    console.setFormatter(
        logging.Formatter(
            "%(asctime)s NIXL %(levelname)-7s %(filename)s:%(lineno)d %(message)s",
            datefmt="%Y-%m-%d %H:%M:%S",
        )
    )
    root.addHandler(console)
    if root.level == logging.NOTSET:
        root.setLevel(logging.INFO)


def get_logger(name: str) -> logging.Logger:
    """The logger `nixl.NAME`, without leading underscores of NAME, with NIXL's console set up."""
    setup_logging()
    return logging.getLogger(f"nixl.{name.lstrip('_')}")


# The only thing done on import: a level that the user has asked for by name is theirs, not the
# application's.
set_log_level_by_env(logging.getLogger("nixl"))
