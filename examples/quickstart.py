"""The first ten minutes: handlers, priorities, a pipeline of two, what fails, and what was already done.

    python examples/quickstart.py [FILE]

Run it twice with the same FILE: what is stored there stays.
"""

from __future__ import annotations

import asyncio
import sys

from mainspring import Context, Engine, ProcessingFailed, Retry, TaskPriority

engine = Engine(sys.argv[1] if len(sys.argv) > 1 else ":memory:")


@engine.task(retry=Retry(max_retries=5, delay="10ms"), timeout=30)
async def fetch(url: str, ctx: Context) -> str:
    """Stands for a download; the first attempt fails, as downloads do."""
    if ctx.attempt == 1:
        raise ConnectionError(f"{url} does not answer")
    return f"<h1>{url}</h1>  <p>Some   words.</p>"


@engine.task
def clean(page: str) -> str:
    return " ".join(page.replace("<", " <").replace(">", "> ").split())


@engine.task(lane="process", timeout=60)  # a process of its own: it can be killed, and harms nobody when it dies
def count(text: str) -> int:
    return len(text.split())


async def main() -> None:
    async with engine:  # opens the store, takes up what was left, starts to work; drains on exit
        page = await engine.submit(fetch, "https://example.org", priority=TaskPriority.HIGH)
        text = await engine.submit(clean, page)  # a handle as an argument is a dependency and passes its result
        words = await engine.submit(count, text)
        print("words:", await words.result(timeout=60))
        print("attempts:", [attempt.outcome for attempt in (await page.info()).attempts])

        handles = await engine.map(count, ["one", "one two", "one two three"])
        async for done in engine.as_completed(handles):
            print("counted:", await done.result())

        once = await engine.submit(clean, "a   b", idempotency_key="order-17")
        again = await engine.submit(clean, "a   b", idempotency_key="order-17")
        print("the same task:", once.id == again.id)

        broken = await engine.submit(fetch, "https://example.org", max_retries=0)
        try:
            await broken.result()
        except ProcessingFailed as exc:
            print("failed:", exc)
        print("why:", await broken.explain())


if __name__ == "__main__":
    asyncio.run(main())
