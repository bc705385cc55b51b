"""What can go wrong, by what follows from it: an error row, another try, a refusal, the end of a run.

Also which exceptions mean an outage: waiting may help, and the request is not at fault.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys

# Exit codes of every command: all rows are ok; failed; refused: the command, the configuration or the output is wrong;
# some rows are errors; try again (no machines, or a service was away); stopped by Ctrl-C; stopped by SIGTERM
OK, FAILED, REFUSED, SOME_ERRORS, RETRY, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 75, 130, 143


class DataError(ValueError):
    """The row itself is at fault: it ends as one row with `status=error`, and nobody retries it."""


class LoadError(RuntimeError):
    """A model does not load here and now, for want of memory or network for instance; another try may work."""


class RefusedError(ValueError):
    """What was asked for cannot be done as given; one sentence says what to change. Exit code 2."""


class SessionError(RefusedError):
    """The cluster cannot be joined, or cannot hold what is asked of it."""


class PoolError(RuntimeError):
    """A pool that cannot be kept alive: its model does not load, or its actors die as fast as they start."""


class StarvationError(RuntimeError):
    """No machine, or no service, for longer than the run may wait. The same command resumes later. Exit code 75."""


def refuse(problems: Exception | list[str]) -> int:
    """Print each sentence as an error; returns the exit code."""
    for line in str(problems).split("\n") if isinstance(problems, Exception) else problems:
        with contextlib.suppress(OSError):  # nobody reads it any more
            print(f"error: {visible(error_text(line))}", file=sys.stderr)
    return REFUSED


_MOST_TEXT = 8000  # characters of an error text
_USER = re.compile(r"(?<=://)[^/@\s'\"]+@")  # of a URI: scheme://user:password@host
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.I)  # names of environment variables


def redacted(text: str) -> str:
    """The text without the user part of any URI, and without the value of any variable that is named like a secret."""
    values = {value for name, value in os.environ.items() if _SECRET.search(name) and len(value) >= 8}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "***")
    return _USER.sub("***@", text)


def encodable(text: str) -> str:
    """The text with every lone surrogate, which no file can hold, replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def error_text(text: str) -> str:
    """An error's text as it may leave the process: encodable, without secrets, and of bounded length."""
    text = redacted(encodable(text))
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]} ... [{len(text) - _MOST_TEXT} characters more]"


def visible(text: str) -> str:
    """The text with control characters, which a terminal would obey, shown as \\x1b; lines and tabs stay."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)


def as_exception(error: BaseException) -> Exception:
    """`error`, or what stands for one that ends a process: a `SystemExit` of somebody's own code must not end ours."""
    return error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")


# by name: clients raise their own classes, which need not be installed here
_AWAY = {
    *("APIConnectionError", "APITimeoutError", "InternalServerError", "RateLimitError", "ServiceUnavailableError"),
    *("ConnectError", "ConnectTimeout", "NetworkError", "ReadTimeout", "RemoteProtocolError", "TimeoutException"),
    *("ConnectionError", "Timeout", "ChunkedEncodingError"),  # of requests
    *("MaxRetryError", "NewConnectionError", "ConnectTimeoutError", "ReadTimeoutError"),  # of urllib3
    *("URLError", "gaierror"),  # of the standard library
    *("ClientConnectionError", "ServerTimeoutError"),  # of aiohttp
    "LocalEntryNotFoundError",  # the hub cannot be reached, and the file is not in the cache
}
_SETTINGS = (ValueError, TypeError, ImportError, FileNotFoundError, AttributeError, KeyError)
_WAIT = (408, 429)  # HTTP: request time-out, too many requests


def is_away(error: BaseException) -> bool:
    """No connection, a time-out, a rate limit or an answer 5xx."""
    status = _status(error)
    if status is not None:
        return status in _WAIT or status >= 500
    names = {cls.__name__ for cls in type(error).__mro__}
    return isinstance(error, ConnectionError | TimeoutError) or bool(names & _AWAY)


def comes_from_away(error: BaseException | None) -> bool:
    """Whether the exception, or one that it was raised from, says that a service is away."""
    while error is not None:
        if is_away(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def will_fail_again(error: BaseException) -> bool:
    """Whether a model that did not load for this fails to load anywhere: a setting, a file or a package is wrong."""
    return isinstance(error, _SETTINGS) and not comes_from_away(error)


def _status(error: BaseException) -> int | None:
    """The HTTP status that an exception carries, itself or in its response."""
    for at in (error, getattr(error, "response", None)):
        for name in ("status_code", "status", "code"):
            value = getattr(at, name, None)
            if isinstance(value, int) and 100 <= value < 600:
                return value
    return None
