"""The version of the installed package."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("nearzip")
except PackageNotFoundError:  # a source tree on the path
    __version__ = "0+unknown"
