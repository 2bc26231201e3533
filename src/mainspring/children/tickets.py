"""Leave to begin with work that was sent ahead: numbers in a pipe from which both ends take.

The kernel gives each number to one of them, so that what a parent takes back has not begun for sure, even where its
child does not listen: it computes without giving up the interpreter, or was stopped by a signal.
"""

from __future__ import annotations

import os

_SIZE = 4  # bytes, big endian
_MOST = 1024
"""Numbers in the pipe at once: the smallest that a system makes (4 KiB) holds them, so that writing never waits."""


class Issuer:
    """The parent's end."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)  # for both: they share it
        self._last = 0
        self._unwritten = b""

    @property
    def descriptor(self) -> int:
        """What the child is to inherit."""
        return self._reading

    def issue(self) -> int:
        """Make leave for one more; returns its number, which goes with the work."""
        self._last += 1
        self._unwritten += self._last.to_bytes(_SIZE, "big")
        return self._last

    def give(self) -> None:
        """Give what was issued to the child: before the work, which is not begun without."""
        if self._unwritten:
            os.write(self._writing, self._unwritten)
            self._unwritten = b""

    def take_back(self) -> list[int]:
        """Return the numbers that nobody has begun with, in their order; nobody will any more."""
        self.give()
        return _numbers(self._reading, _MOST)

    def close(self) -> None:
        os.close(self._reading)
        os.close(self._writing)


class Holder:
    """The child's end."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._next = 0  # the last one that was taken from the pipe

    def may_begin(self, number: int) -> bool:
        """Whether the work with this number is still to be done here. To be asked once for each, in their order."""
        while self._next < number:
            taken = _numbers(self._descriptor, 1)
            if not taken:
                return False
            self._next = taken[0]
        return self._next == number


def _numbers(descriptor: int, most: int) -> list[int]:
    try:
        data = os.read(descriptor, most * _SIZE)
    except BlockingIOError:
        return []
    return [int.from_bytes(data[at : at + _SIZE], "big") for at in range(0, len(data), _SIZE)]
