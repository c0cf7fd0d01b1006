"""Calls to a store: one time limit for every kind, tries where they may help, one line for whatever goes wrong.

A call that is blocked in C++ or in a socket cannot be interrupted. Each call has a daemon thread of its own: after the
limit it is abandoned, and it does not keep the process alive.
"""

from __future__ import annotations

import errno
import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from sdxl_ray.errors import RunError, UserError
from sdxl_ray.io.storage.address import redacted, shown

T = TypeVar("T")
#: A transfer calls it after each block that it has moved.
Moved = Callable[[], None]

logger = logging.getLogger(__name__)

#: Tries of one call, and the seconds without progress after which there is no other one.
_TRIES, _PATIENCE_S = 4, 20.0
#: The seconds that one block of a transfer may take: some stores take 10 MiB before they return.
_BLOCK_S = 30.0
#: Seconds until the first line about the wait, and between lines.
_SILENT_S, _EVERY_S = 2.5, 5.0
_AT_ONCE = 4

#: What no second try mends: a wrong call, unless a library says with it that the network failed ...
_WRONG = (ImportError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError)
#: ... and what the store says of its files.
_NEVER = (
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
#: How stores refuse, in the messages of Arrow (AWS, Google, Azure) and of the libraries behind fsspec.
_REFUSED = re.compile(
    r"ACCESS_?DENIED|NO_?SUCH_?BUCKET|INVALID_?ACCESS_?KEY|SIGNATURE_?DOES_?NOT_?MATCH|(EXPIRED|INVALID)_?TOKEN"
    r"|UNRECOGNIZED_?CLIENT|PERMISSION_DENIED|UNAUTHENTICATED|[^_]NOT_FOUND|INVALID_ARGUMENT|AuthenticationException"
    r"|AuthenticationFailed|AuthorizationFailure|AuthorizationPermissionMismatch|ContainerNotFound|InvalidAuthentication"
    r"|OAuth2 access token|Unable to load lib|Forbidden|Unauthorized|HTTP status (code )?:?\s*40[134]",
    re.IGNORECASE,
)
#: What Arrow wraps around the sentence that helps.
_NOISE = re.compile(
    r"Unknown error: |N\d+Azure\w+E: | error_info=\{.*|google::cloud::Status\(|PerformWork\(\) - "
    r"|Retry policy exhausted, with a last message of "
)
_REASON_CHARS = 300


class _NoAnswerError(Exception):
    """The time is up; the call may still be blocked."""


class GivenUpError(Exception):
    """Raised by `Moved` in a transfer that was abandoned."""


def patiently(work: Callable[[Moved], T], what: str, url: str, *, transfer: bool = False, once: bool = False) -> T:
    """`work(moved)`, tried again while that may help and there is time. Raises RunError: `what`, and the cause.

    transfer: it moves blocks, which may take longer; once: it must not be tried again.

    The time limit counts from the last `moved()`. While it waits, it says so (see `waits_reported`).
    """
    quiet_since, limit = time.monotonic(), _BLOCK_S if transfer else _PATIENCE_S
    tries, problem = 1 if once else _TRIES, ""
    for attempt in range(tries):
        call = _Call(work, quiet_since)
        try:
            return call.result(limit, url)
        except (RunError, UserError):
            raise
        except _NoAnswerError:
            problem = problem or f"no answer in {limit:g} s"
            break
        except Exception as error:  # a file system of fsspec may raise anything
            problem, quiet_since = cause(error), call.moved_at
            late = time.monotonic() - quiet_since > _PATIENCE_S
            if late or attempt == tries - 1 or not _may_heal(error):
                break
            time.sleep(0.5 * 2**attempt)
    raise RunError(f"{what}: {redacted(problem, url)}")


def together(work: Callable[[str], None], names: Iterable[str]) -> None:
    """`work(name)` for each name, a few at once. Raises what the first one that fails raises, and begins no other.

    Daemon threads, since those of a pool keep a process that was interrupted until they have ended.
    """
    todo, failed = queue.SimpleQueue[str](), list[BaseException]()
    for name in names:
        todo.put(name)

    def run() -> None:
        while not failed:
            try:
                work(todo.get_nowait())
            except queue.Empty:
                return
            except BaseException as error:
                failed.append(error)

    threads = [threading.Thread(target=run, name="storage", daemon=True) for _ in range(min(_AT_ONCE, todo.qsize()))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException as error:  # Ctrl-C: the others begin nothing more
        failed.append(error)
        raise
    if failed:
        raise failed[0]


def cause(error: BaseException) -> str:
    """The first line that says something about an error, whatever library raised it."""
    text = getattr(error, "strerror", None) or str(error)
    lines = [line for raw in str(text).splitlines() if (line := " ".join(_NOISE.sub("", raw).split()))]
    if lines:
        return lines[0].rstrip(".") if len(lines[0]) <= _REASON_CHARS else f"{lines[0][:_REASON_CHARS]}…"
    if isinstance(error, NotImplementedError):
        return "a store of this kind cannot do that"
    before = error.__cause__ or error.__context__
    return cause(before) if before is not None else type(error).__name__


@contextmanager
def waits_reported(report: Callable[[str], None]) -> Iterator[None]:
    """Inside, lines about waits go to `report`; outside, they are warnings of this module's logger."""
    _waits.report, before = report, _waits.report
    try:
        yield
    finally:
        _waits.report = before


class _Waits:
    """What this process says about its waits: one line every few seconds, however many transfers wait."""

    def __init__(self) -> None:
        self.report: Callable[[str], None] = logger.warning
        self._lock, self._said = threading.Lock(), float("-inf")

    def say(self, text: str) -> None:
        with self._lock:
            if time.monotonic() - self._said < _EVERY_S:
                return
            self._said = time.monotonic()
        self.report(text)


_waits = _Waits()


class _Call(Generic[T]):
    """`work` in a thread of its own."""

    def __init__(self, work: Callable[[Moved], T], quiet_since: float) -> None:
        self.moved_at = quiet_since
        self._work, self._given_up = work, False
        self._ended = threading.Event()
        self._result: list[T] = []
        self._error: Exception | None = None
        threading.Thread(target=self._run, name="store call", daemon=True).start()

    def result(self, limit: float, url: str) -> T:
        """Raises _NoAnswerError `limit` seconds after the last progress, and whatever the work raises."""
        try:
            while not self._ended.wait(min(1.0, _SILENT_S, max(0.05, limit - time.monotonic() + self.moved_at))):
                quiet = time.monotonic() - self.moved_at
                if quiet >= limit:
                    raise _NoAnswerError
                if quiet >= _SILENT_S:
                    _waits.say(f"waiting for storage {shown(url)!r} ({quiet:.0f} s of {limit:g})")
        except BaseException:
            self._given_up = True
            raise
        if self._error is not None:
            raise self._error
        return self._result[0]

    def _run(self) -> None:
        try:
            self._result.append(self._work(self._moved))
        except Exception as error:
            self._error = error
        finally:
            self._ended.set()

    def _moved(self) -> None:
        if self._given_up:
            raise GivenUpError
        self.moved_at = time.monotonic()


def _may_heal(error: Exception) -> bool:
    """Whether another try may have another outcome: not after a refusal, nor where something does not exist."""
    if isinstance(error, _NEVER) or (isinstance(error, _WRONG) and not isinstance(error, OSError)):
        return False
    if getattr(error, "errno", None) in _FULL:
        return False
    response = getattr(error, "response", None)
    codes = [getattr(error, name, None) for name in ("status", "status_code", "code")]
    codes.append(getattr(response, "status_code", None))
    if any(isinstance(code, int) and 400 <= code < 500 and code not in (408, 425, 429) for code in codes):
        return False
    return _REFUSED.search(str(error)) is None
