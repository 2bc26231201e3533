"""Simulated worlds of engines: `python -m proof.simulation`; `ablations` takes away what keeps the promises in them.

The simulator itself is for users too: `mainspring.testing.simulator`, and `mainspring sim`.
"""
