"""nearzip compresses neural networks and the updates between their versions within a bound, and proves it kept.

Examples
--------
>>> import numpy as np, nearzip as nz
>>> old = {"w": np.arange(8, dtype=np.float32)}
>>> new = {"w": old["w"] + np.float32(0.01)}
>>> archive = nz.compress(new, base=old, bound=nz.Absolute(0.001))
>>> bool(np.abs(nz.decompress(archive, base=old)["w"] - new["w"]).max() <= 0.001)
True
"""

from __future__ import annotations

#: Not from `typing`, which takes longer to import than all of this; type checkers know the name.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from nearzip import errors
    from nearzip.api import compress, compress_file, decompress, decompress_file, methods, open
    from nearzip.archive import Archive
    from nearzip.bounds import Absolute, Bound, Lossless, PointwiseRelative, Relative, Rms, Update
    from nearzip.budget.plan import Plan
    from nearzip.budget.tune import tune
    from nearzip.comparison import Comparison, compare
    from nearzip.limits import Limits
    from nearzip.reading import Reader
    from nearzip.recipes.retrain import Hold
    from nearzip.store.pulling.pull import pull
    from nearzip.store.repository import Store
    from nearzip.version import __version__

__all__ = [
    "Absolute",
    "Archive",
    "Bound",
    "Comparison",
    "Hold",
    "Limits",
    "Lossless",
    "Plan",
    "PointwiseRelative",
    "Reader",
    "Relative",
    "Rms",
    "Store",
    "Update",
    "__version__",
    "compare",
    "compress",
    "compress_file",
    "decompress",
    "decompress_file",
    "errors",
    "methods",
    "open",
    "pull",
    "tune",
]

#: Modules are imported when a name of theirs is first asked for: the command line starts at once.
_HOMES = {
    "api": ("compress", "compress_file", "decompress", "decompress_file", "methods", "open"),
    "archive": ("Archive",),
    "bounds": ("Absolute", "Bound", "Lossless", "PointwiseRelative", "Relative", "Rms", "Update"),
    "budget": ("Plan", "tune"),
    "comparison": ("Comparison", "compare"),
    "limits": ("Limits",),
    "reading": ("Reader",),
    "recipes": ("Hold",),
    "store": ("Store", "pull"),
    "version": ("__version__",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    import importlib.util

    if name in _HOME_OF:
        found = getattr(importlib.import_module(f"nearzip.{_HOME_OF[name]}"), name)
    elif not name.startswith("__") and importlib.util.find_spec(f"nearzip.{name}") is not None:
        found = importlib.import_module(f"nearzip.{name}")
    else:
        raise AttributeError(f"module 'nearzip' has no attribute {name!r}")
    globals()[name] = found
    return found


def _finish_imports() -> None:
    """Before a fork: wait until other threads have imported what they are importing.

    A child has these threads' locks on modules but not the threads, and would wait for them at its own first use of
    such a module.
    """
    import contextlib
    import importlib
    import sys

    for name, module in list(sys.modules.items()):
        if getattr(getattr(module, "__spec__", None), "_initializing", False):
            with contextlib.suppress(Exception):  # the importing thread reports it
                importlib.import_module(name)


def _register() -> None:
    import os

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_finish_imports)


_register()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
