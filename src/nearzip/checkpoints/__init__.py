"""Checkpoint files of any format: read tensor by tensor, written back whole or not at all. Nothing in them is run."""

from nearzip.checkpoints.base import CheckpointWriter, Format
from nearzip.checkpoints.chunked import is_chunk_file
from nearzip.checkpoints.files import check_writable, open_checkpoint, write_checkpoint
from nearzip.checkpoints.folder import files_in
from nearzip.checkpoints.registry import ENDINGS, FORMATS

__all__ = [
    "ENDINGS",
    "FORMATS",
    "CheckpointWriter",
    "Format",
    "check_writable",
    "files_in",
    "is_chunk_file",
    "open_checkpoint",
    "write_checkpoint",
]
