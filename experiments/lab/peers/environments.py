"""Environments of the peers that need one, made on first use and kept in the cache."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from experiments.lab.traces import cache_folder


class NotInstalledError(Exception):
    """A peer's packages do not install; says why in a line."""


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
        raise NotInstalledError((said or ["no reason given"])[-1].strip()[:200])


def _has(package: str) -> bool:
    try:
        return bool(distribution(package))
    except PackageNotFoundError:
        return False


def _requirement(need: str) -> str:
    """PyTorch in the bench's own release: without one, pip may bring gigabytes of CUDA."""
    return f"torch=={version('torch').split('+')[0]}" if need == "torch" and _has("torch") else need


def is_here(needs: tuple[str, ...]) -> bool:
    """Whether the bench's own environment has these packages; asking for a version means an environment of its own."""
    pinned = any(character in need for need in needs for character in "<=>")
    return not pinned and all(_has(need) for need in needs)


def folder_of(needs: tuple[str, ...]) -> Path:
    """Where the environment with these packages is, or would be."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return cache_folder() / "environments" / hashlib.sha256(repr((needs, python)).encode()).hexdigest()[:12]


def python_of(needs: tuple[str, ...]) -> str:
    """The interpreter that has these packages. Raises NotInstalledError."""
    if is_here(needs):
        return sys.executable
    folder = folder_of(needs)
    python, done = folder / "bin" / "python", folder / "complete"
    if not done.is_file():
        _run(sys.executable, "-m", "venv", "--clear", folder)
        # PyTorch before what asks for it, so that its release is ours.
        for need in ("numpy", *sorted(needs, key=lambda need: need != "torch")):
            # What a pinned package asks for beside it is named in `needs`.
            _run(
                python, "-m", "pip", "install", "--quiet", *(["--no-deps"] if "==" in need else []), _requirement(need)
            )
        done.write_text("\n".join(needs) + "\n")
    return str(python)
