"""Images whose coefficients are rounded for a network."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest

from nearzip import datasets
from nearzip.datasets.codecs.cosine import Cosine
from nearzip.errors import UsageError
from tests.nzd.pictures import pictures

torch = pytest.importorskip("torch")


def network(height: int = 16, width: int = 16, channels: int = 3):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(channels, 8, 5, 2), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.Linear(8 * ((height - 3) // 2) * ((width - 3) // 2), 10),
    )  # fmt: skip
    with torch.no_grad():
        net[-1].weight.mul_(40)  # as sure of itself as a trained one
    return net


def written(images, codec) -> bytes:
    out = io.BytesIO()
    datasets.write(out, images, codec=codec)
    return out.getvalue()


def divergence(net, images, restored) -> float:
    judge = datasets.image_evaluator(net.eval(), np.zeros(len(images), int), ["kl"])
    judge.original(list(images))
    return -judge.restored(list(restored), list).metrics["kl"]


@pytest.mark.parametrize(("height", "width", "channels"), [(16, 16, 3), (19, 12, 1), (16, 9, 4)])
def test_the_network_changes_less_at_the_same_size(height, width, channels):
    images, net = pictures(40, height, width, channels), network(height, width, channels)
    plain = written(images, Cosine(60.0))
    codec = datasets.for_network(net, "nearzip:60")
    chosen = written(images, codec)
    with datasets.open(plain) as a, datasets.open(chosen) as b:
        assert b.codec == a.codec == Cosine(60.0)
        assert divergence(net, images, list(b)) < 0.5 * divergence(net, images, list(a))
        assert (
            np.abs(np.stack(list(b)).astype(float) - images).mean()
            < 1.3 * np.abs(np.stack(list(a)).astype(float) - images).mean()
        )
    assert len(chosen) < 1.25 * len(plain)


def test_the_same_bytes_again_in_workers_and_after_pickling():
    joblib = pytest.importorskip("joblib")
    images, codec = pictures(30), datasets.for_network(network(), "nearzip:40")
    one = written(images, codec)
    assert written(images, codec) == one
    assert written(images, pickle.loads(pickle.dumps(codec))) == one  # noqa: S301 - our own
    with joblib.parallel_config("threading", n_jobs=2):
        assert written(images, codec) == one


def test_modes_of_networks_are_kept_and_several_count_together():
    first, second = network().train(), network().eval()
    written([*pictures(5), *pictures(3, 24, 16)[:, :16]], datasets.for_network([first, second], rounds=2))
    assert first.training
    assert not second.training


def test_a_search_takes_it():
    images, net = pictures(30), network().eval()
    evaluate = datasets.image_evaluator(net, np.zeros(30, int), ["kl"])
    sizes = [
        datasets.tune(images, evaluate=evaluate, max_loss={"kl": 0.01}, codecs=[codec]).chosen.n_bytes
        for codec in (Cosine(), datasets.for_network(net, rounds=4))
    ]
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(([],), "no network"), ((None, "webp:80"), "for the codec 'nearzip'"), ((None, "nearzip", 0), "rounds is")],
)
def test_what_cannot_be_chosen_for_is_refused(arguments, message):
    modules, *rest = arguments
    modules = network() if modules is None else modules
    options = {"rounds": rest[1]} if len(rest) > 1 else {}
    with pytest.raises(UsageError, match=message):
        datasets.for_network(modules, *rest[:1], **options)


def test_images_of_equal_bytes_and_other_shapes():
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(4, 3))
    images = [np.zeros((8, 16, 1), np.uint8), np.zeros((16, 8, 1), np.uint8)]
    with datasets.open(written(images, datasets.for_network(net, "nearzip:40"))) as reader:
        assert [image.shape for image in reader] == [(8, 16, 1), (16, 8, 1)]


def test_the_same_bytes_when_written_again():
    images, codec = pictures(20), datasets.for_network(network(), "nearzip:40")
    assert written(images, codec) == written(images, codec)


def test_layers_stay_in_their_modes_and_gradients_need_not_be_enabled():
    net = network().train()
    net[1].eval()
    with torch.no_grad():
        written(pictures(10), datasets.for_network(net, "nearzip:40"))
        datasets.calibrate(net, pictures(10))
    assert [layer.training for layer in (net, *net)] == [True, True, False, True, True, True]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda x: x.flatten(1) * float("nan"), "not finite"),
        (lambda x: x.flatten(1).sum(1), "returns logits"),
        (lambda x: (x.flatten(1),), "returns logits"),
    ],
)
def test_outputs_that_are_no_finite_logits_are_refused(outputs, message):
    class Net(torch.nn.Module):
        def forward(self, x):
            return outputs(x)

    with pytest.raises(UsageError, match=message):
        written(pictures(4), datasets.for_network(Net(), "nearzip:40"))
