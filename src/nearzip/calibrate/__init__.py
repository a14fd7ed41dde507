"""Second-order rounding: round weights where it changes the network's outputs least. Needs the extra `torch`.

Examples
--------
>>> import torch
>>> from nearzip import calibrate
>>> network = torch.nn.Linear(4, 3)
>>> calibrate.compress(network, [torch.randn(16, 4)], step=0.1).nbytes < 1000
True
"""

from __future__ import annotations

from nearzip.errors import missing_extra

try:
    import torch as _torch  # noqa: F401
except ImportError:
    raise missing_extra("PyTorch", "torch", "nearzip.calibrate") from None

from nearzip.calibrate.api import compress, compress_file
from nearzip.calibrate.limit import RateLimit, rate_limit
from nearzip.calibrate.settings import Calibration, Damping
from nearzip.calibrate.tune import tune

__all__ = ["Calibration", "Damping", "RateLimit", "compress", "compress_file", "rate_limit", "tune"]
