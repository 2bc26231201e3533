"""Child processes: a fresh interpreter, a framed pipe, what it used, how it ended.

In: an argument list and bytes. Out: bytes, and one `Exit` for each child. This room knows neither tasks nor handlers,
never forks without exec but in a fresh interpreter, for its guard, and never blocks the event loop. `child` is the
parent's side; `guard`, `frames`, `measure` and `parent` are what a child loads of it, so they are imported by their own
names: a child is ready the sooner.
"""
