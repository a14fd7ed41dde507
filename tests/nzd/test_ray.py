"""Encoding on Ray, through joblib's backend of that name."""

from __future__ import annotations

import io

import numpy as np
import pytest

from nearzip import datasets
from nearzip.errors import UsageError
from tests.nzd.pictures import pictures


@pytest.fixture(scope="module")
def ray_workers():
    pytest.importorskip("ray", reason="needs ray")
    joblib = pytest.importorskip("joblib")
    import ray
    from ray.util.joblib import register_ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    register_ray()
    with joblib.parallel_config("ray", n_jobs=2):
        yield ray
    ray.shutdown()


def written(images, **options) -> bytes:
    out = io.BytesIO()
    datasets.write(out, images, range(len(images)), **options)
    return out.getvalue()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("codec", ["nearzip:20", "lossless", "bounded"])
def test_encoding_runs_on_ray(ray_workers, codec):
    import joblib

    images = pictures(300, 64, 64)
    with joblib.parallel_config("sequential"):
        one = written(images, codec=codec)
    assert written(images, codec=codec) == one
    with datasets.open(one) as reader:
        assert np.array_equal(reader[299], list(reader)[299])


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_errors_of_workers_on_ray_are_named(ray_workers):
    with pytest.raises(UsageError, match="sample 300"):
        written([*pictures(300, 64, 64), np.zeros((4, 4, 1), np.uint8)], codec="png")
