"""Training with PyTorch: save, crash, resume. Needs the extra `torch`."""

from __future__ import annotations

from nearzip.errors import missing_extra

try:
    import torch as _torch  # noqa: F401
except ImportError:
    raise missing_extra("PyTorch", "torch", "nearzip.torch") from None

from nearzip.moments import Moments
from nearzip.torch.drop_in import load, load_file, load_model, safe_open, save, save_file, save_model
from nearzip.torch.evaluator import evaluator
from nearzip.torch.feedback import ErrorFeedback
from nearzip.torch.finetune import finetune, holding, prune, share
from nearzip.torch.pretrained import from_pretrained
from nearzip.torch.restoring import Restored, restore
from nearzip.torch.saver import Saver, SaveReport
from nearzip.torch.state import TrainingState, capture
from nearzip.torch.verify import Equivalence, verify_resume

__all__ = [
    "Equivalence",
    "ErrorFeedback",
    "Moments",
    "Restored",
    "SaveReport",
    "Saver",
    "TrainingState",
    "capture",
    "evaluator",
    "finetune",
    "from_pretrained",
    "holding",
    "load",
    "load_file",
    "load_model",
    "prune",
    "restore",
    "safe_open",
    "save",
    "save_file",
    "save_model",
    "share",
    "verify_resume",
]
