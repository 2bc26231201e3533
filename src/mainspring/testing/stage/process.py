"""The simulated process in which a user's handlers run: its threads are real ones, of which one runs at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final, TypeVar

from mainspring.environment import SYSTEM, ThreadLocal
from mainspring.testing.simulator.machine import Process
from mainspring.testing.simulator.strands import Died, SimSignal, SimStrand

T = TypeVar("T")
_HERE: Final = ThreadLocal()
"""`thread`: the played one that this is."""


class StageProcess(Process):
    """What users' plain functions expect of their thread holds: no event loop runs in it, and it may block."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._threads: list[PlayedThread] = []
        self._calls = 0

    def start_strand(self, name: str, steps: Iterator[None], signal: Any) -> SimStrand:
        if not name.startswith("mainspring-thread"):
            return super().start_strand(name, steps, signal)  # ours: it never blocks, and needs no thread
        thread = PlayedThread(self, name, steps, signal)
        self._threads.append(thread)
        return thread

    async def to_thread(self, run: Callable[..., T], *args: Any) -> T:
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def steps() -> Iterator[None]:
            self._call(answer, run, args)
            return
            yield

        self._calls += 1
        self.start_strand(f"mainspring-thread-call-{self._calls}", steps(), self.signal())
        return await answer

    def on_loop(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
        thread = current_thread()
        if thread is None:
            return super().on_loop(loop, work)
        task = loop.create_task(work, context=self.context.copy())  # the process's own is that of the waiting loop
        thread.stand(lambda go_on: task.add_done_callback(lambda _: go_on()))
        return task.result()

    def release(self) -> None:
        """Let its threads end that stand still for ever since it died."""
        for thread in self._threads:
            thread.release()


class PlayedThread(SimStrand):
    """A real thread that runs only while the loop stands still, until it waits for something."""

    def __init__(self, process: StageProcess, name: str, steps: Iterator[None], signal: SimSignal) -> None:
        super().__init__(process, name, steps, signal)
        self._go, self._back = SYSTEM.signal(), SYSTEM.signal()
        self._came_to: str | BaseException = "stands"
        self._is_released = False
        self._thread = SYSTEM.start_thread(name, self._run)

    def _step(self) -> None:
        self._came_to = "stands"
        self._go.raise_()
        self._back.wait()
        if isinstance(self._came_to, BaseException):
            raise self._came_to
        if self._came_to == "is over":
            self._over.set()
        elif self._came_to == "waits":
            self._signal.wait_for(self)
        if not self._process.is_alive:
            self._process.died()

    def _run(self) -> None:
        context = self._process.context.copy()
        _HERE.thread = self
        self._go.wait()
        while not self._is_released:
            try:
                context.run(next, self._steps)
            except StopIteration:
                self._came_to = "is over"
            except Died:
                self._came_to = "is dead"
            except BaseException as exc:  # noqa: BLE001 - raised on the loop's side, as a strand's own error is
                self._came_to = exc
            else:
                self._came_to = "waits"
            self._back.raise_()
            if self._came_to != "waits" or self._is_released:
                return
            self._go.wait()

    def stand(self, until: Callable[[Callable[[], None]], object]) -> None:
        """Called in the thread: let the loop go on until what is handed to `until` is called."""
        until(lambda: self._process.later(self._step))
        self._back.raise_()
        self._go.wait()
        if self._is_released:
            raise Died

    def sleep(self, seconds: float) -> None:
        self.stand(lambda go_on: self._process.machine.loop.call_later(seconds, go_on, context=self._process.context))

    @property
    def process(self) -> StageProcess:
        assert isinstance(self._process, StageProcess)
        return self._process

    def release(self) -> None:
        if self._thread.is_alive():
            self._is_released = True
            self._go.raise_()
            self._thread.join(1.0)


def current_thread() -> PlayedThread | None:
    """Return the played thread that calls, if one does."""
    return getattr(_HERE, "thread", None)


def sleep(seconds: float) -> None:
    """Stands for `time.sleep`: in the thread of a handler it takes virtual time."""
    thread = current_thread()
    if thread is None:
        SYSTEM.sleep(seconds)
    else:
        thread.sleep(seconds)
