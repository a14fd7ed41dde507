"""With PyTorch: data loaders, the search for a setting, steps from gradients, subsets."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

from nearzip import datasets
from nearzip.datasets.rankings import RANKINGS, Statistics, chosen
from nearzip.datasets.selecting import ALTERNATING
from nearzip.errors import BudgetError, CorruptError, Error, NotShownError, UsageError
from tests.nzd.pictures import pictures

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "x.nzd"
    datasets.write(path, pictures(50), np.arange(50) % 5, codec="nearzip:10", group=8)
    return path


@pytest.mark.parametrize("workers", [0, 2])
def test_data_loaders_give_every_sample_once(place, workers):
    data = datasets.Dataset(place)
    loader = torch.utils.data.DataLoader(data, batch_size=7, shuffle=True, num_workers=workers)
    pairs = [pair for images, labels in loader for pair in zip(images, labels, strict=True)]
    seen = [(image.numpy().tobytes(), int(label)) for image, label in pairs]
    assert sorted(seen) == sorted((image.numpy().tobytes(), label) for image, label in data)


def test_forms_of_a_sample(place):
    pixels = datasets.Dataset(place)[9][0]
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, 16, 16)
    assert torch.equal(datasets.Dataset(place, "float", ())[9], pixels / 255)
    assert datasets.Dataset(place, "dct")[9][0].shape == (192, 2, 2)
    assert datasets.Dataset(place, "zfp", precision=8)[9][0].shape == (3, 16, 16)
    assert datasets.Dataset(place, columns=[], transform=lambda x: x.sum())[9] == pixels.sum()
    with pytest.raises(UsageError, match="as_ is one of"):
        datasets.Dataset(place, "wavelet")


@pytest.mark.parametrize("codec", ["nearzip", "lossless", "webp:80", "jpeg:80", "png"])
@pytest.mark.parametrize("channels", [1, 3])
def test_tensors_are_the_callers_to_write_to(tmp_path, codec, channels):
    datasets.write(tmp_path / "x.nzd", pictures(3, channels=channels), codec=codec)
    data = datasets.Dataset(tmp_path / "x.nzd")
    first = data[0].clone()
    data[0].zero_()
    assert bool((data[0] == first).all())
    assert data[0].is_contiguous()


def test_data_sets_are_pickled_and_forked(place):
    data = datasets.Dataset(place)
    copy = pickle.loads(pickle.dumps(data))  # noqa: S301 - our own
    assert torch.equal(copy[3][0], data[3][0])
    if hasattr(os, "fork"):
        child = os.fork()
        if not child:
            os._exit(0 if torch.equal(data[44][0], datasets.Dataset(place)[44][0]) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, 2), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten(),
            torch.nn.Linear(8 * 7 * 7, 5),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x)


def test_the_smallest_file_within_the_divergence_is_found():
    images = pictures(120)
    net = Net()
    with torch.no_grad():
        net.layers[-1].weight *= 30  # sure of itself
    evaluate = datasets.image_evaluator(net, metric=["kl", "agreement"])
    plan = datasets.tune(images, evaluate=evaluate, max_loss={"kl": 0.01}, codecs=["jpeg,chroma=4:4:4", "nearzip"])
    assert plan.losses["kl"] <= 0.01
    assert {trial.codec.name for trial in plan.trials} == {"nearzip", "jpeg"}
    assert all(t.n_bytes >= plan.chosen.n_bytes for t in plan.trials if t.fits)
    coarser = [t for t in plan.trials if t.codec.name == plan.codec.name and t.n_bytes < plan.chosen.n_bytes]
    assert coarser
    assert not any(t.fits for t in coarser)


def test_plans_are_files_and_apply(tmp_path):
    images = pictures(40)
    plan = datasets.tune(images, evaluate=lambda x: -np.abs(np.stack(x).astype(float) - images).mean(), max_loss=3,
                         codecs=["nearzip", "zfp:rate,values=int32"])  # fmt: skip
    plan.save(tmp_path / "plan.json")
    again = datasets.Plan.load(tmp_path / "plan.json")
    assert again == plan
    written = datasets.write(tmp_path / "x.nzd", images, plan=again)
    assert written.n_bytes == plan.chosen.n_bytes
    (tmp_path / "bad.json").write_text((tmp_path / "plan.json").read_text().replace('"version": 1', '"version": "x"'))
    with pytest.raises(CorruptError):
        datasets.Plan.load(tmp_path / "bad.json")


def test_what_no_codec_reaches_is_said():
    images = pictures(20)
    with pytest.raises(BudgetError, match="allow more"):
        datasets.tune(images, evaluate=lambda x: -float((np.stack(x) != images).mean()), max_loss=0, codecs=["jpeg"])
    evaluate = datasets.image_evaluator(Net(), [i % 5 for i in range(20)], "top1", confidence=0.95)
    with pytest.raises(NotShownError):
        datasets.tune(images, evaluate=evaluate, max_loss=0.01, codecs=["nearzip"])


def test_norms_are_estimated_anew_on_coded_training_images():
    images = pictures(60)
    net = Net()
    plain, anew = (
        datasets.image_evaluator(net, metric="distance", norms=norms) for norms in (None, pictures(60, seed=1))
    )
    found = []
    for evaluate in (plain, anew):
        evaluate.original(list(images))
        seen = []
        metrics = evaluate.restored(list(images), lambda x, to=seen: to.append(len(x)) or list(x)).metrics
        found.append((metrics["distance"], seen))
    assert found[0] == (0.0, [])
    assert found[1][0] < 0
    assert found[1][1] == [60]


def test_steps_follow_the_gradients():
    class Low(torch.nn.Module):
        """Sees the mean of each block alone."""

        def forward(self, x):
            means = torch.nn.functional.avg_pool2d(x, 8).flatten(1)
            return torch.stack([means.sum(1), -means.sum(1)], 1)

    steps = np.array(datasets.calibrate(Low(), pictures(30))).reshape(3, 64)
    assert np.exp(np.log(steps).mean()) == pytest.approx(1, rel=1e-2)
    assert steps[0, 0] == steps.min()
    assert steps[0, 1] / steps[0, 0] > 4


def test_a_mixture_of_steps_is_coded(tmp_path):
    from nearzip.datasets.codecs.cosine import Cosine

    steps = tuple(np.geomspace(0.5, 2, 192))
    datasets.write(tmp_path / "x.nzd", pictures(20), codec=Cosine(12, steps=steps))
    with datasets.open(tmp_path / "x.nzd") as reader:
        assert reader.codec.steps == pytest.approx(steps)
        assert np.abs(np.stack(list(reader)).astype(float) - pictures(20)).mean() < 6


def fails_on(images, when):
    """Raises on the originals, or on what was restored."""

    def evaluate(restored):
        if (when == "trial") != bool((np.stack(restored) == images).all()):
            raise RuntimeError("no memory")
        return 1.0

    return evaluate


def test_an_evaluator_that_fails_is_named():
    images = pictures(8)
    for when, what in (("original", "the original images"), ("trial", "the trial of jpeg:50")):
        with pytest.raises(Error, match=f"evaluate raised RuntimeError on {what}: no memory"):
            datasets.tune(images, evaluate=fails_on(images, when), max_loss=1, codecs=["jpeg"])
    with pytest.raises(Error, match="evaluate returned nan as 'score' of the original images; there is nothing"):
        datasets.tune(images, evaluate=lambda x: float("nan"), max_loss=1)
    with pytest.raises(UsageError, match="evaluate returned no metric on the original images"):
        datasets.tune(images, evaluate=lambda x: {}, max_loss=1)
    with pytest.raises(UsageError, match="there are 7 labels for 8 images"):
        datasets.tune(images, evaluate=datasets.image_evaluator(Net(), [0] * 7, "top1"), max_loss=1)


# ---- subsets ---------------------------------------------------------------------------------------------------


def points(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    centers = np.array([[0, 0], [3, 0], [0, 3]])
    return (centers[labels] + rng.normal(0, 0.7, (n, 2))).astype(np.float32), labels


def experiment(n: int = 300):
    x, y = points(n, 0)
    xv, yv = points(300, 1)

    def train(indices, seed, watch):
        rng = np.random.default_rng(seed)
        w = np.zeros((3, 3))
        inputs = np.concatenate([x, np.ones((n, 1), np.float32)], 1)
        for step in range(60):
            rows = indices[rng.integers(0, len(indices), 16)]
            p = np.exp(inputs[rows] @ w)
            p /= p.sum(1, keepdims=True)
            w -= 0.3 / 16 * inputs[rows].T @ (p - np.eye(3)[y[rows]])
            if watch and step % 20 == 19:
                watch(w)
        return w

    def predict(w):
        p = np.exp(np.concatenate([x, np.ones((n, 1))], 1) @ w)
        return p / p.sum(1, keepdims=True)

    def evaluate(w):
        return float(((np.concatenate([xv, np.ones((300, 1))], 1) @ w).argmax(1) == yv).mean())

    return y, {"train": train, "predict": predict, "evaluate": evaluate}


def test_the_smallest_sufficient_subset_is_found():
    labels, parts = experiment()
    found = datasets.select(labels, max_loss=0.02, shares=(0.02, 0.1, 0.5), rankings=[*RANKINGS, ALTERNATING], **parts)
    assert found.original - found.metric <= 0.02
    assert len(found) < 300
    assert set(labels[found.indices]) == {0, 1, 2}
    assert {t.ranking for t in found.tried} == {*RANKINGS, ALTERNATING}
    smaller = [t for t in found.tried if t.n_samples < len(found)]
    assert all(found.original - t.metric > 0.02 for t in smaller)
    with pytest.raises(BudgetError, match="no subset tried"):
        datasets.select(labels, max_loss=-1.0, shares=(0.1,), rankings=["random"], **parts)
    with pytest.raises(UsageError, match="rankings are some of"):
        datasets.select(labels, max_loss=0.1, rankings=["luck"], **parts)


def out_of_memory(*_):
    raise RuntimeError("no memory")


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"train": out_of_memory}, Error, "train raised RuntimeError: no memory"),
        ({"predict": out_of_memory}, Error, "predict raised RuntimeError: no memory"),
        ({"evaluate": out_of_memory}, Error, "evaluate raised RuntimeError: no memory"),
        ({"features": out_of_memory}, Error, "features raised RuntimeError: no memory"),
        ({"train": 3}, UsageError, "train is a function, not int"),
        ({"evaluate": lambda w: float("nan")}, UsageError, "evaluate returned nan; it must return a finite number"),
        ({"evaluate": lambda w: "good"}, UsageError, "evaluate returned 'good'"),
        ({"max_loss": float("nan")}, UsageError, "max_loss is a finite number, not nan"),
    ],
)
def test_functions_of_a_selection_that_fail_are_named(changes, kind, message):
    labels, parts = experiment(60)
    with pytest.raises(kind, match=message):
        datasets.select(labels, **{"max_loss": 0.1, "shares": (0.5,), "seeds": (0,), **parts, **changes})


def test_rankings_choose_what_they_say():
    labels = np.repeat([0, 1], 50)
    own = np.tile(np.linspace(0.05, 0.95, 50), 2)
    p = np.where(np.eye(2)[labels].astype(bool), own[:, None], 1 - own[:, None])
    statistics = Statistics(labels, p[None, None])
    rng = np.random.default_rng(0)
    hardest = chosen(RANKINGS["el2n"](statistics, 0.1, rng), labels, 0.1)
    assert hardest.tolist() == [0, 1, 2, 3, 4, 50, 51, 52, 53, 54]
    easiest = chosen(RANKINGS["sufficient"](statistics, 0.1, rng), labels, 0.1)
    assert easiest.tolist() == [45, 46, 47, 48, 49, 95, 96, 97, 98, 99]
    covering = chosen(RANKINGS["coverage"](statistics, 0.2, rng), labels, 0.2)
    assert not set(covering) & {0, 1, 50, 51}  # the hardest 5 % are dropped
    assert np.ptp(own[covering]) > 0.6
    for name, ranking in RANKINGS.items():
        kept = chosen(ranking(statistics, 0.3, rng), labels, 0.3)
        assert np.bincount(labels[kept]).tolist() == [15, 15], name
    mean = own[chosen(RANKINGS["herding"](statistics, 0.1, rng), labels, 0.1)].mean()
    assert mean == pytest.approx(own.mean(), abs=0.02)
