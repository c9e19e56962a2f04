"""Viewer: the review as a page in the browser, served to this machine alone."""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path

from medqdm.errors import MedQDMError
from medqdm.review.drawing import difference_limit_hu
from medqdm.review.facts import facts_of
from medqdm.review.layers import Layers
from medqdm.review.rating import SCORES, Rating, save_rating
from medqdm.review.series import Review
from medqdm.review.server import Answer, LocalServer, as_json, packed, page_file

_PAGE = {
    "": "index.html",
    **{
        name: name
        for name in ("style.css", "main.js", "panel.js", "paint.js", "loader.js", "measure.js")
    },
}


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
        token = secrets.token_urlsafe(24)
        self._server = LocalServer({token: self}, port=port)
        self.url = self._server.url(token)

    def wait(self) -> None:
        """Serve until the viewer is closed or the program is interrupted."""
        self._server.wait()

    def close(self) -> None:
        """Stop serving."""
        self._server.close()

    def __enter__(self) -> "Viewer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _repr_html_(self) -> str:
        return (
            f'<iframe src="{self.url}" title="review" width="100%" height="860" '
            'style="border:0" allow="fullscreen"></iframe>'
        )

    def answer(self, path: str) -> Answer:
        """The body and headers of a page, of ``facts.json`` or of a layer.

        Args:
            path: behind the token.

        Raises:
            MedQDMError: there is nothing of this name.
        """
        if path in _PAGE:
            return page_file(_PAGE[path])
        if path == "facts.json":
            facts = facts_of(self.review, self._layers)
            facts["difference_hu"] = self._difference_limit()
            facts["rating"] = list(SCORES) if self.ratings is not None else []
            return as_json(facts)
        match path.split("/"):
            case ["layer", name, axis, index] if index.isdecimal():
                return packed(self._layers.at(name, axis, int(index)))
        raise MedQDMError(f"review: a page must be one of the viewer's, got {path!r}")

    def receive(self, path: str, body: bytes) -> Mapping[str, str]:
        """Save a rating that the page sent.

        Args:
            path: ``rating``.
            body: its fields as JSON.

        Raises:
            MedQDMError: it is no whole rating, or the file holds something else.
        """
        if path != "rating":
            raise MedQDMError(f"review: what is sent must be a rating, got {path!r}")
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
