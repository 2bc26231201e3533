"""A worker to be killed: `python -m proof.kills.worker STORE STALL_S [ABLATION]`; works until SIGTERM."""

from __future__ import annotations

import asyncio
import sys

from proof.kills.ablations import ABLATIONS
from proof.kills.handlers import started


async def main(store: str, stall_s: float) -> None:
    engine = await started(store, worker=True, stall_s=stall_s)
    await engine.run()


if __name__ == "__main__":
    for name in sys.argv[3:]:
        ABLATIONS[name]()
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
