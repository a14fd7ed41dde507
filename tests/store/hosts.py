"""Hosts of files for tests: one that misbehaves as told, and a real nginx."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


class Host:
    """Serves a folder. `budget`: bytes of objects that it sends before it cuts every connection.

    `answers` replaces files by bytes, or by what a function sends through the handler.
    """

    def __init__(self, root: Path, ranges: bool = True):
        self.root = root
        self.ranges = ranges
        self.budget: int | None = None
        self.answers: dict[str, bytes | Callable[[BaseHTTPRequestHandler], None]] = {}
        self.missing_is = 404
        self.sent: list[tuple[str, int]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.url = ""

    @property
    def object_bytes(self) -> int:
        return sum(n for path, n in self.sent if path.startswith("objects/"))

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.sent]

    def take(self, n: int) -> int:
        with self.lock:
            if self.budget is None:
                return n
            taken = min(n, self.budget)
            self.budget -= taken
            return taken


def _handler(host: Host) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            path = self.path.lstrip("/").partition("?")[0]
            host.headers.append(dict(self.headers))
            answer = host.answers.get(path)
            if callable(answer):
                answer(self)
                return
            file = host.root / path
            if answer is None and not file.is_file():
                self.send_error(host.missing_is)
                return
            data = answer if answer is not None else file.read_bytes()
            self._send(path, data)

        def _send(self, path: str, data: bytes) -> None:
            start = 0
            wanted = self.headers.get("Range")
            if wanted and host.ranges:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            else:
                self.send_response(200)
            body = data[start:]
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            n = host.take(len(body)) if path.startswith("objects/") else len(body)
            host.sent.append((path, n))
            self.wfile.write(body[:n])
            self.close_connection = True

    return Handler


@contextlib.contextmanager
def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # clients that hang up are part of the test
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def serving(root: Path, ranges: bool = True) -> Iterator[Host]:
    host = Host(root, ranges)
    with _serving(_handler(host)) as host.url:
        yield host


@contextlib.contextmanager
def python_host(root: Path) -> Iterator[str]:
    """Python's own http.server, which knows no ranges."""

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object, **options: object):
            super().__init__(*arguments, directory=str(root), **options)

        def log_message(self, *_: object) -> None:
            pass

    with _serving(Quiet) as url:
        yield url


_NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log {folder}/access.log;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port}; {extra} location / {{ root {root}; }} }}
}}
"""


@contextlib.contextmanager
def nginx(root: Path, folder: Path, extra: str = "") -> Iterator[str]:
    """A real nginx over the files of `root`; skips where it is not installed."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("nginx is not installed")
    for path in (root, *root.parents):  # its worker runs as somebody else if we are root
        with contextlib.suppress(PermissionError):
            path.chmod(path.stat().st_mode | 0o055)
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, port=port, root=root, extra=extra))
    process = subprocess.Popen([program, "-p", str(folder), "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(500):
        if process.poll() is not None:
            raise AssertionError("nginx ended")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise AssertionError("nginx does not answer")
