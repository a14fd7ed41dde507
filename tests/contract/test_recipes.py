"""Every registered method, ours and plug-ins', through the whole contract."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from nearzip.errors import UsageError
from nearzip.recipes import recipe_types
from nearzip.recipes.baselines import ZstdRecipe
from nearzip.testing.contract import check_recipe, check_registered, examples_of

# The slowest settings of a compressor are its own business.
QUICK = {"lzma": {"preset": 0}, "zstd": {"level": 1}, "blosc": {"level": 1}, "sz3": {}}


def recipes():
    for name in recipe_types():
        kind = check_registered(name, recipe_types())
        if name in QUICK:
            yield kind.from_options(QUICK[name])
        else:
            yield from examples_of(kind)
        # A layer that pruning empties, and one that it leaves as it is.
        yield from (kind.from_options({"keep": keep}) for keep in (0, 1) if "keep" in kind.knobs)


@pytest.mark.parametrize("recipe", list(recipes()), ids=repr)
def test_the_contract_is_kept(recipe):
    for package in recipe.needs:
        pytest.importorskip(package)
    check_recipe(recipe)


@dataclass(frozen=True)
class _Switched(ZstdRecipe):
    switch: bool = False


@pytest.mark.parametrize(("given", "meant"), [(True, True), ("true", True), ("false", False), (False, False)])
def test_a_switch_reads_true_and_false(given, meant):
    assert _Switched.from_options({"switch": given}).options()["switch"] is meant


def test_a_switch_takes_nothing_else():
    with pytest.raises(UsageError, match="true or false"):
        _Switched.from_options({"switch": "yes"})
