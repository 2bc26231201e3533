"""Where users test their own handlers: a real engine in virtual time, in a process that may die.

In: a user's engine or handlers, and a scenario. Out: whatever the test looks at. It stands on the simulator's loop,
machine and threads; `mainspring.testing.plugin` hands it to tests.
"""
