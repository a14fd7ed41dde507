"""What pruning keeps: last:5 every:10 best:accuracy min:loss tag:x tagged all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from nearzip.errors import UsageError
from nearzip.store.manifest import Manifest
from nearzip.store.selectors import extreme

__all__ = ["Rule", "kept", "parse_rules"]

_COUNTED = re.compile(r"(last|every):(\d{1,9})")
_NAMED = re.compile(r"(best|max|min|tag):([\w.+/-]+)")
_NUMBER = re.compile(r"\d{1,8}")


@dataclass(frozen=True)
class Rule:
    """One rule. `text` is how it is spelled."""

    text: str
    picks: Callable[[Sequence[Manifest]], Iterable[Manifest]]


def parse_rules(keep: str | Iterable[str]) -> tuple[Rule, ...]:
    """Rules from a text or several; a version is kept if any rule keeps it. Raises UsageError.

    Examples
    --------
    >>> [rule.text for rule in parse_rules("last:5 every:10 best:accuracy tagged")]
    ['last:5', 'every:10', 'best:accuracy', 'tagged']
    """
    texts = [keep] if isinstance(keep, str) else list(keep)
    if not all(isinstance(text, str) for text in texts):
        raise UsageError(f"what to keep is said in texts such as 'last:5', not {keep!r}")
    rules = tuple(_rule(word) for text in texts for word in text.replace(",", " ").split())
    if not rules:
        raise UsageError("say what to keep, such as last:5 every:10 best:accuracy tagged; 'all' drops no version")
    return rules


def _rule(word: str) -> Rule:
    if word == "all":
        return Rule(word, lambda versions: versions)
    if word == "tagged":
        return Rule(word, lambda versions: [v for v in versions if v.tags])
    if match := _COUNTED.fullmatch(word):
        n = int(match[2])
        if n < 1:
            raise UsageError(f"{word!r}: the number is positive")
        if match[1] == "last":
            return Rule(word, lambda versions: versions[-n:])
        return Rule(word, lambda versions: [v for v in versions if v.number % n == 0])
    if match := _NAMED.fullmatch(word):
        kind, name = match[1], match[2]
        if kind == "tag":
            return Rule(word, lambda versions: [v for v in versions if name in v.tags])
        # Of several that are as good, the newest, which is what checkout gives.
        return Rule(word, lambda versions: extreme(versions, name, min if kind == "min" else max)[-1:])
    if _NUMBER.fullmatch(word):
        return Rule(word, lambda versions: [v for v in versions if v.number == int(word)])
    raise UsageError(
        f"cannot read the rule {word!r}; write last:5, every:10, best:METRIC, min:METRIC, tag:NAME, tagged, all or a "
        "number"
    )


def kept(rules: Iterable[Rule], versions: Mapping[int, Manifest]) -> dict[int, list[str]]:
    """The numbers to keep, and the rules that say so; the newest is always kept."""
    ordered = [versions[number] for number in sorted(versions)]
    found: dict[int, list[str]] = {ordered[-1].number: ["newest"]} if ordered else {}
    for rule in rules:
        for version in rule.picks(ordered):
            found.setdefault(version.number, []).append(rule.text)
    return dict(sorted(found.items()))
