"""A worker to be killed: `python -m proof.kills.worker STORE STALL_S [ABLATION]`; works until SIGTERM."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from proof.kills.ablations import ABLATIONS
from proof.kills.handlers import engine_on

if __name__ == "__main__":
    for name in sys.argv[3:]:
        ABLATIONS[name]()
    asyncio.run(engine_on(Path(sys.argv[1]), worker=True, stall_s=float(sys.argv[2])).run())
