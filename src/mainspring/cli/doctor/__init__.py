"""`doctor`: facts of a store go in, findings come out.

`work.py` has the rules for all stores, `file.py` and `server.py` those of one kind, `looking.py` brings facts and rules
together, and `command.py` shows what came of it. Nothing here changes a store.
"""
