"""Anonymous memory of this process: how much it has, and the most while something runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path


def anonymous() -> int:
    """RssAnon of this process, bytes."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(fields["RssAnon"].split()[0])


def peak_of(work: Callable[[], object]) -> int:
    """The most anonymous memory while `work` runs, sampled every 2 ms."""
    most, ended = anonymous(), threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.is_set():
            most = max(most, anonymous())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        ended.set()
        watcher.join()
    return max(most, anonymous())
