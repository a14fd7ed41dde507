from dataclasses import dataclass

from nearzip.bounds import EXACT, Bound, Lossless
from nearzip.recipes import Recipe, TensorPlan, TensorView
from nearzip.stages import Pipeline, RawBytes, Zstd
from nearzip_example.stage import ByteDelta


@dataclass(frozen=True)
class ExampleBytes(Recipe):
    """Example: differences of bytes, Zstandard; lossless."""

    name = "example-bytes"
    stability = "experimental"
    uses_base = False

    level: int = 3

    def resolve_bound(self, bound: Bound | None) -> Bound:
        return Lossless()  # keeping every bit keeps any bound

    def plan(self, tensor: TensorView, bound: Bound) -> TensorPlan:
        return TensorPlan(Pipeline((RawBytes(), ByteDelta(tensor.dtype.itemsize), Zstd(self.level))), EXACT)
