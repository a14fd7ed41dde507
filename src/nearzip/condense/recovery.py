"""Training that recovers accuracy after weights are removed: the L-C optimizer, a gradual schedule, or fine-tuning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nearzip.condense.schemes import Prepared, Values
from nearzip.condense.training import Training, restimate
from nearzip.errors import UsageError
from nearzip.recipes.retrain import Hold
from nearzip.torch.finetune import holding

__all__ = ["LC", "Direct", "Gradual", "Job", "Recovery", "load_values", "marked"]

#: Takes a network; returns how good it is, higher is better.
Judge = Callable[[nn.Module], float]


@dataclass
class Job:
    """One network to be condensed to one share.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place, until it is thinned.
    prepared : Prepared
        The scheme for it.
    keep : float
    training : Training
    inputs : batch or list of batches
        For the statistics of batch norm.
    judge : callable or None
        Where a recovery chooses among its iterates.
    """

    module: nn.Module
    prepared: Prepared
    keep: float
    training: Training
    inputs: Any = None
    judge: Judge | None = None

    def projected(self, keep: float | None = None) -> Values:
        """The projection of the network as it is."""
        return self.prepared.project(marked(self.module, self.prepared), self.keep if keep is None else keep)

    def held(self, keep: float, factors: list[float]) -> None:
        """Project the network to a share, and train it within the scheme."""
        load_values(self.module, self.projected(keep))
        with holding(self.module, self.prepared.hold(self.module)):
            for factor in factors:
                self.training.epoch(self.module, factor)

    def cut(self) -> None:
        """Project the network in place."""
        load_values(self.module, self.projected())

    def finished(self, epochs: int, factors: list[float]) -> nn.Module:
        """Thin the projected network, train it within the scheme, and correct values that training moved."""
        module = self.prepared.thin(self.module, self.keep)
        with holding(module, self.prepared.hold(module)):
            for factor in factors[len(factors) - epochs :]:
                self.training.epoch(module, factor)
        self.prepared.settle(module)
        if not epochs:
            # Training on the masked network leaves its own statistics; without any they are those of another.
            restimate(module, self.inputs)
        return module.eval()


def marked(module: nn.Module, prepared: Prepared) -> Values:
    """The parameters that a scheme marks."""
    own = dict(module.named_parameters())
    return {name: own[name].detach() for name in prepared.names}


@torch.no_grad()
def load_values(module: nn.Module, values: Values) -> None:
    """Set parameters by name, in place."""
    own = dict(module.named_parameters())
    for name, value in values.items():
        own[name].copy_(value)


@dataclass(frozen=True)
class Recovery(ABC):
    """How a network is trained while and after something is removed.

    Parameters
    ----------
    epochs : int
        Of your `train_epoch`, in all.
    lr_end : float
        What the factor of the learning rate falls to, exponentially over the epochs of fine-tuning, if `train_epoch`
        takes one as its second argument. Before, it is 1.
    """

    epochs: int = 10
    lr_end: float = 0.1

    def __post_init__(self) -> None:
        if type(self.epochs) is not int or self.epochs < 0:
            raise UsageError(f"epochs is a whole number from 0 on, not {self.epochs!r}")
        if isinstance(self.lr_end, bool) or not isinstance(self.lr_end, (int, float)) or not 0 < self.lr_end <= 1:
            raise UsageError(f"lr_end is a factor of the learning rate, above 0 and at most 1, not {self.lr_end!r}")

    @property
    def n_epochs(self) -> int:
        """Total epochs of one recovery."""
        return self.epochs

    @property
    def tail(self) -> int:
        """Epochs of fine-tuning, after the last removal."""
        return self.epochs

    @property
    def factors(self) -> list[float]:
        """The factor of the learning rate in each epoch."""
        return [1.0] * (self.epochs - self.tail) + falling(self.tail, self.lr_end)

    @abstractmethod
    def run(self, job: Job) -> nn.Module:
        """The condensed network, in evaluation mode. Raises UsageError for a training that cannot work."""


def falling(n: int, end: float) -> list[float]:
    """From 1 to `end`, exponentially, in n values."""
    return [float(end ** (i / (n - 1))) if n > 1 else 1.0 for i in range(n)]


@dataclass(frozen=True)
class Direct(Recovery):
    """Remove everything at once, then fine-tune; removed weights stay zero ("direct compression"; Han et al. 2015)."""

    def run(self, job: Job) -> nn.Module:
        job.cut()
        return job.finished(self.tail, self.factors)


@dataclass(frozen=True)
class Gradual(Recovery):
    """Remove gradually: the share removed rises as ``s (1 - (1 - t) ** 3)`` (Zhu and Gupta 2017, equation 1).

    Parameters
    ----------
    finetune : float
        Share of the epochs after the last removal.
    """

    finetune: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finetune(self.finetune)

    @property
    def tail(self) -> int:
        return tail_of(self.epochs, self.finetune)

    def run(self, job: Job) -> nn.Module:
        last, n = self.tail, self.epochs - self.tail
        for i, factor in zip(range(1, n + 1), self.factors, strict=False):
            keep = cubic(job.keep, i / n)
            job.held(keep, [factor])
        job.cut()
        return job.finished(last, self.factors)


def cubic(keep: float, t: float) -> float:
    """The share at time t, from 0 to 1, of a removal that ends at `keep`."""
    return keep + (1 - keep) * (1 - min(t, 1.0)) ** 3


def check_finetune(share: Any) -> None:
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
        raise UsageError(f"finetune is a share of the epochs, from 0 to below 1, not {share!r}")


def tail_of(epochs: int, share: float) -> int:
    """Epochs of fine-tuning, at least one left for what comes before."""
    return min(round(epochs * share), max(epochs - 1, 0))


@dataclass(frozen=True)
class LC(Recovery):
    """The learning-compression algorithm by an augmented Lagrangian (Carreira-Perpinan 2017, sections 3 and 4), in the
    form of Condensa's optimizer, then fine-tuning with the zeros held.

    Minimises ``loss(w) - lam (w - theta) + mu / 2 |w - theta| ** 2`` over w by training (L step) and over theta by
    projection (C step)::

        theta = project(w);  lam = 0
        for j in 1 .. steps:
            L: train w on the loss, plus the gradient mu (w - theta) - lam on the marked weights
            C: theta = project(w - lam / mu)
            lam -= mu (w - theta)

    The published form takes hundreds of epochs. With `gradual`, two things are different, which short trainings need:

    * The share falls from step to step as in `Gradual`, and the first L step trains the network that is cut to the
      first share. In the published form the first projection decides which weights stay, before anything was learned.
    * The penalty counts only values that the projection changed: theta's other values are free, so that they are what
      they are in w at any time of the L step. In the published form they hold w near to where the L step began.

    The first L step measures how far the training moves weights, without a penalty: ``pull``, the sum over its steps
    of lr / (1 - momentum). Then mu rises exponentially so that ``kappa = mu pull``, how far one L step takes w to
    theta, goes from `kappa` to `kappa_end`. In the published settings kappa goes from 0.1 to 0.4 up to 1.5 to 8, over
    hundreds of epochs.

    Parameters
    ----------
    epochs : int
        In all: L steps of `epochs_per_step` epochs, the rest fine-tuning.
    finetune : float
        Share of the epochs for fine-tuning. 0: none; the theta with the best evaluation is returned, as published.
    gradual : bool
        False: the published form.
    kappa, kappa_end : float or None
        None: 2 and 8; in the published form 0.15 and 0.6.
    mu, growth, mu_max : float or None
        In place of kappa: mu of the second L step (the first has none), its factor from step to step, and its largest
        value.
    epochs_per_step : int
    """

    finetune: float = 0.3
    gradual: bool = True
    kappa: float | None = None
    kappa_end: float | None = None
    mu: float | None = None
    growth: float = 1.1
    mu_max: float = 1e4
    epochs_per_step: int = 1
    epochs_first: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finetune(self.finetune)
        if type(self.gradual) is not bool:
            raise UsageError(f"gradual is True or False, not {self.gradual!r}")
        for name in ("kappa", "kappa_end", "growth", "mu_max", "mu"):
            value = getattr(self, name)
            if value is None and name not in ("growth", "mu_max"):
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise UsageError(f"{name} is a positive number, not {value!r}")
        for name, least in (("epochs_per_step", 1), ("epochs_first", 0)):
            if type(getattr(self, name)) is not int or getattr(self, name) < least:
                raise UsageError(f"{name} is a whole number from {least} on, not {getattr(self, name)!r}")

    @staticmethod
    def published(name: str) -> LC:
        """The constants of Condensa's examples and of the authors of L-C, for their own trainings.

        ===========  ===============================  =======  ======================  ===============
        name         what                             L steps  epochs each (first)     mu, its growth
        ===========  ===============================  =======  ======================  ===============
        "alexnet"    AlexNet on CIFAR-10, batch 128   34       8 (77)                  1e-3, 1.1
        "lenet-5"    LeNet-5 on MNIST, batch 512      39       17 (85)                 9.77e-5, 1.1
        "lenet-300"  LeNet-300-100, L-C's own code    39       20 (40)                 9e-5, 1.1
        ===========  ===============================  =======  ======================  ===============

        They fit the learning rates there (0.01, 0.02 and 0.1, momentum 0.95, 0.95 and 0.9): use `dataclasses.replace`
        to change them. Epochs are the published minibatches over those of an epoch, rounded up. Nothing is fine-tuned;
        the best theta is returned.
        """
        if name not in _PUBLISHED:
            raise UsageError(f"published constants are those of {', '.join(_PUBLISHED)}, not {name!r}")
        steps, each, first, mu = _PUBLISHED[name]
        return LC(
            first + (steps - 1) * each, finetune=0.0, gradual=False, mu=mu, growth=1.1, mu_max=1e4,
            epochs_per_step=each, epochs_first=first,
        )  # fmt: skip

    @property
    def tail(self) -> int:
        return tail_of(self.epochs, self.finetune)

    def run(self, job: Job) -> nn.Module:
        last = self.tail
        ends = self._ends(self.epochs - last)
        steps = len(ends)
        gradual = self.gradual and job.prepared.prunes
        # With `gradual`: the share of each projection, the first of which comes before the first L step.
        keeps = [cubic(job.keep, (j + 1) / steps) if gradual else job.keep for j in range(steps)] + [job.keep]
        theta = job.projected(keeps[0])
        lam = {name: torch.zeros_like(value) for name, value in theta.items()}
        free: Values = {}
        best = _Best(job) if not self.finetune else None
        mu = pull = 0.0
        for j, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
            factors, keep = self.factors[begin:end], keeps[j + 1]
            mu = self._mu(mu, j, steps, pull * sum(factors))
            if gradual and not j:
                job.held(keeps[0], factors)
            else:
                self._learn(job, theta, lam, mu, factors, free)
            theta, lam, left = self._compress(job, lam, mu, keep)
            free = left if gradual else {}
            if not j:
                pull = job.training.pull / factors[-1]
            if best is not None and keep == job.keep:
                best.offer(theta)
        load_values(job.module, theta if best is None else best.chosen(theta))
        return job.finished(last, self.factors)

    def _ends(self, epochs: int) -> list[int]:
        """The epoch at which each L step ends."""
        first = self.epochs_first or self.epochs_per_step
        return [min(end, epochs) for end in range(first, epochs + self.epochs_per_step, self.epochs_per_step) if epochs]

    def _mu(self, before: float, j: int, steps: int, pull: float) -> float:
        """The penalty's weight in L step j, from 0; none in the first one. `pull`: of the step's training."""
        if not j:
            return 0.0
        if self.mu is not None:
            return self.mu if j == 1 else min(before * self.growth, self.mu_max)
        begin, end = (2.0, 8.0) if self.gradual else (0.15, 0.6)
        begin, end = self.kappa or begin, self.kappa_end or end
        kappa = begin * float((end / begin) ** ((j - 1) / max(steps - 2, 1)))
        return min(kappa / max(pull, 1e-12), self.mu_max)

    def _learn(self, job: Job, theta: Values, lam: Values, mu: float, factors: list[float], free: Values) -> None:
        """An L step. `free`: where values are not pulled."""
        # mu (w - theta) - lam is the gradient of mu / 2 |w - (theta + lam / mu)|^2.
        near = {name: theta[name] + lam[name] / mu for name in theta} if mu else {}
        near |= {name: near[name].masked_fill(mask, torch.nan) for name, mask in free.items() if mu}
        with holding(job.module, Hold(near={name: _array(value) for name, value in near.items()}, weight=mu)):
            for factor in factors:
                job.training.epoch(job.module, factor)

    def _compress(self, job: Job, lam: Values, mu: float, keep: float) -> tuple[Values, Values, Values]:
        """A C step, and the multipliers: theta, lam, and where the projection changed nothing."""
        w = {name: value.clone() for name, value in marked(job.module, job.prepared).items()}
        target = {name: w[name] - lam[name] / mu for name in w} if mu else w
        theta = job.prepared.project(target, keep)
        # A removed value that was zero before is not free: it would grow again.
        free = {name: (theta[name] == target[name]) & (theta[name] != 0) for name in w}
        return theta, {name: lam[name] - mu * (w[name] - theta[name]) for name in w}, free


def _array(value: Tensor) -> Any:
    return value.cpu().numpy() if value.dtype != torch.bfloat16 else value.cpu()


#: L steps, epochs of each, epochs of the first, mu.
_PUBLISHED = {"alexnet": (34, 8, 77, 1e-3), "lenet-5": (39, 17, 85, 9.77e-5), "lenet-300": (39, 20, 40, 9e-5)}


class _Best:
    """The theta with the best evaluation, and its batch-norm statistics."""

    def __init__(self, job: Job):
        self._job, self._score = job, -float("inf")
        self._values: Values | None = None

    def offer(self, theta: Values) -> None:
        if self._job.judge is None:
            self._values = theta
            return
        before = {name: value.clone() for name, value in self._job.module.state_dict().items()}
        load_values(self._job.module, theta)
        restimate(self._job.module, self._job.inputs)
        score = self._job.judge(self._job.module)
        self._job.module.load_state_dict(before)
        if score >= self._score:
            self._score, self._values = score, theta

    def chosen(self, last: Values) -> Values:
        return last if self._values is None else self._values
