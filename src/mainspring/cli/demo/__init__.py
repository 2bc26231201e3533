"""The data of `mainspring demo`: the documentation of the running Python, labelled questions, measures of answers.

Knows nothing of the engine: pure functions and data.
"""
