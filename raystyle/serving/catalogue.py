"""Names to cards: the backend's listing, kept for a moment and asked for by one request at a time."""

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Protocol

from raystyle.serving.contract import Card, Delta, Generation, Listing, Started
from raystyle.serving.errors import RequestError

MAX_AGE_S = 1.0
# A name that is not there is looked for in a listing of its own, so that what was just added is found, but no more often
# than this however many ask.
MAX_AGE_OF_UNKNOWN_S = 0.25
TIMEOUT_S = 10.0
# Prometheus gives a scrape up after ten seconds, and is told more by a listing that is a little old than by none.
SCRAPE_MAX_AGE_S, PROBE_TIMEOUT_S = 5.0, 2.0


class Backend(Protocol):
    """What runs generations: a replica, or a handle that leads to several."""

    async def listing(self) -> Listing: ...

    def generate(self, generation: Generation) -> AsyncGenerator[list[Started | Delta], None]:
        """What a generation gains, as it comes; closing it frees its rows."""
        ...

    async def refresh(self) -> Listing:
        """Looks at `adapters_path` now."""
        ...


class Catalogue:
    """The listing, at most `MAX_AGE_S` old."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._listing: Listing | None = None
        self._asked_at_s = -float("inf")
        self._asking: asyncio.Task[Listing] | None = None

    async def listing(self, max_age_s: float = MAX_AGE_S, timeout_s: float = TIMEOUT_S) -> Listing:
        """Raises `RequestError` `unavailable` where the backend does not answer in time, and what it raises."""
        if self._listing is not None and time.monotonic() - self._asked_at_s <= max_age_s:
            return self._listing
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        try:
            async with asyncio.timeout(timeout_s):
                # Shielded: a client that leaves must not take the answer from others.
                return await asyncio.shield(self._asking)
        except TimeoutError:
            raise RequestError("unavailable", f"the model did not answer within {timeout_s:g} s") from None

    async def _ask(self) -> Listing:
        asked_at_s = time.monotonic()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                listing = await self._backend.listing()
        except TimeoutError:
            raise RequestError("unavailable", f"the model did not answer within {TIMEOUT_S:g} s") from None
        return self.put(listing, asked_at_s)

    def put(self, listing: Listing, asked_at_s: float | None = None) -> Listing:
        """Keeps a listing that was got some other way."""
        self._listing, self._asked_at_s = listing, time.monotonic() if asked_at_s is None else asked_at_s
        return listing

    async def find(self, name: str) -> tuple[Card, Listing]:
        """The card of a name that is served, and the listing it stands in. Raises `RequestError` `model_not_found`."""
        listing = await self.listing()
        card = _card(listing, name)
        if card is None or card.refused:
            listing = await self.listing(MAX_AGE_OF_UNKNOWN_S)
            card = _card(listing, name)
        if card is None:
            raise RequestError("model_not_found", f"there is no model {name[:128]!r}; /v1/models lists them", "model")
        if card.refused:
            raise RequestError("model_not_found", f"the model {card.name!r} is not served: {card.refused}", "model")
        return card, listing


def _card(listing: Listing, name: str) -> Card | None:
    return next((card for card in listing.cards if card.name == name), None)
