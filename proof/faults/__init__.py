"""What the programs `disk` and `points` share: a disk that breaks, work on it, and the judge of what is left.

vfs         a file system under SQLite that keeps a log of all operations, and lets any of them fail
replay      what a death or a power cut at a moment of that log would have left
world       a worker and a caller on a real store, who note what they were told; `whole` is the same with an engine
scenarios   what they do; `scenes` sets it on a disk, from opening to closing
judge       what must hold in a file that is left, given what was told before; `tally` adds up
ablations   safeguards of the store that can be taken away
"""
