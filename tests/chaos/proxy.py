"""A proxy on loopback between S3 clients and a real S3 server, which injects faults and counts them.

The clients, the server and the connections are real; the faults between them are drawn from a seed. Bodies are held
whole in memory, so that the proxy knows an answer completely before it sends any of it, or replaces it.
"""

import http.client
import logging
import random
import socket
import struct
import sys
import threading
from collections import Counter
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qs

from tests.chaos.upstream import PER_CONNECTION, Answer, Upstream, slow_down

_LOG = logging.getLogger(__name__)

FaultKind = Literal["slow-down", "reset", "stall", "lost-response", "flip", "refuse"]

_LINGER_ZERO = struct.pack("ii", 1, 0)
# Headers that the proxy sets itself.
_FRAMED_BY_PROXY = PER_CONNECTION | {"content-length", "expect"}
_FLIPPED_FOLDERS = ("shards/", "results/", "markers/", "weights/", "plans/")
_LISTING = {"list-type", "delimiter", "prefix"}


@dataclass(frozen=True)
class Fault:
    """A kind of fault and how often it is injected.

    Attributes:
        kind: `slow-down` answers 503 SlowDown; `reset` cuts a GET's answer or a PUT's body short with a TCP reset;
            `stall` waits before forwarding; `lost-response` lets the server carry out a conditional PUT and resets
            instead of answering; `flip` flips one bit of an object that is read; `refuse` resets at once.
        probability: Chance per request that can suffer this kind.
        limit: The most injections since `Proxy.inject`; None for no limit.
    """

    kind: FaultKind
    probability: float
    limit: int | None = None


class Proxy:
    """Forwards requests to an S3 server while entered, with the injected faults.

    Where the server is down, or dies while it answers, the proxy answers 503, which S3 clients retry; that is not
    counted as an injection.

    Args:
        upstream: The server, as `http://127.0.0.1:PORT`.
        seed: Seed of the draws. Concurrent requests race for them, so equal seeds give equal faults only for one
            client at a time.
        stall_s: Length of a stall.

    Attributes:
        url: Address of the proxy, once entered.
    """

    url: str

    def __init__(self, upstream: str, *, seed: int = 0, stall_s: float = 3.0) -> None:
        self._draws = _Draws(seed)
        self._upstream = upstream
        self._stall_s = stall_s

    def __enter__(self) -> Self:
        self._server = _Server(self._upstream, self._draws, self._stall_s)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="proxy", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server.disconnect_all()

    def inject(self, *faults: Fault) -> None:
        """Replaces the active faults, and resets the counts of their limits."""
        self._draws.use(faults)

    def clear(self) -> None:
        """Removes all faults: requests are forwarded unharmed."""
        self._draws.use(())

    @property
    def counts(self) -> Counter[str]:
        """A copy of the number of injections by kind, since the proxy was made."""
        return self._draws.injected()


class _Draws:
    """The active faults, the randomness and the counts, shared by all connections."""

    def __init__(self, seed: int) -> None:
        self._lock = threading.Lock()
        self._random = random.Random(seed)
        self._counts: Counter[str] = Counter()
        self._since_use: Counter[Fault] = Counter()
        self._faults: tuple[Fault, ...] = ()

    def use(self, faults: tuple[Fault, ...]) -> None:
        with self._lock:
            self._faults = faults
            self._since_use.clear()

    def injected(self) -> Counter[str]:
        with self._lock:
            return self._counts.copy()

    def draw(self, kind: FaultKind) -> bool:
        """Draws whether a request suffers a fault of this kind, and counts it if so."""
        with self._lock:
            for fault in self._faults:
                spent = fault.limit is not None and self._since_use[fault] >= fault.limit
                if fault.kind == kind and not spent and self._random.random() < fault.probability:
                    self._since_use[fault] += 1
                    self._counts[kind] += 1
                    return True
            return False

    def below(self, bound: int) -> int:
        """A whole number of at least 0 and less than `bound`."""
        with self._lock:
            return self._random.randrange(bound)


class _Server(ThreadingHTTPServer):
    """Listens on a free loopback port; one thread per connection."""

    request_queue_size = 128

    def __init__(self, upstream: str, draws: _Draws, stall_s: float) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.upstream = upstream
        self.draws = draws
        self.stall_s = stall_s
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()

    def disconnect_all(self) -> None:
        """Closes the connections that are still open, which ends their threads."""
        self.closing.set()
        with self._lock:
            for connection in self._open:
                _shut(connection)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Closes without the base class's FIN, after which a reset would look like an orderly end."""
        with self._lock:
            self._open.discard(request)
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores clients that disconnect, which are expected; logs anything else as an error of the proxy."""
        if not isinstance(sys.exception(), OSError):
            _LOG.exception("the proxy failed on a request")


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        _LOG.debug("the client had disconnected")


class _Connection(BaseHTTPRequestHandler):
    """One client's connection, and its own connection to the server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self._upstream = Upstream(self.server.upstream)

    def finish(self) -> None:
        self._upstream.close()
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        """Logs nothing."""

    def handle_expect_100(self) -> bool:
        """Delays 100 Continue until the body is read: a refused request gets no answer at all."""
        return True

    def _serve(self) -> None:
        draws = self.server.draws
        if draws.draw("refuse"):
            return self._reset()
        if self.command == "PUT" and self._has_body() and draws.draw("reset"):
            self._read_part()
            return self._reset()
        body = self._read_body()
        if draws.draw("slow-down"):
            return self._send(slow_down())
        if draws.draw("stall"):
            self.server.closing.wait(self.server.stall_s)
        try:
            answer = self._forward(body)
        except (OSError, http.client.HTTPException):
            self._upstream.close()
            return self._send(slow_down())
        return self._return(answer)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_OPTIONS = _serve  # noqa: N815  # http.server's names

    def _return(self, answer: Answer) -> None:
        """Sends the server's answer, unless a fault loses it, cuts it short or damages it."""
        draws = self.server.draws
        if self.command == "PUT" and self.headers["If-None-Match"] == "*" and draws.draw("lost-response"):
            return self._reset()
        if self.command == "GET" and len(answer.body) > 1 and draws.draw("reset"):
            self.wfile.write(answer.head() + answer.body[: draws.below(len(answer.body))])
            return self._reset()
        if self._reads_object(answer) and draws.draw("flip"):
            answer = replace(answer, body=_flip(answer.body, draws.below(8 * len(answer.body))))
        return self._send(answer)

    def _send(self, answer: Answer) -> None:
        """Sends in one write: small writes wait for each other's acknowledgement."""
        self.wfile.write(answer.head() + (b"" if self.command == "HEAD" else answer.body))

    def _reset(self) -> None:
        """Closes the connection with a TCP reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self.close_connection = True

    def _forward(self, body: bytes) -> Answer:
        headers = tuple((name, value) for name, value in self.headers.items() if name.lower() not in _FRAMED_BY_PROXY)
        if body or "Content-Length" in self.headers:
            headers += (("Content-Length", str(len(body))),)
        # Not `self.path`, in which the base class merges leading slashes: the signature covers what was sent.
        return self._upstream.ask(self.command, self.requestline.split()[1], headers, body)

    def _reads_object(self, answer: Answer) -> bool:
        """Whether the answer holds the bytes of an object, in a folder whose readers must notice damage."""
        path, _, query = self.path.partition("?")
        _, _, key = path.lstrip("/").partition("/")
        listing = not key or not _LISTING.isdisjoint(parse_qs(query, keep_blank_values=True))
        read = self.command == "GET" and answer.status in (200, 206) and len(answer.body) > 0
        return read and not listing and any(folder in path for folder in _FLIPPED_FOLDERS)

    def _chunked(self) -> bool:
        return "chunked" in self.headers.get("Transfer-Encoding", "").lower()

    def _has_body(self) -> bool:
        return self._chunked() or self._size_bytes() > 0

    def _size_bytes(self) -> int:
        return int(self.headers.get("Content-Length", 0))

    def _read_body(self) -> bytes:
        """The whole body of the request, unchunked; the framing of `aws-chunked` is content and stays.

        Raises:
            ConnectionError: The client disconnected before the end of the body.
        """
        self._send_continue()
        if not self._chunked():
            return self._read(self._size_bytes())
        chunks = []
        while size := int(self._read_line().partition(b";")[0], 16):
            chunks.append(self._read(size))
            self._read_line()
        while self._read_line():
            pass  # trailers, which S3 does not use here
        return b"".join(chunks)

    def _read_part(self) -> None:
        """Reads a part of the body."""
        self._send_continue()
        self._read(1 if self._chunked() else self.server.draws.below(self._size_bytes()))

    def _send_continue(self) -> None:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _read(self, size_bytes: int) -> bytes:
        data = self.rfile.read(size_bytes)
        if len(data) < size_bytes:
            raise ConnectionAbortedError("the client disconnected within its body")
        return data

    def _read_line(self) -> bytes:
        line = self.rfile.readline()
        if not line.endswith(b"\n"):
            raise ConnectionAbortedError("the client disconnected within its body")
        return line.strip()


def _flip(body: bytes, bit: int) -> bytes:
    damaged = bytearray(body)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)
