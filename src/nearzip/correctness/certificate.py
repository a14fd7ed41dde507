"""A certificate: an in-toto statement that a compressed network keeps limits, as one file of canonical JSON.

The predicate is in-toto's Test Result, version 0.1. Its figures are annotations of the configuration, because the
predicate has no fields for them. A limit that is not shown to be kept counts as a failed test.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nearzip import strictjson
from nearzip.archive import Archive
from nearzip.budget.intervals import Interval
from nearzip.correctness.canonical import canonical, sha256
from nearzip.correctness.paired import BROKEN, KEPT, NOT_SHOWN
from nearzip.correctness.samples import digest_of_list
from nearzip.errors import CorruptError, LimitError, NewerFormatError, UsageError
from nearzip.fileio import Output, atomic_file, naming_errors
from nearzip.sources import open_source

__all__ = ["ArchiveLike", "Certificate", "MetricRow", "archive_digest", "differences"]

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://in-toto.io/attestation/test-result/v0.1"
#: Of the annotations; raised with every change that older readers would misread.
VERSION = 1
#: Floats that are measured again may differ by this much, relative to 1 or to themselves.
TOLERANCE = 1e-3

_MAX_BYTES = 256 << 20
_UNSEALED = "0" * 64
_PIECE = 1 << 22
#: Parts that say how the measurement was made, not what it found: another release may find the same.
_CIRCUMSTANCES = ("command", "versions")

ArchiveLike = Archive | bytes | str | os.PathLike[str]


@dataclass(frozen=True)
class MetricRow:
    """One metric of a certificate: the original's value, the restored network's, and what is shown of the loss."""

    name: str
    original: float
    restored: float
    loss: float
    interval: Interval | None
    limit: float | None
    verdict: str | None
    samples_needed: int | None

    @staticmethod
    def of(name: str, original: float, restored: float, interval: Interval | None, limit: float | None) -> MetricRow:
        verdict = None if limit is None or interval is None else interval.verdict(limit)
        needed = None if verdict != NOT_SHOWN else _needed(interval, limit)
        return MetricRow(name, original, restored, original - restored, interval, limit, verdict, needed)

    def to_json(self) -> dict[str, Any]:
        return {
            "original": _finite(self.original), "restored": _finite(self.restored), "loss": _finite(self.loss),
            "interval": None if self.interval is None else self.interval.to_json(), "limit": self.limit,
            "verdict": self.verdict, "samples_needed": self.samples_needed,
        }  # fmt: skip


def _needed(interval: Interval | None, limit: float | None) -> int | None:
    return None if interval is None or limit is None else interval.samples_needed(limit)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


@dataclass(frozen=True)
class Certificate:
    """What `certify` found, and what a reader can check.

    `statement` is the in-toto statement; `evidence` what pages show beyond it (images, maps), where it was measured.
    """

    statement: Mapping[str, Any]
    evidence: Any = field(default=None, compare=False, repr=False)

    # ---- what it says ------------------------------------------------------------------------------------------

    @property
    def verdict(self) -> str:
        """The worst of all: "broken", "not shown" or "kept"."""
        found = set(self.verdicts.values())
        return next(verdict for verdict in (BROKEN, NOT_SHOWN, KEPT) if verdict in found)

    @property
    def verdicts(self) -> dict[str, str]:
        """The verdict on every limited metric, by name."""
        return {name: row["verdict"] for name, row in self.metrics.items() if row["verdict"] is not None}

    @property
    def metrics(self) -> Mapping[str, Mapping[str, Any]]:
        """Name to original, restored, loss, interval, limit, verdict and samples_needed."""
        return self.measurement["metrics"]  # type: ignore[no-any-return]

    @property
    def measurement(self) -> Mapping[str, Any]:
        """Limits, confidence, metrics, counts, yardsticks, seed, versions and the command."""
        return self.part("measurement")["annotations"]  # type: ignore[no-any-return]

    @property
    def samples(self) -> Sequence[str]:
        """SHA-256 of every sample's inputs."""
        return self.part("samples")["annotations"]["sha256"]  # type: ignore[no-any-return]

    def part(self, name: str) -> Mapping[str, Any]:
        """An entry of the configuration by name: "original", "base", "samples", "tuned-on", "plan", "measurement"."""
        return next(each for each in self.statement["predicate"]["configuration"] if each["name"] == name)

    def has_part(self, name: str) -> bool:
        return any(each["name"] == name for each in self.statement["predicate"]["configuration"])

    @property
    def summary(self) -> str:
        """The verdict in one sentence."""
        verdicts = list(self.verdicts.values())
        broken, unknown = verdicts.count(BROKEN), verdicts.count(NOT_SHOWN)
        if not broken and not unknown:
            return f"Kept: {len(verdicts)} of {len(verdicts)} limits are shown to be kept."
        if broken:
            return f"Broken: {broken} of {len(verdicts)} limits are broken; {unknown} are not shown."
        return f"Not shown: {len(verdicts) - unknown} of {len(verdicts)} limits are shown to be kept; none is broken."

    def __repr__(self) -> str:
        return f"<nearzip.correctness.Certificate of {self.statement['subject'][0]['name']}: {self.verdict}>"

    # ---- files -------------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """The certificate as canonical JSON, its own SHA-256 included: computed with zeros in place of the digest."""
        return canonical(self.statement)

    def save(self, path: Output, *, force: bool = False) -> None:
        """Write the certificate, whole or not at all. Raises UsageError if the file exists, unless `force`."""
        with atomic_file(path, force=force) as stream:
            stream.write(self.to_bytes())

    def page(self, path: Output, *, force: bool = False) -> None:
        """Write one self-contained HTML page. Raises MissingExtraError where jinja2 is not installed."""
        from nearzip.correctness.certificate_page import render

        text = render(self)
        with atomic_file(path, force=force) as stream:
            stream.write(text.encode("utf-8", "backslashreplace"))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Certificate:
        """Read a certificate from untrusted bytes. Raises CorruptError, NewerFormatError, LimitError, NotFoundError."""
        place = Path(path)
        with naming_errors("read", path):
            if place.stat().st_size > _MAX_BYTES:
                raise LimitError(f"{path}: takes {place.stat().st_size} bytes; the limit is {_MAX_BYTES}")
            data = place.read_bytes()
        try:
            return Certificate.from_bytes(data)
        except (CorruptError, NewerFormatError) as error:
            raise type(error)(f"{path}: {error}") from None

    @staticmethod
    def from_bytes(data: bytes) -> Certificate:
        """Raises CorruptError for any change of any byte that leaves its SHA-256 as it was, NewerFormatError."""
        found = Certificate(_checked(strictjson.load(data, "certificate")))
        if found.to_bytes() != data:
            raise CorruptError("is not the canonical JSON that nearzip writes; it was changed")
        if found.part("certificate")["digest"]["sha256"] != _sealed(found.statement)[1]:
            raise CorruptError("its SHA-256 is not the one that it states; it was changed")
        found._check_parts()
        return found

    def _check_parts(self) -> None:
        """Raises CorruptError where parts contradict each other."""
        for name in ("samples", "tuned-on"):
            if self.has_part(name):
                part = self.part(name)
                if digest_of_list(part["annotations"]["sha256"]) != part["digest"]["sha256"]:
                    raise CorruptError(f"the digests of {name} are not those of their SHA-256")
        if sha256(canonical(self.measurement)) != self.part("measurement")["digest"]["sha256"]:
            raise CorruptError("the measurement is not that of its SHA-256")
        if self.has_part("tuned-on") and set(self.samples) & set(self.part("tuned-on")["annotations"]["sha256"]):
            raise CorruptError("some samples were tuned on, which the certificate rules out")

    # ---- checks ------------------------------------------------------------------------------------------------

    def check_archive(self, archive: ArchiveLike) -> None:
        """Check that the certificate belongs to this archive, byte for byte. Raises CorruptError if not."""
        found, stated = archive_digest(archive), self.statement["subject"][0]["digest"]["sha256"]
        if found != stated:
            raise CorruptError(
                f"the certificate is of another archive: it states SHA-256 {stated[:16]}.., this one has {found[:16]}.."
            )

    def check_again(self, again: Certificate) -> list[str]:
        """Compare with a second measurement. Raises CorruptError if it differs; returns differing circumstances.

        Counts, verdicts and digests must be equal, floats to a thousandth. Another machine, another number of threads
        or another release of PyTorch rounds sums differently.
        """
        found: list[tuple[str, str, str]] = []
        notes: list[tuple[str, str, str]] = []
        # A file's name is no part of what it holds.
        renamed = again.statement["subject"][0]["name"]
        first, *others = self.statement["subject"]
        mine = {**self.statement, "subject": [{**first, "name": renamed}, *others]}
        for where, stated, now in differences(mine, again.statement):
            (notes if any(f".{name}" in where for name in _CIRCUMSTANCES) else found).append((where, stated, now))
        if found:
            # Another network or other samples explain all that follows.
            where, stated, now = next((each for each in found if each[0].endswith("digest.sha256")), found[0])
            more = f", and {len(found) - 1} more differ" if len(found) > 1 else ""
            raise CorruptError(f"measured again, {where} is {now}, not {stated} as certified{more}")
        return [f"{where} was {stated}, is {now}" for where, stated, now in notes]


def archive_digest(archive: ArchiveLike) -> str:
    """SHA-256 of an archive's bytes."""
    import hashlib

    source = open_source(archive.data if isinstance(archive, Archive) else archive)
    try:
        found = hashlib.sha256()
        for offset in range(0, source.size, _PIECE):
            found.update(source.read(offset, min(_PIECE, source.size - offset)))
        return found.hexdigest()
    finally:
        source.close()


# ---- writing ---------------------------------------------------------------------------------------------------


def sealed(subject: Sequence[Mapping[str, Any]], parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A statement about `subject`, with its own SHA-256."""
    measurement = parts[-1]["annotations"]
    verdicts = {name: row["verdict"] for name, row in measurement["metrics"].items() if row["verdict"] is not None}
    if not verdicts:
        raise UsageError("a certificate needs limits; give limits= or a plan")
    failed = sorted(name for name, verdict in verdicts.items() if verdict != KEPT)
    statement = {
        "_type": STATEMENT,
        "subject": list(subject),
        "predicateType": PREDICATE,
        "predicate": {
            "result": "FAILED" if failed else "PASSED",
            "configuration": [{"name": "certificate", "digest": {"sha256": _UNSEALED}}, *parts],
            "passedTests": sorted(name for name, verdict in verdicts.items() if verdict == KEPT),
            "warnedTests": [],
            "failedTests": failed,
        },
    }
    return _sealed(statement)[0]


def _sealed(statement: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The statement with its SHA-256 in it, and that SHA-256."""
    predicate = statement["predicate"]

    def with_seal(digest: str) -> dict[str, Any]:
        seal = {"name": "certificate", "digest": {"sha256": digest}}
        return {**statement, "predicate": {**predicate, "configuration": [seal, *predicate["configuration"][1:]]}}

    digest = sha256(canonical(with_seal(_UNSEALED)))
    return with_seal(digest), digest


# ---- reading ---------------------------------------------------------------------------------------------------


def _checked(document: Any) -> dict[str, Any]:
    """The statement, if it has the form of one that nearzip wrote."""
    kinds: strictjson.Kinds = {"_type": str, "subject": list, "predicateType": str, "predicate": dict}
    statement = strictjson.fields(document, "certificate", kinds)
    if statement["_type"] != STATEMENT or statement["predicateType"] != PREDICATE:
        raise CorruptError("is not an in-toto statement of a test result")
    for each in statement["subject"]:
        _descriptor(each, "subject")
    if not statement["subject"]:
        raise CorruptError("has no subject")
    tests: strictjson.Kinds = {"result": str, "configuration": list, "passedTests": list, "warnedTests": list,
                               "failedTests": list}  # fmt: skip
    predicate = strictjson.fields(statement["predicate"], "predicate", tests)
    parts = {_descriptor(each, "configuration"): each for each in predicate["configuration"]}
    if len(parts) != len(predicate["configuration"]) or next(iter(parts), None) != "certificate":
        raise CorruptError("is a test result, but not one of nearzip's certificates")
    for name in ("samples", "tuned-on"):
        if name in parts:
            listed = strictjson.as_dict(parts[name].get("annotations"), name).get("sha256")
            strictjson.texts(strictjson.as_list(listed, name), name)
    if "samples" not in parts or "measurement" not in parts:
        raise CorruptError("is a test result, but not one of nearzip's certificates")
    verdicts = _verdicts(strictjson.as_dict(parts["measurement"].get("annotations"), "measurement"))
    _check_result(predicate, verdicts)
    return statement


def _descriptor(value: Any, where: str) -> str:
    """The name of a resource descriptor, which has a SHA-256."""
    found = strictjson.as_dict(value, where)
    digest = strictjson.as_dict(found.get("digest"), where)
    strictjson.text(digest.get("sha256"), f"{where}, sha256")
    return strictjson.text(found.get("name"), f"{where}, name")


def _verdicts(measurement: Mapping[str, Any]) -> dict[str, str]:
    version = strictjson.integer(measurement.get("version"), "measurement, version")
    if version > VERSION:
        raise NewerFormatError(f"is a certificate of version {version}; this release reads {VERSION}")
    kinds: strictjson.Kinds = {name: (float, int, type(None)) for name in ("original", "restored", "loss", "limit")}
    kinds = {**kinds, "interval": (dict, type(None)), "verdict": (str, type(None)), "samples_needed": (int, type(None))}
    found = {}
    for name, row in strictjson.as_dict(measurement.get("metrics"), "metrics").items():
        row = strictjson.fields(row, f"metric {name[:80]!r}", kinds)
        interval = None if row["interval"] is None else Interval.from_json(row["interval"], f"metric {name[:80]!r}")
        if row["verdict"] is None:
            continue
        if interval is None or row["limit"] is None or interval.verdict(row["limit"]) != row["verdict"]:
            raise CorruptError(f"metric {name[:80]!r}: its verdict does not follow from its bounds")
        found[name] = row["verdict"]
    if not found:
        raise CorruptError("limits nothing")
    return found


def _check_result(predicate: Mapping[str, Any], verdicts: Mapping[str, str]) -> None:
    passed = sorted(name for name, verdict in verdicts.items() if verdict == KEPT)
    failed = sorted(name for name, verdict in verdicts.items() if verdict != KEPT)
    result = "FAILED" if failed else "PASSED"
    if (predicate["result"], predicate["passedTests"], predicate["failedTests"]) != (result, passed, failed):
        raise CorruptError("its result does not follow from its verdicts")


# ---- comparing -------------------------------------------------------------------------------------------------


def differences(stated: Any, now: Any, where: str = "") -> Iterator[tuple[str, str, str]]:
    """Where two statements differ: place, what is stated, what was found. Floats may differ by `TOLERANCE`."""
    if isinstance(stated, Mapping) and isinstance(now, Mapping):
        yield from _each(stated, now, where)
    elif _is_list(stated) and _is_list(now):
        if all(isinstance(each, Mapping) and "name" in each for each in [*stated, *now]):
            yield from _each({each["name"]: each for each in stated}, {each["name"]: each for each in now}, where)
        elif list(stated) != list(now):
            yield where.lstrip("."), _shown(stated), _shown(now)
    elif not _alike(stated, now) and not where.endswith((".certificate.digest.sha256", ".measurement.digest.sha256")):
        yield where.lstrip("."), _shown(stated), _shown(now)


def _each(stated: Mapping[str, Any], now: Mapping[str, Any], where: str) -> Iterator[tuple[str, str, str]]:
    for key in dict.fromkeys([*stated, *now]):
        yield from differences(stated.get(key), now.get(key), f"{where}.{key}")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _alike(stated: Any, now: Any) -> bool:
    numbers = all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in (stated, now))
    if numbers and (isinstance(stated, float) or isinstance(now, float)):
        return math.isclose(stated, now, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return bool(stated == now)


def _shown(value: Any) -> str:
    return f"{value!r}"[:80]
