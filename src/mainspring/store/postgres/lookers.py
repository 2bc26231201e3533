"""Threads that look into tables beside the tasks': what takes long there must not keep the store's reader waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from mainspring.errors import StoreUnavailable
from mainspring.store.postgres.address import Server
from mainspring.store.postgres.connection import is_lost, our_errors
from mainspring.store.postgres.session import Session

T = TypeVar("T")
MOST: Final = 4
"""Connections, made when they are needed and kept."""
PLANS: Final = {
    "enable_seqscan": "on",
    "enable_hashjoin": "on",
    "enable_mergejoin": "on",
    "plan_cache_mode": "force_custom_plan",
}
"""Looks here may be at a whole table or at a few rows of it, and each is planned for what it asks."""


class Lookers:
    """Run functions of a session. May be called from any thread, and blocks it."""

    def __init__(self, connect: Callable[[], Session], server: Server) -> None:
        self._connect = connect
        self._server = server
        self._threads = ThreadPoolExecutor(MOST, thread_name_prefix="mainspring-looker")
        self._idle: deque[Session] = deque()  # whoever runs takes one and gives it back
        self._closed = False

    def run(self, look: Callable[[Session], T]) -> T:
        """Return what it returns. A look at a connection that was lost meanwhile is tried once more, on a new one.

        Raises: StoreUnavailable: also once they are closed.
        """
        if self._closed:
            raise StoreUnavailable("the store is closed; open it again with a new engine")
        return self._threads.submit(self._look, look).result()

    def _look(self, look: Callable[[Session], T]) -> T:
        with our_errors(self._server):
            try:
                session = self._idle.pop()
            except IndexError:
                return self._with(self._connect(), look)
            try:
                return self._with(session, look)
            except Exception as exc:
                if not is_lost(exc):
                    raise
            return self._with(self._connect(), look)

    def _with(self, session: Session, look: Callable[[Session], T]) -> T:
        try:
            answer = look(session)
        except BaseException as exc:
            if is_lost(exc):
                session.close()
            else:
                self._idle.append(session)
            raise
        self._idle.append(session)
        return answer

    def close(self) -> None:
        """Let looks under way come to their end, and give the connections back."""
        self._closed = True
        self._threads.shutdown()
        while self._idle:
            self._idle.pop().close()
