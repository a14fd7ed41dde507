"""One way to call a network: what its batches, outputs and tensors look like. Needs the extra `torch`."""

from __future__ import annotations

from nearzip.errors import missing_extra

try:
    import torch as _torch  # noqa: F401
except ImportError:
    raise missing_extra("PyTorch", "torch", "calling a network") from None
