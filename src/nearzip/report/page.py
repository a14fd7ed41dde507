"""One HTML page about a store: no script, nothing fetched, every name escaped."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources

from nearzip.fileio import atomic_file, check_outputs
from nearzip.report.engine import environment
from nearzip.report.facts import StoreFacts, gather
from nearzip.report.section import View
from nearzip.report.sections import make_sections
from nearzip.sources import is_url
from nearzip.store import Store
from nearzip.store.chain import Progress
from nearzip.version import __version__

__all__ = ["render", "write_report"]


def write_report(
    store: Store,
    path: str | os.PathLike[str],
    *,
    originals: Mapping[str, str | os.PathLike[str]] | None = None,
    rules: Sequence[str] = (),
    newest: int = 100,
    force: bool = False,
    progress: Progress | None = None,
) -> StoreFacts:
    """Write a page about a store: sizes, chains, metrics, errors beside the bound, space by tensor, what pruning frees,
    and the sections of plug-ins. Returns what it shows, that of each section in `sections`.

    Parameters
    ----------
    path : path
        The .html file.
    originals : mapping of selector to path
        Files that were committed as these versions: their errors are measured.
    rules : sequence of str
        What pruning is to keep, as for `Store.prune`; default: some usual rules.
    newest : int
        Versions whose objects are looked at for the space of each tensor.

    Raises
    ------
    MissingExtraError
        jinja2 is not installed.
    UsageError
        The file exists, and `force` was not given.
    """
    environment()  # before anything is read
    check_outputs([path], [*(originals or {}).values(), *([] if is_url(store.url) else [store.url])], force)
    facts = gather(store, originals, rules, newest, progress)
    page, facts = render(store, facts)
    with atomic_file(path, force=force) as stream:
        stream.write(page.encode("utf-8", "backslashreplace"))
    return facts


def render(store: Store, facts: StoreFacts) -> tuple[str, StoreFacts]:
    """The page, and the facts with those of its sections. Raises MissingExtraError."""
    engine = environment()
    sections = make_sections(View(store, facts)) if facts.live else []
    text = (resources.files("nearzip.report") / "store.html").read_text("utf-8")
    page = str(engine.from_string(text).render(facts=facts, version=__version__, sections=sections))
    made = {section.name: section.data for section in sections if section.failure is None}
    failed = {section.name: section.failure for section in sections if section.failure is not None}
    return page, replace(facts, sections=made, failed_sections=failed)
