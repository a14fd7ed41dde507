"""A store on a plain web host: static files without a listing. Read only, by the standard library.

The host is not trusted: responses are read up to the length that was announced or allowed and not further, redirections
lead to http and https only, never from https to http, and take no credentials along.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, cast
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from nearzip.errors import CorruptError, Error, LimitError, NotFoundError, UsageError
from nearzip.framing import Source
from nearzip.sources import BytesSource
from nearzip.store.backends.backend import Entry, ObjectSink
from nearzip.store.backends.metered import Response, handlers
from nearzip.version import __version__

__all__ = ["PAUSE", "CutError", "HttpBackend", "is_web"]

#: Read at a time; what an interruption can lose.
_BLOCK = 64 << 10
#: Objects up to this size are fetched whole, in one request, and their SHA-256 is checked.
_WHOLE = 256 << 20
#: Seconds between two attempts, doubled each time.
PAUSE = 0.25
_AGAIN = (408, 425, 429, 500, 502, 503, 504)


def is_web(url: str) -> bool:
    """Whether it is a URL of the web."""
    return url.lower().startswith(("http://", "https://"))


class CutError(Error):
    """The connection failed or ended early; trying again may help."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not is_web(newurl) or (req.full_url.lower().startswith("https:") and newurl.lower().startswith("http:")):
            raise CorruptError(f"{_shown(req.full_url)}: leads to {_shown(newurl)!r}, which is not followed")
        fp.close()  # urllib would read its body to the end, which may never come
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _shown(url: str) -> str:
    """Without name and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


class HttpBackend:
    """Files under an http or https URL.

    Parameters
    ----------
    url : str
        May hold a name and a password, and a query that is sent with every request.
    storage_options : mapping
        `headers` (sent only to this host), `timeout` in seconds, `retries` of a request that failed.
    """

    can_write = False
    can_list = False
    commits_alone = False
    #: A folder on the host may have been pruned while its disk was full.
    renames = True
    grace = 0.0

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None):
        options = dict(storage_options or {})
        self._headers = {str(name): str(value) for name, value in dict(options.pop("headers", None) or {}).items()}
        self._timeout = float(options.pop("timeout", 30.0))
        self.retries = int(options.pop("retries", 4))
        if options:
            raise UsageError(f"{url}: storage_options of a web host are headers, timeout, retries, not {min(options)}")
        self._parts = _checked(url)
        self.url = _shown(urlunsplit(self._parts._replace(query="")))
        self._set_credentials()
        self._opener = urllib.request.build_opener(_Redirects, *handlers())
        self._admitted = False
        #: Bytes of bodies received, for reports.
        self.n_received = 0
        #: Bytes of small files that may still be read; None: as many as there are.
        self.document_bytes: int | None = None

    def _set_credentials(self) -> None:
        if self._parts.username is None:
            return
        pair = f"{unquote(self._parts.username)}:{unquote(self._parts.password or '')}"
        self._headers.setdefault("Authorization", "Basic " + base64.b64encode(pair.encode()).decode())
        self._parts = self._parts._replace(netloc=self._parts.netloc.rpartition("@")[2])

    def _request(self, path: str, start: int) -> urllib.request.Request:
        url = urlunsplit(self._parts._replace(path=f"{self._parts.path}/{path}"))
        request = urllib.request.Request(url, headers={"User-Agent": f"nearzip/{__version__}"})  # noqa: S310
        for name, value in self._headers.items():
            request.add_unredirected_header(name, value)
        if start:
            request.add_header("Range", f"bytes={start}-")
        return request

    @contextlib.contextmanager
    def _answer(self, path: str, start: int = 0) -> Iterator[Response]:
        """Raises NotFoundError, CutError for what may pass, Error."""
        name = f"{self.url}/{path}"
        try:
            with self._opener.open(self._request(path, start), timeout=self._timeout) as response:
                self._admitted = True
                yield response
        except urllib.error.HTTPError as error:
            error.close()
            raise self._refusal(error.code, name) from None
        except LimitError as error:
            text = str(error)
            raise LimitError(text if text.startswith(name) else f"{name}: cannot read: {text}") from None
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            raise CutError(f"{name}: cannot read: {str(reason)[:200]}") from None
        except (ValueError, UnicodeError) as error:  # the response is not HTTP
            raise Error(f"{name}: cannot read: {str(error)[:200]}") from None

    def _refusal(self, code: int, name: str) -> Error:
        # Buckets that may not be listed say "forbidden" for a file that is not there.
        if code in (404, 410) or (code == 403 and self._admitted):
            return NotFoundError(f"{name}: no such file")
        if 300 <= code < 400:
            return Error(f"{name}: cannot read: leads elsewhere in a way that is not followed ({code})")
        if code == 416:
            return CorruptError(f"{name}: is shorter than the store says")
        return (CutError if code in _AGAIN else Error)(f"{name}: cannot read: the host returned status {code}")

    def _patiently(self, attempt: Any) -> Any:
        for i in range(self.retries + 1):
            try:
                return attempt()
            except CutError:  # noqa: PERF203
                if i == self.retries:
                    raise
                time.sleep(PAUSE * 2**i)
        raise AssertionError

    # reading

    def read(self, path: str, most: int) -> bytes:
        """The whole file. Raises LimitError if it is longer than `most`, of which no more is taken."""
        return cast(bytes, self._patiently(lambda: self._read(path, most)))

    def _read(self, path: str, most: int) -> bytes:
        with self._answer(path) as response:
            announced = _length(response)
            if announced is not None and announced > most:
                raise LimitError(f"{self.url}/{path}: longer than {most} bytes")
            response.expect_body(most + 1 if announced is None else announced)
            data = response.read(most + 1)
        self.n_received += len(data)
        self._count_document(path, len(data))
        if len(data) > most:
            raise LimitError(f"{self.url}/{path}: longer than {most} bytes")
        if announced is not None and len(data) < announced:
            raise CutError(f"{self.url}/{path}: cannot read: the connection ended after {len(data)} bytes")
        return data

    def _count_document(self, path: str, n_bytes: int) -> None:
        if self.document_bytes is None:
            return
        # A request is never free: a host without end would hold us with empty files.
        self.document_bytes -= max(n_bytes, _BLOCK // 64)
        if self.document_bytes < 0:
            raise LimitError(
                f"{self.url}/{path}: the descriptions of its versions take more bytes than are read of them; "
                "name the version by its number"
            )

    def blocks(self, path: str, n_bytes: int, start: int = 0) -> Generator[tuple[int, bytes], None, None]:
        """Offsets and bytes from `start`, or from 0 where the host does not serve parts of files; one attempt.

        Raises
        ------
        CutError
            The connection failed; what came is good to be continued.
        CorruptError
            The host sends another length than `n_bytes`. No more than that is read.
        """
        name = f"{self.url}/{path}"
        with self._answer(path, start) as response:
            at = start if response.status == 206 else 0
            if response.status == 206 and not (response.getheader("Content-Range") or "").startswith(f"bytes {at}-"):
                raise CorruptError(f"{name}: the host sends another part than was asked for")
            announced = _length(response)
            if announced is not None and announced != n_bytes - at:
                raise CorruptError(f"{name}: has {at + announced} bytes instead of {n_bytes}")
            response.expect_body(n_bytes - at)
            while at < n_bytes:
                data = response.read(min(_BLOCK, n_bytes - at))
                if not data:
                    raise CutError(f"{name}: cannot read: the connection ended after {at} of {n_bytes} bytes")
                self.n_received += len(data)
                yield at, data
                at += len(data)
            if announced is None and response.read(1):
                raise CorruptError(f"{name}: has more than {n_bytes} bytes")

    def source(self, path: str, n_bytes: int) -> Source:
        if n_bytes > _WHOLE:
            return cast(Source, _RangedSource(self, path, n_bytes))
        data = self._patiently(lambda: self._whole(path, n_bytes))
        if hashlib.sha256(data).hexdigest() != path.rpartition("/")[2]:
            raise CorruptError(f"{self.url}/{path}: the object is damaged (SHA-256 differs)")
        return BytesSource(data, f"{self.url}/{path}")

    def _whole(self, path: str, n_bytes: int) -> bytes:
        return b"".join(data for _, data in self.blocks(path, n_bytes))

    def read_range(self, path: str, start: int, stop: int, n_bytes: int) -> bytes:
        """Some bytes of a file of that length."""
        return cast(bytes, self._patiently(lambda: self._range(path, start, stop, n_bytes)))

    def _range(self, path: str, start: int, stop: int, n_bytes: int) -> bytes:
        found = bytearray()
        with contextlib.closing(self.blocks(path, n_bytes, start)) as blocks:
            for at, data in blocks:
                found += data[max(0, start - at) :]
                if len(found) >= stop - start:
                    break
        return bytes(found[: stop - start])

    # what a host of files cannot do

    def _refuse(self) -> UsageError:
        return UsageError(f"{self.url}: is read only")

    def list(self, folder: str) -> list[Entry]:
        raise UsageError(f"{self.url}: a web host does not list its files")

    def create(self, path: str, data: bytes) -> bool:
        raise self._refuse()

    def claim(self, path: str, data: bytes) -> bool:
        raise self._refuse()

    def replace(self, path: str, data: bytes, durable: bool = True) -> None:
        raise self._refuse()

    def retire(self, path: str, data: bytes) -> None:
        raise self._refuse()

    def new_object(self, staged: bool = False) -> AbstractContextManager[ObjectSink]:
        raise self._refuse()

    def delete(self, path: str) -> bool:
        raise self._refuse()

    def changed(self) -> bool:
        return False

    def now(self) -> float:
        return time.time()

    def settle(self, folder: str) -> None:
        raise self._refuse()

    def committing(self, timeout: float) -> AbstractContextManager[None]:
        raise self._refuse()

    def maintaining(self, timeout: float) -> AbstractContextManager[None]:
        raise self._refuse()

    def sweep_litter(self) -> int:
        raise self._refuse()


def _checked(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise UsageError(f"{url}: {error}") from None
    if not parts.hostname or not url.isprintable() or " " in url:
        raise UsageError(f"{url!r} is not the URL of a host")
    return parts._replace(path=parts.path.rstrip("/"), fragment="")


def _length(response: http.client.HTTPResponse) -> int | None:
    """What the host announces, if anything."""
    if response.getheader("Content-Encoding") not in (None, "identity"):
        raise Error(f"{_shown(response.url)}: cannot read: the host sends it compressed, unasked")
    text = response.getheader("Content-Length")
    return int(text) if text is not None and text.isdecimal() and len(text) < 19 else None


class _RangedSource:
    def __init__(self, backend: HttpBackend, path: str, n_bytes: int):
        self._backend, self._path = backend, path
        self.name = f"{backend.url}/{path}"
        self.size = n_bytes

    def read(self, offset: int, length: int) -> bytes:
        return self._backend.read_range(self._path, offset, offset + length, self.size) if length else b""

    def close(self) -> None:
        """Nothing to do."""
