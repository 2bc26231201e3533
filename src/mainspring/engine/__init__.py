"""The composition root and face: what users type. Assembles the rooms below; decides nothing itself."""

from mainspring.engine.engine import Engine
from mainspring.engine.handle import TaskHandle
from mainspring.engine.sync import SyncEngine, SyncHandle

__all__ = ["Engine", "SyncEngine", "SyncHandle", "TaskHandle"]
