"""Moving a whole store into another one, of whatever kind: page by page, with its place noted where the pages go.

In: two ends, a file or a server each, on which nobody lives. Out: rows that are equal, to the last one. What leads up
to a move, and what comes after it, is the command's (`cli/moving.py`).
"""
