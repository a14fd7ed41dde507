"""SZ3, ZFP and blosc2: libraries that may crash on damaged input, and therefore run in a child process."""

from nearzip.stages.foreign.codecs import Blosc, Sz3, Zfp

__all__ = ["Blosc", "Sz3", "Zfp"]
