"""Results: who waits for them, and where their values are.

In come ended tasks from the store, out go plain Python values. Knows nothing of lanes or handlers.
"""
