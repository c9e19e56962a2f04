"""Viewer: the review as a page in the browser, served to this machine alone."""

import hmac
import json
import secrets
import sys
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medqdm.errors import MedQDMError
from medqdm.review.drawing import difference_limit_hu
from medqdm.review.facts import facts_of
from medqdm.review.layers import Layers
from medqdm.review.rating import SCORES, Rating, save_rating
from medqdm.review.series import Review

HOST = "127.0.0.1"
_PAGE = {
    "": ("index.html", "text/html; charset=utf-8"),
    "style.css": ("style.css", "text/css; charset=utf-8"),
    **{
        name: (name, "text/javascript; charset=utf-8")
        for name in ("main.js", "panel.js", "paint.js", "loader.js", "measure.js")
    },
}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_LARGEST_RATING = 1 << 16


class Viewer:
    """A review in the browser; in a notebook, the last line of a cell shows it.

    The page is served on the loopback interface, and only to who knows its address: a random
    token is part of it. No file is served but the page's own.

    Args:
        review: what to look at.
        ratings: CSV file that the page's rating form appends to; None: no form.
        port: of the server; 0 takes a free one.

    Attributes:
        url: the address of the page.

    Raises:
        MedQDMError: the port is in use.
    """

    def __init__(self, review: Review, ratings: str | Path | None = None, *, port: int = 0) -> None:
        self.review = review
        self.ratings = Path(ratings) if ratings is not None else None
        self._layers = Layers(review)
        self._token = secrets.token_urlsafe(24)
        try:
            self._server = _Server((HOST, port), _Handler)
        except OSError as error:
            raise MedQDMError(
                f"--port: must be a free port, got {port} ({error.strerror}); leave it out"
            ) from None
        self._server.viewer = self
        self.url = f"http://{HOST}:{self._server.server_port}/{self._token}/"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Serve until the viewer is closed or the program is interrupted."""
        self._thread.join()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> "Viewer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _repr_html_(self) -> str:
        return (
            f'<iframe src="{self.url}" title="review" width="100%" height="860" '
            'style="border:0" allow="fullscreen"></iframe>'
        )

    def is_admitted(self, token: str, host: str) -> bool:
        """Whether a request knows the token and came to this address, not by another name."""
        port = self._server.server_port
        known = hmac.compare_digest(token.encode(), self._token.encode())
        return known and host in (f"{HOST}:{port}", f"localhost:{port}")

    def answer(self, path: str) -> "tuple[bytes, Mapping[str, str]]":
        """The body and headers of a page, of ``facts.json`` or of a layer.

        Args:
            path: behind the token.

        Raises:
            MedQDMError: there is nothing of this name.
        """
        if path in _PAGE:
            name, kind = _PAGE[path]
            body = (files("medqdm.review") / "page" / name).read_bytes()
            return body, {"Content-Type": kind}
        if path == "facts.json":
            facts = facts_of(self.review, self._layers)
            facts["difference_hu"] = self._difference_limit()
            facts["rating"] = list(SCORES) if self.ratings is not None else []
            return json.dumps(facts).encode(), {"Content-Type": "application/json"}
        match path.split("/"):
            case ["layer", name, axis, index] if index.isdecimal():
                return _packed(self._layers.at(name, axis, int(index)))
        raise MedQDMError(f"review: a page must be one of the viewer's, got {path!r}")

    def rate(self, body: bytes) -> dict[str, str]:
        """Save a rating that the page sent.

        Raises:
            MedQDMError: it is no whole rating, or the file holds something else.
        """
        if self.ratings is None:
            raise MedQDMError("rating: must have a file to go to, got none; give --ratings FILE")
        try:
            sent = json.loads(body)
            rating = Rating(series=self.review.label, **sent)
        except (TypeError, ValueError) as error:
            if isinstance(error, MedQDMError):
                raise
            raise MedQDMError("rating: must hold its fields, got something else") from None
        save_rating(self.ratings, rating)
        return {"saved": f"slice {rating.slice_number} saved to {self.ratings.name}"}

    def _difference_limit(self) -> float:
        if self.review.source is None:
            return 100.0
        return difference_limit_hu(self.review.at(self.review.num_slices // 2))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    viewer: Viewer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "medqdm", ""
    timeout = 60

    def do_GET(self) -> None:
        path = self._admitted_path()
        if path is None:
            return
        try:
            body, headers = self.server.viewer.answer(path)
        except MedQDMError as error:
            self._refuse(HTTPStatus.NOT_FOUND, str(error))
            return
        self._send(HTTPStatus.OK, body, headers)

    def do_POST(self) -> None:
        self.close_connection = True  # a body that is not read must not be taken for a request
        path = self._admitted_path()
        if path is None:
            return
        length = self.headers.get("Content-Length", "")
        if path != "rating" or not length.isdecimal() or int(length) > _LARGEST_RATING:
            self._refuse(HTTPStatus.BAD_REQUEST, "rating: must be a short JSON text")
            return
        try:
            answer = self.server.viewer.rate(self.rfile.read(int(length)))
        except MedQDMError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            return
        self._send(HTTPStatus.OK, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _admitted_path(self) -> str | None:
        token, _, path = self.path.partition("?")[0].removeprefix("/").partition("/")
        if self.server.viewer.is_admitted(token, self.headers.get("Host", "")):
            return path
        self._refuse(HTTPStatus.FORBIDDEN, "the whole address of the review must be used")
        return None

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        self._send(status, text.encode(), {"Content-Type": "text/plain; charset=utf-8"})

    def _send(self, status: HTTPStatus, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, **headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the terminal for the review's own lines."""


def _packed(image: NDArray[Any]) -> tuple[bytes, Mapping[str, str]]:
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
