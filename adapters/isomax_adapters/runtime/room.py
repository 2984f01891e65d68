"""A bound on what threads that decode ahead may hold."""

import threading


class Room:
    """Room for decoded pixels, given out in the order of the inputs.

    The next input always gets it in the end: what is larger than all of it, once it is empty.
    """

    def __init__(self, pixels: int) -> None:
        self._pixels = pixels
        self._held: dict[int, int] = {}
        self._next = 0
        self._closed = False
        self._changed = threading.Condition()

    def enter(self, number: int, pixels: int) -> None:
        """Wait for the turn of an input, and for its room; it enters once."""
        with self._changed:
            if number < self._next:
                return
            self._changed.wait_for(
                lambda: self._closed or (number == self._next and self._fits(pixels))
            )
            if self._closed:
                raise InterruptedError("nobody waits for the image any more")
            self._next += 1
            self._held[number] = pixels
            self._changed.notify_all()

    def held_by(self, number: int) -> int:
        with self._changed:
            return self._held[number]

    def shrink(self, number: int, pixels: int) -> None:
        """What is left of an input that has entered, if that is less."""
        with self._changed:
            self._held[number] = min(pixels, self._held[number])
            self._changed.notify_all()

    def leave(self, number: int) -> None:
        with self._changed:
            del self._held[number]
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _fits(self, pixels: int) -> bool:
        held = sum(self._held.values())
        return not pixels or not held or held + pixels <= self._pixels
