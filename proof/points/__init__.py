"""A process that dies at each of its steps: `python -m proof.points`.

`walk` goes from step to step, `nursery` is the process that forks the children which die there.
"""
