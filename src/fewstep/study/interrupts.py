"""Ctrl-C that never falls between two halves of a change: heeded at once where work waits, else at the next stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Between `with Interrupts() as stop:` signals set `stop.asked`; inside `with stop.here():` they raise at once.

    A second one raises wherever it falls. Outside the main thread, signals are left alone.
    """

    def __init__(self) -> None:
        self.asked, self._open = False, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on(self, _number: int, _frame: Any) -> None:
        again, self.asked = self.asked, True
        if self._open or again:
            raise KeyboardInterrupt

    @contextmanager
    def here(self) -> Generator[None]:
        """Where an interrupt may fall."""
        self.check()
        self._open = True
        try:
            yield
        finally:
            self._open = False

    def check(self) -> None:
        """Raise the interrupt that was asked for."""
        if self.asked:
            raise KeyboardInterrupt
