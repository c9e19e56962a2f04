"""Server: pages for this machine alone, each at an address that holds a random token."""

import hmac
import json
import sys
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from medqdm.errors import MedQDMError

HOST = "127.0.0.1"
Answer = tuple[bytes, Mapping[str, str]]
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_LARGEST_BODY = 1 << 16


class Site(Protocol):
    """What is served behind one token."""

    def answer(self, path: str) -> Answer:
        """Body and headers of a page; MedQDMError where there is nothing of this name."""

    def receive(self, path: str, body: bytes) -> Mapping[str, Any]:
        """Take what a page sent, and what to tell it for JSON; MedQDMError to refuse it."""


class LocalServer(ThreadingHTTPServer):
    """Serves sites on the loopback interface, to requests that know a token.

    Args:
        sites: by token.
        port: 0 takes a free one.

    Raises:
        MedQDMError: the port is in use.
    """

    daemon_threads = True

    def __init__(self, sites: Mapping[str, Site], *, port: int = 0) -> None:
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise MedQDMError(
                f"--port: must be a free port, got {port} ({error.strerror}); leave it out"
            ) from None
        self._sites = dict(sites)
        self.is_closed = False
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()

    def url(self, token: str) -> str:
        """The address of a site."""
        return f"http://{HOST}:{self.server_port}/{token}/"

    def site(self, token: str, host: str) -> Site | None:
        """The site of a request that knows its token and came to this address by this name."""
        if host not in (f"{HOST}:{self.server_port}", f"localhost:{self.server_port}"):
            return None
        found = None
        for known, site in self._sites.items():  # all of them, so that the time tells nothing
            if hmac.compare_digest(token.encode(), known.encode()):
                found = site
        return found

    def wait(self) -> None:
        """Serve until the server is closed or the program is interrupted."""
        self._thread.join()

    def close(self) -> None:
        """Stop serving, on connections that are open too."""
        self.is_closed = True
        self.shutdown()
        self.server_close()
        self._thread.join()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: LocalServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "medqdm", ""
    timeout = 60

    def do_GET(self) -> None:
        site, path = self._admitted()
        if site is None:
            return
        try:
            body, headers = site.answer(path)
        except MedQDMError as error:
            self._refuse(HTTPStatus.NOT_FOUND, str(error))
            return
        self._send(HTTPStatus.OK, body, headers)

    def do_POST(self) -> None:
        self.close_connection = True  # a body that is not read must not be taken for a request
        site, path = self._admitted()
        if site is None:
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _LARGEST_BODY:
            self._refuse(HTTPStatus.BAD_REQUEST, f"{path}: must be a short JSON text")
            return
        try:
            answer = site.receive(path, self.rfile.read(int(length)))
        except MedQDMError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            return
        self._send(HTTPStatus.OK, *as_json(answer))

    def _admitted(self) -> tuple[Site | None, str]:
        token, _, path = self.path.partition("?")[0].removeprefix("/").partition("/")
        if self.server.is_closed:
            self.close_connection = True
            return None, path
        site = self.server.site(token, self.headers.get("Host", ""))
        if site is None:
            self._refuse(HTTPStatus.FORBIDDEN, "the whole address of the page must be used")
        return site, path

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        self._send(status, text.encode(), {"Content-Type": "text/plain; charset=utf-8"})

    def _send(self, status: HTTPStatus, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, **headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the terminal for the command's own lines."""


def page_file(name: str, package: str = "medqdm.review") -> Answer:
    """A file of a page.

    Args:
        name: in the package's folder ``page``; never a name that a request chose.
        package: that has the page.
    """
    path = files(package) / "page" / name
    return path.read_bytes(), {"Content-Type": _TYPES[name[name.rindex(".") :]]}


def as_json(value: Any) -> Answer:
    """A value as JSON."""
    return json.dumps(value).encode(), {"Content-Type": "application/json"}


def packed(image: NDArray[Any]) -> Answer:
    """An image as little-endian numbers: 16-bit ones if they say the same, else float32."""
    if np.issubdtype(image.dtype, np.floating):
        image = _shortened(image)
    order = image.dtype.newbyteorder("<")
    body = np.ascontiguousarray(image, dtype=order).tobytes()
    return body, {
        "Content-Type": "application/octet-stream",
        "X-Type": image.dtype.name,
        "X-Shape": ",".join(map(str, image.shape)),
    }


def _shortened(image: NDArray[Any]) -> NDArray[Any]:
    for part in (image[:1], image):  # the first row of most other images tells
        if not np.isfinite(part).all() or np.abs(part).max() > np.iinfo(np.int16).max:
            return image.astype(np.float32)
        short = part.astype(np.int16)
        if not np.array_equal(short, part):
            return image.astype(np.float32)
    return short
