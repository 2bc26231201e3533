"""The way out of the store and back: claims come in, go to a lane's slot, and their outcomes return.

Knows stores and runners by their contracts only. What a task means is the business of `processors`.
"""
