"""Mixed load for a long time, through one process and through two: `python -m proof.soak`.

Each process watches itself; lines are fitted to what it sees after it has warmed up, and none may rise.
"""
