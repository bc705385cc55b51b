"""What can go wrong, by what follows from it: an error row, another try, a refusal, the end of a run.

Also which exceptions mean an outage: waiting may help, and the request is not at fault.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import textwrap
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

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


class LimitError(RuntimeError):
    """The run has taken the time or the money that it may. Exit code 75."""


def refuse(problems: Exception | list[str]) -> int:
    """Print each sentence as an error; returns the exit code."""
    for line in str(problems).split("\n") if isinstance(problems, Exception) else problems:
        with contextlib.suppress(OSError):  # nobody reads it any more
            shown = f"error: {visible(error_text(line))}"
            width = shutil.get_terminal_size().columns if sys.stderr.isatty() else len(shown)
            print(*wrapped(shown, width), sep="\n", file=sys.stderr)
    return REFUSED


def wrapped(line: str, width: int) -> list[str]:
    """A line for a terminal of `width` columns: it continues below, further in; a word is never broken."""
    if len(line) <= width:
        return [line]
    inside = " " * (len(line) - len(line.lstrip()) + 4)
    return textwrap.wrap(line, width, subsequent_indent=inside, break_long_words=False, break_on_hyphens=False)


_MOST_TEXT = 8000  # characters of an error text
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.I)  # names of environment variables
_SECRET_KEY = re.compile(  # names of settings whose values are secrets
    r"(?:^|[-_.])(?:api[-_]?key|access[-_]?key(?:[-_]id)?|secret(?:[-_]?(?:access[-_]?)?key)?|passw(?:or)?d|credentials?|"
    r"authorization|(?:api|auth|access|bearer|hf|session)[-_]token)$|^(?:token|sig|signature)$",
    re.I,
)
_SECRETS = tuple(
    (re.compile(pattern), shown)
    for pattern, shown in (
        # of a URI: scheme://user:password@host; a password may hold a slash, a port is no password
        (r"(?<=://)(?:[^/\s'\"]+@|[^/@:\s'\"]+:(?!\d*(?:[/?#]|$))[^\s'\"]*@)", "***@"),
        (r"(?i)([?&](?:[\w.-]*(?:key|token|secret|password|credential|signature)[\w.-]*|sig)=)[^&\s'\"#]+", r"\1***"),
        (r"(?i)(authorization['\"]?\s*[:=]\s*['\"]?(?:(?:basic|bearer|token)\s+)?)[^\s'\",}]+", r"\1***"),
        (r"\b(Bearer\s+)[\w.~+/=-]{8,}", r"\1***"),
        (r"(?i)(\bapi[-_]?key['\"]?\s*[:=]\s*['\"]?)[^\s'\",}&*]{8,}", r"\1***"),
        (r"\b(?:sk-[\w-]{20,}|hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16})\b", "***"),
    )
)


_known: set[str] = set()  # secrets of this process that no pattern would know


def keep_secret(text: str) -> None:
    """Never show this text again: a key from a variable of any name, or what is sent in its place."""
    if len(text) >= 8:  # shorter ones would blot out words
        _known.add(text)


def redacted(text: str) -> str:
    """The text with *** for the user part of any URI, for what looks like a key or is called one, for the value of any
    environment variable that is named like a secret, and for what `keep_secret` was given."""
    values = {value for name, value in os.environ.items() if _SECRET.search(name) and len(value) >= 8} | _known
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "***")
    for pattern, shown in _SECRETS:
        text = pattern.sub(shown, text)
    return text


def redacted_values(value: Any) -> Any:
    """JSON values with every text redacted, and with *** for the texts under a key that is called like a secret."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {
            key: "***" if isinstance(item, str) and item and _SECRET_KEY.search(str(key)) else redacted_values(item)
            for key, item in value.items()
        }
    return [redacted_values(item) for item in value] if isinstance(value, list | tuple) else value


class RedactedStream:
    """A text stream that redacts what is written to it."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def encodable(text: str) -> str:
    """The text with every lone surrogate, which no file can hold, replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def error_text(text: str) -> str:
    """An error's text as it may leave the process: encodable, without secrets, and of bounded length."""
    kept = redacted(encodable(text[: 2 * _MOST_TEXT]))[:_MOST_TEXT]  # twice: no secret is cut before it is known
    return kept if len(text) <= _MOST_TEXT else f"{kept} ... [{len(text) - _MOST_TEXT} characters more]"


def visible(text: str) -> str:
    """The text with control characters, which a terminal would obey, shown as \\x1b; lines and tabs stay."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)


def require_one_of(key: str, value: object, allowed: Iterable[str]) -> None:
    """Raises ValueError for a setting that is none of its choices."""
    if value not in (known := list(allowed)):
        raise ValueError(f"{key} is {value!r}; it is one of {', '.join(known)}")


def as_exception(error: BaseException) -> Exception:
    """`error`, or what stands for one that ends a process: a `SystemExit` of somebody's own code must not end ours."""
    return error if isinstance(error, Exception) else RuntimeError(described(error))


def described(error: BaseException) -> str:
    """The exception's type and text; somebody's own class may raise when it is asked for its text."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return f"{type(error).__name__} (its text cannot be read)"


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
_SETTINGS = (
    *(ValueError, TypeError, ImportError, FileNotFoundError, AttributeError, LookupError, NameError, AssertionError),
    *(ArithmeticError, NotImplementedError, SyntaxError),
)
_WAIT = (408, 429)  # HTTP: request time-out, too many requests


def is_away(error: BaseException) -> bool:
    """No connection, a time-out, a rate limit or an answer 5xx."""
    if not isinstance(error, Exception):  # the code of a SystemExit is no HTTP status
        return False
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
    """Whether a model that did not load for this fails to load anywhere: a setting, a file or a package is wrong, or
    somebody's own code ends the process (`SystemExit`)."""
    ends = not isinstance(error, Exception)
    return ends or (isinstance(error, _SETTINGS) and not comes_from_away(error))


def is_sentence(error: BaseException) -> bool:
    """Whether this package raised it for people: a ValueError, or a LoadError, with a sentence that needs no place."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not (frames[-1].line or "").startswith("raise"):  # a call that failed is a fault of ours
        return False
    ours = Path(frames[-1].filename).is_relative_to(Path(__file__).parent)
    return ours and isinstance(error, ValueError | LoadError)


def _status(error: BaseException) -> int | None:
    """The HTTP status that an exception carries, itself or in its response."""
    for at in (error, getattr(error, "response", None)):
        for name in ("status_code", "status", "code"):
            value = getattr(at, name, None)
            if isinstance(value, int) and 100 <= value < 600:
                return value
    return None
