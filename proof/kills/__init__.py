"""Real processes on one file, killed, stopped and drained at random moments: `python -m proof.kills`.

Workers run handlers of all lanes, submitters hand in work of all kinds, a killer takes them down and starts them again.
Handlers note in a ledger when they begin and end, submitters note what they were told. When all is quiet again, the
store must agree with both.
"""
