"""One job of the package, traced: a program of its own, so that it can run under the package of any commit.

`python jobs.py JOB FOLDER TREE` prints JSON. It imports `nearzip` from TREE: the package with its built core inside.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

#: Comprehensions, module bodies and the like are no calls.
_NO_CALLS = frozenset({"<module>", "<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>"})
_OPTIMIZED = 0x1  # of functions, not of the bodies of classes


class Tracer:
    """Counts what happens in the package while its block runs.

    Attributes
    ----------
    calls : int
        Calls of Python functions of the package; a generator that goes on counts again.
    modules : set of str
        Modules that were called.
    stays : int
        How often control came into a module from another one, by a call or by a return.
    recipes : int
        How often a recipe was made of a method's options.
    """

    def __init__(self, package: Path):
        self._package = f"{package}/"
        self._names: dict[CodeType, str | None] = {}
        self._inside: list[str] = []
        self.calls = self.stays = self.recipes = 0
        self.modules: set[str] = set()

    def __enter__(self) -> Tracer:
        threading.setprofile(self._see)
        sys.setprofile(self._see)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]

    def _module(self, code: CodeType) -> str | None:
        if code not in self._names:
            ours = code.co_filename.startswith(self._package) and code.co_name not in _NO_CALLS
            is_function = bool(code.co_flags & _OPTIMIZED)
            name = code.co_filename.removeprefix(self._package).removesuffix(".py")
            self._names[code] = name if ours and is_function else None
        return self._names[code]

    def _see(self, frame: FrameType, event: str, argument: Any) -> None:
        if event not in ("call", "return"):
            return
        module = self._module(frame.f_code)
        if module is None:
            return
        before = self._inside[-1] if self._inside else None
        if event == "call":
            self.calls += 1
            self.recipes += frame.f_code.co_name == "from_options"
            self.modules.add(module)
            self._inside.append(module)
        elif self._inside:
            self._inside.pop()
        now = self._inside[-1] if self._inside else None
        if now is not None and now != before:
            self.stays += 1


def _arrays(seed: int) -> dict[str, Any]:
    import numpy as np

    rng = np.random.default_rng(seed)
    values = np.random.default_rng(0).normal(size=(200, 300)).astype(np.float32)
    return {"layer.weight": values + rng.normal(size=values.shape).astype(np.float32) * np.float32(1e-3)}


def compress(folder: Path) -> Callable[[], object]:
    """One tensor against a base."""
    import nearzip as nz

    old, new = _arrays(1), _arrays(2)
    nz.compress(_arrays(3), old, bound="abs:1e-4", threads=1)
    return lambda: nz.compress(new, old, bound="abs:1e-4", threads=1)


def commit(folder: Path) -> Callable[[], object]:
    """The third version of a store with one tensor."""
    import nearzip as nz

    store = nz.Store(folder / "store", create=True, bound="abs:1e-4", policy="hop", threads=1)
    for seed in (1, 2):
        store.commit(_arrays(seed))
    new = _arrays(3)
    return lambda: store.commit(new)


def checkout(folder: Path) -> Callable[[], object]:
    """The newest version, in a process that has not opened the store before."""
    import nearzip as nz

    made = nz.Store(folder / "store", create=True, bound="abs:1e-4", policy="hop", threads=1)
    for seed in (1, 2, 3):
        made.commit(_arrays(seed))
    return lambda: nz.Store(folder / "store", threads=1).checkout()


def calibrate(folder: Path) -> Callable[[], object]:
    """A network of two layers, calibrated on four batches, by a given step."""
    import torch

    from nearzip import calibrate

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    batches = [torch.randn(64, 8) for _ in range(4)]
    calibrate.compress(network, batches, step=0.05, threads=1)
    return lambda: calibrate.compress(network, batches, step=0.05, threads=1)


def tune(folder: Path) -> Callable[[], object]:
    """A plan for four tensors, by eight trials."""
    import numpy as np

    import nearzip as nz

    tensors = {f"layer{i}": array for i in range(4) for array in _arrays(i).values()}

    def evaluate(restored: dict[str, Any]) -> float:
        return -float(sum(np.square(restored[name] - array).mean() for name, array in tensors.items()))

    return lambda: nz.tune(tensors, evaluate=evaluate, max_loss=0.01, evaluations=8)


JOBS = {"compress": compress, "commit": commit, "checkout": checkout, "calibrate.compress": calibrate, "tune": tune}


def main(name: str, folder: str, tree: str) -> None:
    """Trace one job and print what was counted."""
    sys.meta_path = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__.lower()]
    sys.path.insert(0, tree)
    import nearzip

    package = Path(nearzip.__file__).parent
    assert package == Path(tree).resolve() / "nearzip", f"{package} was imported"
    job = JOBS[name](Path(folder))
    with Tracer(package) as tracer:
        job()
    counted = {"modules": len(tracer.modules), "calls": tracer.calls, "stays": tracer.stays, "recipes": tracer.recipes}
    print(json.dumps(counted))


if __name__ == "__main__":
    main(*sys.argv[1:])
