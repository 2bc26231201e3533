"""A user's module, as `mainspring worker` imports it. Its engine names no file and works on the default one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from mainspring import Context, Engine, ModelInput, ModelOutput, Permanent

engine = Engine()


class Parrot:
    """A model that a user registers."""

    def infer(self, inputs: list[ModelInput]) -> list[Any]:
        return [item.text for item in inputs]


engine.models.register("parrot", Parrot())


@engine.task
def ask(text: str) -> Any:
    """Use what belongs to the module's own engine."""
    with engine.models.acquire("parrot") as model:
        (answer,) = model.infer_batch([ModelInput(text=text)], {})
    return answer.outputs if isinstance(answer, ModelOutput) else str(answer)


@engine.task
def where() -> str:
    """The file that the module's own engine works on."""
    return str(engine.path)


@engine.task(cache="1h", version="v2")
def shout(text: str) -> str:
    return text.upper()


@engine.task(timeout="1h", retry=7)
async def resize(width: int, height: int = 3) -> dict[str, int]:
    return {"area": width * height}


@engine.task
async def hold(until: str, ctx: Context) -> str:
    """Run until a file appears."""
    ctx.progress(3, 4)
    while not Path(until).exists():  # noqa: ASYNC110, ASYNC240 - another process makes it
        await asyncio.sleep(0.01)
    return "let go"


@engine.task
def size(data: bytes) -> int:
    return len(data)


@engine.task
def refuse(why: str) -> None:
    raise Permanent(why)


@engine.task
def give(kind: str) -> Any:
    import numpy as np

    return {"bytes": b"\x00\xff", "array": np.arange(3, dtype="float32"), "text": "plain"}[kind]


@engine.task(lane="process")
def in_child(n: int) -> int:
    return n + 1
