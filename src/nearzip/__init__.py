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

from nearzip import errors
from nearzip.api import compress, compress_file, decompress, decompress_file, methods, open
from nearzip.archive import Archive, Reader
from nearzip.bounds import Absolute, Bound, Lossless, PointwiseRelative, Relative, Rms, Update
from nearzip.budget import Plan, tune
from nearzip.comparison import Comparison, compare
from nearzip.limits import Limits
from nearzip.store import Store, pull
from nearzip.version import __version__

__all__ = [
    "Absolute",
    "Archive",
    "Bound",
    "Comparison",
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
