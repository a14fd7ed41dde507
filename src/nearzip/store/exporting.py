"""Versions as plain checkpoint files, with the log beside them."""

from __future__ import annotations

import os

from nearzip.errors import NotFoundError
from nearzip.fileio import atomic_file, check_outputs, naming_errors
from nearzip.store.chain import Progress
from nearzip.store.log import log_json
from nearzip.store.reading import VersionReader
from nearzip.store.selectors import Selector

__all__ = ["export"]


def export(
    reader: VersionReader,
    folder: str | os.PathLike[str],
    selector: Selector | None,
    ending: str,
    force: bool,
    progress: Progress | None,
) -> list[str]:
    """Write one version, or all, and log.json. Returns the names of the versions' files."""
    number = None if selector is None else reader.resolve(selector)
    rows = [row for row in reader.rows() if row.pruned is None and number in (None, row.number)]
    with naming_errors("create", folder):
        os.makedirs(folder, exist_ok=True)
    names, written = [], []
    for i, row in enumerate(rows):
        name = f"version-{row.number:08d}{ending}"
        try:
            reader.write_file(row.number, os.path.join(folder, name), force)
        except NotFoundError:
            if number is not None or not reader.is_pruned(row.number):
                raise
            continue  # dropped since the log was read
        names.append(name)
        written.append(row)
        if progress:
            progress(i + 1, len(rows))
    check_outputs([os.path.join(folder, "log.json")], reader.own_files, force)
    with atomic_file(os.path.join(folder, "log.json"), force=force) as stream:
        stream.write(log_json(written))
    return names
