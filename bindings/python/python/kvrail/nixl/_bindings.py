"""The surface of NIXL's native module, made by kvrail: agents, descriptor lists, enumerations,
exceptions.

Everything here is defined in `kvrail._kvrail`; the types are in `_bindings.pyi`.
"""

from kvrail import _kvrail

_native = _kvrail.nixl

globals().update(
    {name: getattr(_native, name) for name in dir(_native) if not name.startswith("_")}
)
