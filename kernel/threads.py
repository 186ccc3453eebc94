"""Threads for the user's synchronous code, so that it cannot stop the event loop.

A call that does not end in time is given up and ended: an exception is raised inside its thread.
What does not heed that (it hangs outside of Python) keeps its place for good, so their number is
bounded; the threads are daemons, so none keeps the process from ending.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from kernel.errors import Overloaded

Result = TypeVar("Result")


class _Ended(BaseException):
    """Raised inside a thread that has had its time."""


class _Call:
    """One call in a thread of its own."""

    def __init__(
        self,
        function: Callable[[], Any],
        loop: asyncio.AbstractEventLoop,
        done: asyncio.Future[Any],
    ) -> None:
        self._function = function
        self._loop = loop
        self._done = done
        self._lock = threading.Lock()
        self._running = True
        self._thread = threading.Thread(target=self._run, daemon=True, name="user-code")
        self._thread.start()

    def end(self) -> None:
        """Raises `_Ended` in the thread, if it is still in the user's code."""
        with self._lock:
            if self._running and self._thread.ident is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self._thread.ident), ctypes.py_object(_Ended)
                )

    def _run(self) -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            try:
                result = self._function()
            except BaseException as caught:  # noqa: BLE001 - whatever the user's code raises
                error = caught
            with self._lock:
                self._running = False
        except _Ended as caught:  # it was ended between the user's last line and ours
            error = caught
        try:
            self._loop.call_soon_threadsafe(self._settle, result, error)
        except RuntimeError:  # the loop is closed: nobody waits
            return

    def _settle(self, result: Any, error: BaseException | None) -> None:
        if self._done.done():
            return
        if error is None:
            self._done.set_result(result)
        elif isinstance(error, Exception) and not isinstance(error, StopIteration):
            self._done.set_exception(error)
        else:  # SystemExit and the like are not for our loop
            self._done.set_exception(RuntimeError(type(error).__name__))


class Threads:
    """Runs functions in at most ``most`` threads at once."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._room = asyncio.Semaphore(most)

    async def run(
        self, function: Callable[[], Result], seconds: float, *, patience: float | None = None
    ) -> Result:
        """What ``function`` gives.

        Raises:
            TimeoutError: it took longer than ``seconds``. Overloaded: no thread was free within
            ``patience`` (default: as many). What it raises; an exit of the program becomes
            `RuntimeError`.

        """
        try:
            async with asyncio.timeout(seconds if patience is None else patience):
                await self._room.acquire()
        except TimeoutError:
            raise Overloaded(
                f"all {self.most} threads for user code are busy", timedelta(seconds=1)
            ) from None
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        done.add_done_callback(self._free)
        try:
            call = _Call(function, loop, done)
        except BaseException:
            done.cancel()
            raise
        try:
            async with asyncio.timeout(seconds):
                result: Result = await asyncio.shield(done)
                return result
        except (TimeoutError, asyncio.CancelledError):
            if not done.done():
                call.end()
            raise

    def _free(self, done: asyncio.Future[Any]) -> None:
        self._room.release()
        if not done.cancelled():
            done.exception()  # nobody may be there to ask any more
