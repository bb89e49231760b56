"""An asyncio event loop in a thread of its own.

Python runs signal handlers in the main thread. If the loop ran there, Ctrl-C could strike inside the loop or a library,
which may swallow it or wrap it in an error of its own. Here it strikes only the wait for a result.
"""

import asyncio
from collections.abc import Coroutine
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for a thread that waits for their results."""

    def __init__(self) -> None:
        """Start the thread."""
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="ltmia endpoint", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and return its result; a signal while waiting cancels the coroutine."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # nothing to do if it has ended

    def close(self) -> None:
        """Cancel all that still runs, and end the thread."""
        self.run(cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def cancel_others() -> None:
    """Cancel every other task of the loop, and wait until all have ended."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
