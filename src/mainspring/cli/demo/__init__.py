"""The data of `mainspring demo`: the documentation of the running Python, labelled questions, and how well they are answered.

Knows nothing of the engine: pure functions and data.
"""
