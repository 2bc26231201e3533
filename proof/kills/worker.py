"""A worker to be killed: `python -m proof.kills.worker STORE STALL_S [GUARD]`; works until SIGTERM."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from proof.kills.guards import GUARDS
from proof.kills.handlers import engine_on

if __name__ == "__main__":
    for guard in sys.argv[3:]:
        GUARDS[guard]()
    asyncio.run(engine_on(Path(sys.argv[1]), worker=True, stall_s=float(sys.argv[2])).run())
