"""One file per published method, and ours; by name, with those of plug-ins (entry points `nearzip.recipes`)."""

from __future__ import annotations

import warnings
from typing import Any

from nearzip.errors import PluginError, UnknownMethodError
from nearzip.plugins import Plugins, subclass_check
from nearzip.recipes.base import Fallback, Recipe, TensorPlan, TensorView, Unpromised
from nearzip.recipes.baselines import GzipRecipe, LzmaRecipe, ZstdRecipe
from nearzip.recipes.deep_compression import DeepCompression
from nearzip.recipes.deepreduce import DeepReduce
from nearzip.recipes.deepsz import DeepSz, DeepSzNearzip
from nearzip.recipes.delta_dnn import DeltaDnn
from nearzip.recipes.foreign import BloscRecipe, Sz3Recipe, ZfpRecipe
from nearzip.recipes.lc_checkpoint import LcCheckpoint
from nearzip.recipes.nearzip import Nearzip
from nearzip.recipes.qd_compressor import QdCompressor
from nearzip.recipes.qsgd import Qsgd
from nearzip.recipes.retrain import Hold, Retrain
from nearzip.recipes.skcompress import SkCompress
from nearzip.recipes.sparse_updates import Sbc, Stc, TopK
from nearzip.recipes.weightless import Weightless

__all__ = [
    "PLUGINS",
    "Fallback",
    "Hold",
    "Recipe",
    "Retrain",
    "TensorPlan",
    "TensorView",
    "Unpromised",
    "broken_recipes",
    "recipe_type",
    "recipe_types",
]

_BUILT_IN: tuple[type[Recipe], ...] = (
    Nearzip,
    DeltaDnn,
    QdCompressor,
    LcCheckpoint,
    DeepSz,
    DeepSzNearzip,
    DeepCompression,
    Weightless,
    TopK,
    Sbc,
    Stc,
    SkCompress,
    DeepReduce,
    Qsgd,
    Sz3Recipe,
    ZfpRecipe,
    BloscRecipe,
    GzipRecipe,
    ZstdRecipe,
    LzmaRecipe,
)


_BUILT_IN_BY_NAME: dict[str, type[Recipe]] = {recipe.name: recipe for recipe in _BUILT_IN}
#: A plug-in cannot replace a built-in method.
PLUGINS: Plugins[type[Recipe]] = Plugins("nearzip.recipes", "method", subclass_check(Recipe, "name"))  # type: ignore[type-abstract]


def recipe_types() -> dict[str, type[Recipe]]:
    """All recipes by name, ours first, without plug-ins that cannot be loaded."""
    plugins = PLUGINS.all()[0]
    return _BUILT_IN_BY_NAME | {name: kind for name, kind in plugins.items() if name not in _BUILT_IN_BY_NAME}


def broken_recipes() -> dict[str, PluginError]:
    """Methods of plug-ins that cannot be loaded, and why."""
    return {name: error for name, error in PLUGINS.all()[1].items() if name not in _BUILT_IN_BY_NAME}


def recipe_type(name: str) -> type[Recipe]:
    """The recipe of that name. Raises UnknownMethodError, or PluginError for a plug-in that cannot be loaded."""
    found = _BUILT_IN_BY_NAME.get(name) or PLUGINS.load(name)
    if found is None:
        known = [*_BUILT_IN_BY_NAME, *PLUGINS.names()]
        raise UnknownMethodError(f"unknown method {name!r}; known are {', '.join(known)}")
    return found


#: Names of the first release, and what they are in `nearzip.coding`.
_RENAMED = {"Setting": "Coding", "Settings": "Codings"}


def __getattr__(name: str) -> Any:
    if name not in _RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nearzip import coding

    warnings.warn(f"{__name__}.{name} is nearzip.coding.{_RENAMED[name]}", DeprecationWarning, stacklevel=2)
    return getattr(coding, _RENAMED[name])
