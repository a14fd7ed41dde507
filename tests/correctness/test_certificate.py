"""Certificates: what they say, that every changed byte is found, and that a second measurement agrees."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest

import nearzip as nz
from nearzip.correctness import Certificate, certify, sample_digests
from nearzip.correctness.canonical import canonical, sha256
from nearzip.correctness.samples import batch_digests, tensors_digest
from nearzip.errors import CorruptError, NewerFormatError, UsageError, WrongBaseError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from nearzip.cli import cli  # noqa: E402
from tests.correctness.networks import Tokens, arrays, noisy, picture_batches, pictures  # noqa: E402

NET = pictures()
FRESH = picture_batches(NET, 200, seed=1)
TUNED = picture_batches(NET, 40, seed=2)
LIMITS = {"top1": 0.2, "class/*": 0.9, "kl": 1.0}
ARCHIVE = nz.compress(arrays(NET), bound=nz.Absolute(0.002))


@pytest.fixture(scope="module")
def certificate():
    return certify(ARCHIVE, NET, FRESH, limits=LIMITS, tuned_on=TUNED, command=["nearzip", "certify"])


# ---- what it says ----------------------------------------------------------------------------------------------


def test_it_is_an_in_toto_statement_of_a_test_result(certificate):
    statement = json.loads(certificate.to_bytes())
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    subject, restored = statement["subject"]
    assert subject == {"name": "archive", "digest": {"sha256": sha256(ARCHIVE.to_bytes())}}
    assert restored["digest"]["sha256"] == tensors_digest(nz.decompress(ARCHIVE))
    assert statement["predicate"]["result"] == "PASSED"
    assert set(statement["predicate"]["passedTests"]) == set(certificate.verdicts)
    assert statement["predicate"]["warnedTests"] == statement["predicate"]["failedTests"] == []
    assert all({"name", "digest"} <= set(part) for part in statement["predicate"]["configuration"])


def test_its_figures_are_those_of_the_evaluator(certificate):
    from nearzip.torch import evaluator

    found = evaluator(NET, FRESH, ["top1", "class/*", "flips", "agreement", "kl/*"])
    before, after = found(arrays(NET)), found(ARCHIVE.restored)
    for name, value in after.items():
        assert certificate.metrics[name]["restored"] == pytest.approx(value, abs=1e-6), name
        assert certificate.metrics[name]["original"] == pytest.approx(before[name], abs=1e-6), name
    counts = certificate.measurement["counts"]["all"]
    assert counts["n"] == 200
    assert counts["agree"] == round(200 * after["agreement"])
    assert counts["worse"] == round(-200 * after["flips/worse"])
    assert certificate.metrics["top1"]["interval"]["worse"] == counts["worse"]
    assert certificate.metrics["top1"]["limit"] == 0.2
    assert certificate.metrics["flips/worse"]["verdict"] is None


def test_samples_are_named_and_disjoint_from_those_tuned_on(certificate):
    assert list(certificate.samples) == sample_digests(FRESH)
    assert len(set(certificate.samples)) == 200
    tuned = certificate.part("tuned-on")["annotations"]
    assert tuned["sha256"] == sorted(sample_digests(TUNED))
    assert not set(tuned["sha256"]) & set(certificate.samples)
    with pytest.raises(UsageError, match="40 of the 240 samples were tuned on"):
        certify(ARCHIVE, NET, [*FRESH, *TUNED], limits=LIMITS, tuned_on=TUNED)
    # Another label, another batch size and digests in place of data make no difference.
    relabelled = [(x, y * 0) for x, y in TUNED]
    with pytest.raises(UsageError, match="were tuned on"):
        certify(ARCHIVE, NET, [*FRESH, *TUNED], limits=LIMITS, tuned_on=sample_digests(relabelled))


def test_each_network_runs_once_for_every_batch():
    calls = []
    counted = pictures()
    counted.register_forward_hook(lambda *_: calls.append(1))
    certify(ARCHIVE, counted, FRESH, limits=LIMITS)
    assert len(calls) == 2 * len(FRESH)


def test_three_verdicts():
    broken = nz.compress(noisy(NET, 3.0), bound=nz.Absolute(1e-4))
    found = certify(broken, NET, FRESH, limits={"top1": 0.01})
    assert (found.verdict, found.statement["predicate"]["result"]) == ("broken", "FAILED")
    unknown = certify(ARCHIVE, NET, FRESH, limits={"top1": 1e-4})
    assert (unknown.verdict, unknown.statement["predicate"]["failedTests"]) == ("not shown", ["top1"])
    assert unknown.metrics["top1"]["samples_needed"] > 200


def test_a_plan_brings_its_limits():
    from nearzip.torch import evaluator

    judge = evaluator(NET, TUNED, "agreement")
    plan = nz.tune(arrays(NET), evaluate=judge, max_loss=0.1)
    archive = nz.compress(arrays(NET), plan=plan)
    found = certify(archive, NET, FRESH, plan=plan, tuned_on=TUNED)
    assert list(found.verdicts) == ["agreement"]
    assert found.metrics["agreement"]["limit"] == 0.1
    assert found.part("plan")["digest"]["sha256"] == sha256(canonical(plan.to_json()))
    with pytest.raises(UsageError, match="the plan was measured on another archive"):
        certify(ARCHIVE, NET, FRESH, plan=plan)


def test_an_update_names_its_base(tmp_path):
    base = noisy(NET, 0.01)
    archive = nz.compress(arrays(NET), base=base, bound=nz.Absolute(0.002))
    found = certify(archive, NET, FRESH, limits=LIMITS, base=base)
    assert found.part("base")["digest"]["sha256"] == tensors_digest(base)
    with pytest.raises(WrongBaseError):
        certify(archive, NET, FRESH, limits=LIMITS, base=noisy(NET, 0.02))


def test_language_models_and_several_data_sets():
    torch.manual_seed(0)
    model = Tokens()
    a, b = ([{"input_ids": ids, "labels": ids}] for ids in torch.randint(7, (2, 12, 9)))
    archive = nz.compress(arrays(model), bound=nz.Absolute(1e-4))
    found = certify(archive, model, {"code": a, "chat": b}, limits={"*/kl": 0.1, "code/top1": 0.5})
    assert set(found.verdicts) == {"code/kl", "chat/kl", "code/top1"}
    assert found.measurement["counts"]["code"]["n"] == 12 * 8
    # Documents are the independent units, tokens are not.
    assert found.metrics["code/kl"]["interval"]["n"] == 12
    padded = {"input_ids": torch.tensor([[1, 2, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    longer = {"input_ids": torch.tensor([[1, 2, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 0, 0]])}
    assert batch_digests(padded) == batch_digests(longer)


def test_regressors():
    torch.manual_seed(0)
    net = nn.Linear(4, 1)
    data = [(torch.randn(30, 4), torch.randn(30))]
    archive = nz.compress(arrays(net), bound=nz.Absolute(1e-5))
    found = certify(archive, net, data, limits={"distance": 0.1}, metrics=["distance"])
    assert found.verdicts == {"distance": "kept"}


# ---- changes are found -----------------------------------------------------------------------------------------


def test_every_changed_byte_is_found(certificate):
    data = certificate.to_bytes()
    rng = np.random.default_rng(0)
    # Every byte outside of the lists of samples, and some of those.
    listed = [m.span() for m in re.finditer(rb'"sha256":\[[^]]*\]', data)]
    inside = {i for first, last in listed for i in range(first, last)}
    positions = [i for i in range(len(data)) if i not in inside] + rng.choice(sorted(inside), 200).tolist()
    for i in positions:
        changed = bytearray(data)
        changed[i] ^= 1 << int(rng.integers(8))
        with pytest.raises((CorruptError, NewerFormatError)):
            Certificate.from_bytes(bytes(changed))
    for cut in (0, 1, len(data) // 2, len(data) - 1):
        with pytest.raises(CorruptError):
            Certificate.from_bytes(data[:cut])
    for added in (b" ", b"\n"):
        with pytest.raises(CorruptError, match="canonical"):
            Certificate.from_bytes(data + added)


def test_an_archive_with_one_byte_changed_is_another(certificate):
    certificate.check_archive(ARCHIVE)
    data = bytearray(ARCHIVE.to_bytes())
    for i in range(0, len(data), 97):
        changed = bytearray(data)
        changed[i] ^= 1
        with pytest.raises(CorruptError, match="of another archive"):
            certificate.check_archive(bytes(changed))


def test_what_was_recomputed_is_found_by_measuring_again(certificate):
    """A forger can make a certificate that fits itself; only a signature or a measurement finds that."""
    from nearzip.correctness.certificate import sealed

    statement = json.loads(certificate.to_bytes())
    parts = statement["predicate"]["configuration"][1:]
    measurement = parts[-1]["annotations"]
    measurement["counts"]["all"]["worse"] -= 1
    parts[-1]["digest"]["sha256"] = sha256(canonical(measurement))
    forged = Certificate.from_bytes(canonical(sealed(statement["subject"], parts)))
    again = certify(ARCHIVE, NET, FRESH, limits=LIMITS, tuned_on=TUNED)
    with pytest.raises(CorruptError, match=r"measured again, .*worse is"):
        forged.check_again(again)
    assert certificate.check_again(again) == ["predicate.configuration.measurement.annotations.command was ['nearzip', "
                                              "'certify'], is []"]  # fmt: skip
    with pytest.raises(CorruptError, match="samples"):
        certificate.check_again(certify(ARCHIVE, NET, FRESH[:-1], limits=LIMITS, tuned_on=TUNED))
    with pytest.raises(CorruptError, match="original"):
        certificate.check_again(certify(ARCHIVE, pictures(3), FRESH, limits={"*": 9}, tuned_on=TUNED))


def test_verdicts_must_follow_from_their_bounds(certificate):
    from nearzip.correctness.certificate import sealed

    statement = json.loads(certificate.to_bytes())
    parts = statement["predicate"]["configuration"][1:]
    measurement = parts[-1]["annotations"]
    measurement["metrics"]["top1"]["interval"]["upper"] = 0.5
    parts[-1]["digest"]["sha256"] = sha256(canonical(measurement))
    with pytest.raises(CorruptError, match="'top1': its verdict does not follow"):
        Certificate.from_bytes(canonical(sealed(statement["subject"], parts)))


@pytest.mark.parametrize(
    "text", [b"{}", b"[]", b"1", b"", b'{"_type":1}', b"\xff", b'{"_type":"x","predicate":{},"predicateType":"y",'
             b'"subject":[]}', b"[" * 100]
)  # fmt: skip
def test_what_is_no_certificate(text):
    with pytest.raises(CorruptError):
        Certificate.from_bytes(text)


def test_canonical_json_is_that_of_the_rfc():
    numbers = [333333333.33333329, 1e30, 4.50, 2e-3, 1e-27, 1e21, 1e20, 123456789012345680000.0, -0.0, 1e-6, 1e-7, 0.1]
    expected = (b"[333333333.3333333,1e+30,4.5,0.002,1e-27,1e+21,100000000000000000000,123456789012345680000,0,"
                b"0.000001,1e-7,0.1]")  # fmt: skip
    assert canonical(numbers) == expected
    assert canonical({"\u20ac": 1, "\r": 2, "1": 3, "\U0001f600": 4, "\ufb33": 5}) == (
        '{"\\r":2,"1":3,"\u20ac":1,"\U0001f600":4,"\ufb33":5}'.encode()
    )
    for wrong in (float("nan"), float("inf"), {1: 2}, 2**60, {1, 2}):
        with pytest.raises(UsageError):
            canonical(wrong)


def test_canonical_numbers_read_back():
    rng = np.random.default_rng(0)
    for value in rng.standard_normal(2000) * 10.0 ** rng.integers(-30, 30, 2000):
        assert json.loads(canonical(float(value))) == value


# ---- two processes, one and two threads ------------------------------------------------------------------------

_SCRIPT = """
import sys, torch
torch.set_num_threads(int(sys.argv[1]))
from tests.correctness.test_certificate import *
found = certify(ARCHIVE, NET, FRESH, limits=LIMITS, tuned_on=TUNED,
                metrics=["top1", "class/*", "flips", "cost", "kl/*", "embedding", "distance", "perplexity",
                         *sys.argv[3:]])
found.save(sys.argv[2], force=True)
"""


def test_two_processes_and_one_and_two_threads_say_the_same(tmp_path):
    deep = []
    try:
        import captum  # noqa: F401
        import foolbox  # noqa: F401

        deep = ["attribution/*", "boundary/random", "boundary/worst", "robust/linf:2", "robust/gauss:0.08"]
    except ImportError:
        pass
    found = []
    for threads in (1, 2):
        path = tmp_path / f"{threads}.json"
        run = subprocess.run(
            [sys.executable, "-c", _SCRIPT, str(threads), str(path), *deep], capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr[-2000:]
        found.append(Certificate.load(path))
    assert found[0].check_again(found[1]) == []
    assert found[0].measurement["counts"] == found[1].measurement["counts"]


# ---- bad input -------------------------------------------------------------------------------------------------


def one_hot(rows):
    return [(x, torch.full_like(y, rows)) for x, y in FRESH]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limits": None}, "a certificate needs limits"),
        ({"limits": {"nonsense": 0.1}}, "no metric 'nonsense'"),
        ({"limits": {"top1": -1}}, "max_loss of top1 is a number from 0 on"),
        ({"limits": {"embedding/structure": 0.1}, "metrics": ["embedding"]}, "has no samples behind it"),
        ({"fresh_data": one_hot(9)}, r"targets lie between 9 and 9; the network has 5 classes"),
        ({"fresh_data": []}, "gave no samples"),
        ({"features": "no.such.layer", "metrics": ["embedding"], "limits": {"*": 1}}, "no layer 'no.such.layer'"),
        ({"metrics": [nz.correctness.Cost([[0, 1], [1, 0]])], "limits": {"cost": 1}}, r"the cost d is \[2, 2\]"),
        ({"tuned_on": ["nonsense"]}, "tuned_on= takes batches, or the digests"),
        ({"limits": {"class/9": 0.1}}, "no metric 'class/9'"),
        ({"confidence": 2.0}, "confidence is a probability"),
    ],
)
def test_bad_input_is_one_clear_line(change, message):
    arguments = {"archive": ARCHIVE, "network": NET, "fresh_data": FRESH, "limits": LIMITS, **change}
    with pytest.raises(UsageError, match=message) as found:
        certify(**arguments)
    assert "\n" not in str(found.value)


def test_nan_outputs_break_every_limit():
    broken = {name: np.full_like(w, np.nan) if w.dtype.kind == "f" else w for name, w in arrays(NET).items()}
    found = certify(nz.compress(broken, bound=nz.Lossless()), NET, FRESH, limits={"kl": 0.1, "top1": 0.1})
    assert found.verdict == "broken"
    assert found.verdicts["kl"] == "not shown"
    assert found.metrics["kl"]["restored"] is None
    assert found.measurement["counts"]["all"]["not_a_number"] == 200


def test_an_original_that_gives_nan_is_refused():
    """Two networks that are wrong everywhere would keep any limit on accuracy."""
    some = [(x * float("nan"), y) if i == 0 else (x, y) for i, (x, y) in enumerate(FRESH)]
    n = len(FRESH[0][1])
    with pytest.raises(UsageError, match=f"the original gives NaN for {n} of 200 predictions"):
        certify(ARCHIVE, NET, some, limits=LIMITS)


def test_a_class_without_samples_has_no_verdict():
    some = [(x[y != 3], y[y != 3]) for x, y in FRESH]
    found = certify(ARCHIVE, NET, some, limits=LIMITS)
    assert "class/3" not in found.verdicts


# ---- the page --------------------------------------------------------------------------------------------------


def test_the_page_has_everything_in_it_and_nothing_from_outside(tmp_path):
    pytest.importorskip("jinja2")
    pytest.importorskip("captum")
    changed = nz.compress(noisy(NET, 0.3), bound=nz.Absolute(1e-3))
    found = certify(
        changed, NET, FRESH, limits=LIMITS, metrics=["top1", "class/*", "kl", "boundary/worst"],
        classes=["<b>cat", "dog", "hen", "cow", "pig"],
    )  # fmt: skip
    found.page(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "&lt;b&gt;cat" in text
    assert "<b>cat" not in text
    assert "<script" not in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert text.count("data:image/png;base64,") >= 3 * min(24, found.evidence.n_changed) > 0
    for needed in ("Verdicts", "What these data could not show", "Accuracy by class", "Which class became which",
                   "What changed", "Distance to another class", 'name="viewport"', "prefers-color-scheme"):  # fmt: skip
        assert needed in text
    # Charts are drawn for wide and for narrow pages, so that no end of a line is cut on a phone.
    assert text.count('class="narrow"') == text.count('class="wide"') == 2
    headings = [int(level) for level in re.findall(r"<h(\d)", text)]
    assert headings[0] == 1
    assert set(headings[1:]) == {2}
    assert all("alt=" in tag for tag in re.findall(r"<img[^>]*>", text))
    assert all('aria-label="' in tag for tag in re.findall(r"<svg[^>]*>", text))


def test_a_png_reads_back():
    image = pytest.importorskip("PIL.Image")
    import base64
    import io

    from nearzip.correctness.pictures import png_uri

    pixels = np.random.default_rng(0).random((32, 20, 3))
    data = base64.b64decode(png_uri(pixels).partition(",")[2])
    back = np.asarray(image.open(io.BytesIO(data)))[::4, ::4]
    assert np.array_equal(back, np.round(255 * pixels).astype(np.uint8))


# ---- the command line ------------------------------------------------------------------------------------------

_JUDGE = """
from tests.correctness.test_certificate import FRESH, NET, TUNED
def make():
    return {"network": NET, "fresh_data": FRESH, "tuned_on": TUNED}
def wrong():
    return {"network": NET}
def odd():
    return {"network": NET, "fresh_data": FRESH, "nonsense": 1}
def raising():
    raise ValueError("no such split")
"""


@pytest.fixture
def run(capsys):
    """Exit code, output and errors of 'nearzip certify'."""

    def certify_command(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(["certify", *map(str, arguments)])
        return end.value.code, *capsys.readouterr()

    return certify_command


def test_from_the_command_line(tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(_JUDGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    ARCHIVE.save("model.nz")
    limits = ("--limit", "top1=0.2", "--limit", "class/*=0.9")
    code, out, err = run("model.nz", "--judge", "mine:make", *limits, "-o", "c.json", "--page", "p.html")
    assert (code, "kept" in out) == (0, True), err
    code, out, _ = run("model.nz", "--judge", "mine:make", "--limit", "top1=0.0001", "--json")
    assert code == 1
    assert json.loads(out)["verdict"] == "not shown"
    code, out, err = run("model.nz", "--check", "c.json")
    assert (code, "no byte was changed" in out) == (0, True)
    assert "nothing was measured" in err
    code, out, err = run("model.nz", "--check", "c.json", "--judge", "mine:make")
    assert code == 0, err
    assert "measured again with the same result" in out
    (tmp_path / "renamed.nz").write_bytes((tmp_path / "model.nz").read_bytes())
    code, out, err = run("renamed.nz", "--check", "c.json", "--judge", "mine:make")
    assert (code, "measured again with the same result" in out) == (0, True), err
    other = nz.compress(noisy(NET, 3.0), bound=nz.Absolute(1e-4))
    other.save("other.nz")
    assert run("other.nz", "--judge", "mine:make", "--limit", "top1=0.01")[0] == 15
    code, _, err = run("other.nz", "--check", "c.json")
    assert code == 12
    assert "of another archive" in err
    assert run("model.nz", "--judge", "mine:wrong", *limits)[0] == 2
    code, _, err = run("model.nz", "--judge", "mine:raising", *limits)
    assert (code, "--judge mine:raising raised ValueError: no such split" in err) == (2, True)
    assert "nonsense" in run("model.nz", "--judge", "mine:odd", *limits)[2]
    assert run("model.nz", "--judge", "mine:make", *limits, "-o", "c.json")[0] == 2
    assert run("missing.nz", "--judge", "mine:make", *limits)[0] == 10


@pytest.mark.parametrize(
    "arguments",
    [
        ("model.nz",),
        ("model.nz", "--answers"),
        ("a", "b", "--judge", "mine:make"),
        ("a", "b", "--answers", "--judge", "mine:make"),
        ("a", "b", "--answers", "--plan", "p.json"),
        ("a", "--check", "c.json", "--limit", "0.1"),
    ],
)
def test_modes_exclude_each_other(arguments, run):
    assert run(*arguments)[0] == 2
