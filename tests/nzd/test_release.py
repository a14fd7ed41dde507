"""`.nzd` files that a release wrote stay readable, to the last bit: the decoders' arithmetic is part of the format.

`python -m tests.nzd.test_release` writes files that are not there yet.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from nearzip import datasets
from tests.nzd.pictures import pictures

FILES = Path(__file__).parent / "files"
#: SHA-256 of the restored samples, one after the other.
RESTORED = {
    "nearzip": "f0e87a9e8ef05ec05eb92cf881e67c4a646bc0abd0956b349668ef9f6832755d",
    "nearzip-grey": "94fc6212eff71eee8ac1a724794b437a4cf669d23bb17da9a6e6e7f028c53545",
    "lossless": "035d9915e4f33e6099d0e26f8e93a80ffae6fbf96c91c053944c2d5d8ac6a98f",
    "bounded": "8153e38c096e261c3281c22d93bd3dc023aa8a476cb875cffa1bc7c408de4bac",
}


def restored(name: str) -> str:
    with datasets.open(FILES / f"0.1.0-{name}.nzd") as reader:
        found = hashlib.sha256()
        for sample in reader:
            found.update(np.ascontiguousarray(sample).tobytes())
        assert reader.columns["label"].tolist() == list(range(len(reader)))
    return found.hexdigest()


@pytest.mark.parametrize("name", RESTORED)
def test_files_of_releases_give_the_same_samples(name):
    assert restored(name) == RESTORED[name]


def write() -> None:
    cases = {
        "nearzip": (pictures(40, 20, 24), "nearzip:14"), "nearzip-grey": (pictures(40, 16, 16, 1), "nearzip:10"),
        "lossless": (pictures(30, 13, 17), "lossless"),
        "bounded": (pictures(12, 6, 7, 1).astype(np.float32), "bounded:abs:0.01"),
    }  # fmt: skip
    for name, (images, codec) in cases.items():
        path = FILES / f"0.1.0-{name}.nzd"
        if not path.exists():
            datasets.write(path, images, range(len(images)), codec=codec)
        print(f'    "{name}": "{restored(name)}",')


if __name__ == "__main__":
    write()
