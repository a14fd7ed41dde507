"""One file per published method, and ours; by name, with those of plug-ins (entry points `nearzip.recipes`)."""

from __future__ import annotations

import functools
from importlib.metadata import entry_points

from nearzip.errors import UnknownMethodError
from nearzip.recipes.base import Fallback, Recipe, TensorPlan, TensorView, Unpromised
from nearzip.recipes.baselines import GzipRecipe, LzmaRecipe, ZstdRecipe
from nearzip.recipes.deep_compression import DeepCompression
from nearzip.recipes.deepsz import DeepSz, DeepSzNearzip
from nearzip.recipes.delta_dnn import DeltaDnn
from nearzip.recipes.foreign import BloscRecipe, Sz3Recipe, ZfpRecipe
from nearzip.recipes.lc_checkpoint import LcCheckpoint
from nearzip.recipes.nearzip import Nearzip
from nearzip.recipes.qd_compressor import QdCompressor
from nearzip.recipes.qsgd import Qsgd
from nearzip.recipes.retrain import Hold, Retrain
from nearzip.recipes.settings import Setting, Settings
from nearzip.recipes.sparse_updates import Sbc, Stc, TopK
from nearzip.recipes.weightless import Weightless

__all__ = [
    "Fallback",
    "Hold",
    "Recipe",
    "Retrain",
    "Setting",
    "Settings",
    "TensorPlan",
    "TensorView",
    "Unpromised",
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
    Qsgd,
    Sz3Recipe,
    ZfpRecipe,
    BloscRecipe,
    GzipRecipe,
    ZstdRecipe,
    LzmaRecipe,
)


@functools.cache
def recipe_types() -> dict[str, type[Recipe]]:
    """All recipes by name, ours first. A plug-in cannot replace a built-in one."""
    types = {recipe.name: recipe for recipe in _BUILT_IN}
    for point in entry_points(group="nearzip.recipes"):
        types.setdefault(point.name, point.load())
    return types


def recipe_type(name: str) -> type[Recipe]:
    """The recipe of that name. Raises UnknownMethodError."""
    try:
        return recipe_types()[name]
    except KeyError:
        raise UnknownMethodError(f"unknown method {name!r}; known are {', '.join(recipe_types())}") from None
