"""Child processes: a fresh interpreter, a framed pipe, what it used, how it ended.

In: an argument list and bytes. Out: bytes, and one `Exit` for each child. This room knows neither tasks nor handlers, never
forks without exec, and never blocks the event loop.
"""

from mainspring.children.child import Child, Exit, Spawner
from mainspring.children.frames import FRAME_LIMIT, BlockingPipe
from mainspring.children.measure import Meter, Sample
from mainspring.children.parent import die_with_parent, kill_own_group, take_pipe

__all__ = [
    "FRAME_LIMIT",
    "BlockingPipe",
    "Child",
    "Exit",
    "Meter",
    "Sample",
    "Spawner",
    "die_with_parent",
    "kill_own_group",
    "take_pipe",
]
