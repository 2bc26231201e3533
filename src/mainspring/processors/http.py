"""HTTP clients that count what they move, for the metrics of an attempt."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx

from mainspring.models.spending import Traffic


class _Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """Passes a body on and counts it."""

    def __init__(self, body: Any, traffic: Traffic) -> None:
        self._body = body
        self._traffic = traffic

    def __iter__(self) -> Iterator[bytes]:
        for part in self._body:
            self._traffic.bytes += len(part)
            yield part

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._body:
            self._traffic.bytes += len(part)
            yield part

    def close(self) -> None:
        self._body.close()

    async def aclose(self) -> None:
        await self._body.aclose()


class _Transport(httpx.HTTPTransport):
    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self._traffic = traffic

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._traffic.asks(request)
        request.stream = _Body(request.stream, self._traffic)
        response = super().handle_request(request)
        self._traffic.answers(response)
        response.stream = _Body(response.stream, self._traffic)
        return response


class _AsyncTransport(httpx.AsyncHTTPTransport):
    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self._traffic = traffic

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._traffic.asks(request)
        request.stream = _Body(request.stream, self._traffic)
        response = await super().handle_async_request(request)
        self._traffic.answers(response)
        response.stream = _Body(response.stream, self._traffic)
        return response


def async_client(traffic: Traffic) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=_AsyncTransport(traffic), follow_redirects=True)


def blocking_client(traffic: Traffic) -> httpx.Client:
    return httpx.Client(transport=_Transport(traffic), follow_redirects=True)
