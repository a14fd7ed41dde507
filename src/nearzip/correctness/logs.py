"""Per-sample logs of evaluation harnesses: lm-evaluation-harness's `samples_TASK_TIME.jsonl`, plain or gzipped.

Only what a paired comparison needs is kept: the sample's identity, its metrics, and a digest of the answer. Logs are
untrusted: lines have a largest length, and every complaint names file and line.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from nearzip.errors import CorruptError, LimitError, NotFoundError, UsageError

__all__ = ["Log", "Sample", "find_logs", "read_log"]

#: A line holds a prompt and the model's responses: megabytes for the longest contexts in use.
_MAX_LINE = 64 << 20
#: Samples of one file.
_MAX_SAMPLES = 10_000_000

_NAME = re.compile(r"samples_(?P<task>.+?)(?:_(?P<time>\d{4}-\d\d-\d\dT[\d.:+-]+))?\.jsonl(?:\.gz)?$")

#: Fields of a line that are no metrics.
_NOT_METRICS = frozenset({
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash", "prompt_hash",
    "target_hash",
})  # fmt: skip

#: A metric's value: a number, or (log-likelihood, length) of a document.
Value = float | tuple[float, float]


@dataclass(frozen=True)
class Sample:
    """One line: identity digests, metrics by name in the order logged, and a digest of the answer (None: unknown)."""

    document: str
    prompt: str | None
    metrics: Mapping[str, Value]
    answer: str | None


@dataclass
class Log:
    """Samples of one task by (document number, filter), and the file they come from."""

    task: str
    path: Path
    sha256: str = ""
    samples: dict[tuple[str, str], Sample] = field(default_factory=dict)
    higher_is_better: Mapping[str, bool] = field(default_factory=dict)

    @property
    def filters(self) -> list[str]:
        return list(dict.fromkeys(name for _, name in self.samples))


def find_logs(place: Path) -> dict[str, Path]:
    """The newest log of each task at or below a folder, or the one file given.

    Raises NotFoundError (nothing there), UsageError (logs of several networks).
    """
    if not place.exists():
        raise NotFoundError(f"{place}: no such file or directory")
    if place.is_file():
        match = _NAME.search(place.name)
        return {match["task"] if match else place.name.partition(".")[0]: place}
    newest: dict[str, tuple[str, Path]] = {}
    for path in sorted(place.rglob("samples_*.jsonl*")):
        match = _NAME.search(path.name)
        if match is None:
            continue
        known = newest.get(match["task"])
        if known is not None and known[1].parent != path.parent:
            raise UsageError(
                f"{place}: holds logs of task {match['task']!r} in {known[1].parent.name} and in {path.parent.name}; "
                "name the folder of one network"
            )
        if known is None or known[0] < (match["time"] or ""):
            newest[match["task"]] = (match["time"] or "", path)
    if not newest:
        raise NotFoundError(
            f"{place}: holds no samples_TASK_TIME.jsonl; run lm-evaluation-harness with --log_samples --output_path"
        )
    return {task: path for task, (_, path) in sorted(newest.items())}


def read_log(task: str, path: Path) -> Log:
    """Read one log.

    Raises CorruptError (no JSON, or not such a log), LimitError (lines or files too long).
    """
    log = Log(task, path, higher_is_better=_directions(task, path))
    digest = hashlib.sha256()
    for number, line in enumerate(_lines(path, digest), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        key, sample = _sample(line, where)
        if key in log.samples:
            raise CorruptError(f"{where}: document {key[0]} is logged twice for filter {key[1]!r}")
        log.samples[key] = sample
        if len(log.samples) > _MAX_SAMPLES:
            raise LimitError(f"{path}: holds more than {_MAX_SAMPLES:,} samples")
    if not log.samples:
        raise CorruptError(f"{path}: is empty")
    log.sha256 = digest.hexdigest()
    return log


def _lines(path: Path, digest: Any) -> Iterator[bytes]:
    try:
        with path.open("rb") as raw:
            stream: BinaryIO | io.BufferedReader = raw
            if path.suffix == ".gz":
                stream = io.BufferedReader(gzip.GzipFile(fileobj=raw))
            while line := stream.readline(_MAX_LINE + 1):
                if len(line) > _MAX_LINE:
                    raise LimitError(f"{path}: has a line of more than {_MAX_LINE >> 20} MiB")
                digest.update(line)
                yield line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CorruptError(f"{path}: is no intact gzip file: {error}") from None
    except OSError as error:
        raise CorruptError(f"{path}: cannot read: {error.strerror or error}") from None


def _sample(line: bytes, where: str) -> tuple[tuple[str, str], Sample]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{where}: is not JSON: {str(error)[:120]}") from None
    if type(record) is not dict or "doc_id" not in record:
        raise CorruptError(f"{where}: is no logged sample: it has no doc_id")
    metrics = _metrics(record, where)
    return (str(record["doc_id"]), str(record.get("filter", "none"))), Sample(
        document=_document(record), prompt=_text(record.get("prompt_hash")), metrics=metrics, answer=_answer(record)
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _document(record: Mapping[str, Any]) -> str:
    """What identifies the question and its right answer: the harness's digests, or our own of the same parts."""
    hashes = [_text(record.get("doc_hash")), _text(record.get("target_hash"))]
    if all(hashes):
        return f"{hashes[0]} {hashes[1]}"
    return _digest([record.get("doc"), record.get("target")])


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()


def _metrics(record: Mapping[str, Any], where: str) -> dict[str, Value]:
    named = record.get("metrics")
    names = named if isinstance(named, list) else [key for key in record if key not in _NOT_METRICS]
    found: dict[str, Value] = {}
    for name in names:
        if isinstance(name, str) and (value := _value(record.get(name), f"{where}: metric {name!r}")) is not None:
            found[name] = value
    return found


def _value(value: Any, what: str) -> Value | None:
    """A number or a (log-likelihood, length); None for what is neither. Raises CorruptError for NaN and infinities."""
    if isinstance(value, (bool, int, float)):
        if not math.isfinite(value):
            raise CorruptError(f"{what} is {value}; a comparison needs finite values")
        return float(value)
    pair = isinstance(value, list) and len(value) == 2 and all(type(part) in (int, float) for part in value)
    if not pair:
        return None
    total, length = float(value[0]), float(value[1])
    if not (math.isfinite(total) and math.isfinite(length) and length > 0):
        raise CorruptError(f"{what} is {value}; a log-likelihood is finite and a length positive")
    return total, length


def _answer(record: Mapping[str, Any]) -> str | None:
    """What the network answered: the choice of largest likelihood, or a digest of the filtered text."""
    answers = record.get("filtered_resps")
    if not isinstance(answers, list) or not answers:
        return None
    scores = [_score(answer) for answer in answers]
    if len(answers) > 1 and None not in scores:
        return str(max(range(len(scores)), key=lambda i: scores[i] or 0.0))
    if len(answers) == 1 and isinstance(answers[0], list) and len(answers[0]) == 2:
        return str(answers[0][1])  # one continuation: whether it is the greedy one
    return _digest(answers)


def _score(answer: Any) -> float | None:
    """The log-likelihood of one choice, logged as [number, is greedy] of numbers or texts."""
    if not isinstance(answer, list) or len(answer) != 2:
        return None
    try:
        score = float(answer[0])
    except (TypeError, ValueError):
        return None
    return score if not math.isnan(score) else None


#: Metrics of the harness that are better when smaller, for logs without their results file.
_LOWER_IS_BETTER = frozenset(
    {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "ter", "brier_score", "mse", "mae", "wer"}
)


def _directions(task: str, path: Path) -> dict[str, bool]:
    """Which metrics are better when larger: from the `results_TIME.json` beside the log, or the known names."""
    found = dict.fromkeys(_LOWER_IS_BETTER, False)
    match = _NAME.search(path.name)
    results = path.parent / f"results_{match['time']}.json" if match and match["time"] else None
    if results is None or not results.is_file() or results.stat().st_size > _MAX_LINE:
        return found
    try:
        document = json.loads(results.read_bytes())
        named = document["higher_is_better"][task]
        return {**found, **{str(name): bool(value) for name, value in named.items() if value is not None}}
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
        return found  # the results file only refines what is known
