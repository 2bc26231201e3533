"""The proof programme: what docs/guarantees.md promises, tried against faults that tests of single rooms can't make.

Each program prints its seed, its figures and what was wanted of them, and fails when one is not met; `python -m proof`
runs them all at full size. None of it is part of the package.
"""
