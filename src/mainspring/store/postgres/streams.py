"""Calls of many tasks that enter piece by piece: as they can begin, where that is fast and spares them their claims.

What enters while a lane has room, and nothing ready goes before it, is held from the beginning. What waits as ready is
claimed later, which costs the server more than a third of all that a task without work does.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

from mainspring.errors import SubmitIndeterminate
from mainspring.store.base import Accepted, NewTask
from mainspring.store.sql.queueing import Submission
from mainspring.store.sql.transaction import Memory

_LEAST = 256
"""Smaller calls don't wait: the server is done with them in no time."""
_A_SECOND = 5_000
"""So many tasks have to get in, or the rest goes in at once, ready: who submits has a right to that."""
_FIRST_S = 0.05
"""Before that is judged."""
_STALL_S = 0.1
"""How long nothing of what waits may get in, whatever came before."""
_REST_S = 1.0
"""Where it was too slow nothing waits for so long."""


class Streams:
    """What waits for room in its lane. All of it belongs to the writer's thread."""

    def __init__(self, memory: Memory, monotonic: Callable[[], float], kick: Callable[[], None]) -> None:
        self._memory = memory
        self._monotonic = monotonic
        self._kick = kick
        self._waiting: deque[_Stream] = deque()
        self._given = 0  # in the commit that is being made
        self._since = 0.0
        self._rests_until = 0.0
        self._fed = 0  # since then,
        self._fed_at = 0.0  # and last
        self._kick_at: float | None = None

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def can_go_on(self) -> bool:
        """Whether something that waits has room."""
        return bool(self._waiting) and self._room(self._waiting[0]) != 0

    def begin(self) -> None:
        """A commit begins: what was given before is known to the lanes, or came to nothing."""
        self._given = 0

    def takes(self, submission: Submission) -> bool:
        """Whether a call is to enter piece by piece; it is kept then. Nothing of a line goes by what waits."""
        line, now = submission.line, self._monotonic()
        if line is None or not submission.tasks:
            return False
        if not self._may_wait(submission, now) and not any(stream.whole.line is line for stream in self._waiting):
            return False
        if not self._waiting:
            self._since, self._fed, self._fed_at = now, 0, now
        self._waiting.append(_Stream(submission))
        return True

    def _may_wait(self, submission: Submission, now: float) -> bool:
        tasks = submission.tasks
        if len(tasks) < _LEAST or now < self._rests_until or not all(map(_is_plain, tasks)):
            return False
        lane = self._memory.lane_of_type.get(tasks[0].class_key[1])
        return lane is not None and (
            bool(self._waiting) or not lane.ready
        )  # behind what is ready it would wait for long

    def pieces(self, *, all: bool = False) -> list[Submission]:
        """Return what goes into the commit now."""
        given: list[Submission] = []
        until = min(self._since + _FIRST_S + self._fed / _A_SECOND, self._fed_at + _STALL_S)
        waits = not all
        if self._waiting and (now := self._monotonic()) > until:
            self._rests_until, waits = now + _REST_S, False
        while self._waiting:
            stream = self._waiting[0]
            room = self._room(stream) if waits else None
            if room is not None and room < stream.left:
                if room:
                    given.append(self._cut(stream, room))
                self._kick_after(until)
                break
            self._waiting.popleft()
            given.append(self._cut(stream, stream.left))  # of a line that is broken it is refused there
        return given

    def _cut(self, stream: _Stream, n: int) -> Submission:
        self._given += n
        self._fed, self._fed_at = self._fed + n, self._monotonic()
        return stream.cut(n)

    def _room(self, stream: _Stream) -> int | None:
        """Return how many can begin; None: nothing is gained by waiting for that."""
        memory, first, line = self._memory, stream.whole.tasks[0], stream.whole.line
        key = first.class_key
        lane = memory.lane_of_type.get(key[1])
        if lane is None or key[1] in lane.withheld or key[1] in lane.passing.passes.types:
            return None
        if memory.has_peers or memory.is_paused(key) or memory.limits.of(key) or (line is not None and line.is_broken):
            return None
        return 0 if lane.ready else max(0, lane.room() - self._given)

    def _kick_after(self, until: float) -> None:
        """Have it looked at when its time is over, should nothing end meanwhile."""
        now = self._monotonic()
        if self._kick_at is None or self._kick_at <= now:
            self._kick_at = until
            loop = self._waiting[0].whole.future.get_loop()
            try:
                loop.call_soon_threadsafe(loop.call_later, max(0.0, until - now) + 0.001, self._kick)
            except RuntimeError:
                if not loop.is_closed():  # else nobody waits any more
                    raise


def _is_plain(task: NewTask) -> bool:
    """Whether it could begin as soon as it is stored."""
    return not task.after and task.work is None and task.not_before_ms is None


class _Stream:
    """A call that enters in pieces. What becomes of them becomes of the call."""

    def __init__(self, whole: Submission) -> None:
        self.whole = whole
        self._at = 0
        self._found: list[Accepted] = []  # on the loop

    @property
    def left(self) -> int:
        return len(self.whole.tasks) - self._at

    def cut(self, n: int) -> Submission:
        """Return the next n tasks as a call of their own."""
        whole = self.whole
        if n == len(whole.tasks):
            return whole
        piece = Submission(whole.tasks[self._at : self._at + n], whole.future.get_loop().create_future(), whole.line)
        self._at += n
        piece.future.add_done_callback(partial(self._entered, n))
        return piece

    def _entered(self, n: int, piece: asyncio.Future[list[Accepted]]) -> None:
        """On the loop. Where a piece is refused the call has stored its first tasks, as one does where room ends; who
        submits the others again is told why. Where it is not known to be stored, no more is known of the call."""
        error, whole = piece.exception(), self.whole.future
        if whole.done():
            return
        if error is not None and (not self._found or isinstance(error, SubmitIndeterminate)):
            whole.set_exception(error)
            return
        self._found += [] if error is not None else piece.result()
        is_short = error is not None or len(piece.result()) < n
        if is_short or len(self._found) == len(self.whole.tasks):
            whole.set_result(self._found)
