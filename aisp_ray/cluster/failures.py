"""What can go wrong with a call or an actor, sorted by what is to be done about it.

An actor sorts its own exceptions and sends a `CallError` across, so that the driver needs no model library to read it:

    data      the row is at fault: an error row, never retried
    broken    the process can no longer be used (CUDA fault, dead engine thread): replaced, the call goes elsewhere
    service   something that the model talks to is away (connection, rate limit): waited for, with growing pauses
    unknown   anything else: tried once more elsewhere, then an error row

Ray adds `lost` (the process or its node is gone), `preempted` (the node was taken away) and `unavailable` (cannot be
reached now).
"""

from __future__ import annotations

import re
import traceback

import ray.exceptions as rx

from aisp_ray.errors import DataError, described, is_away, is_sentence, redacted, will_fail_again


class CallError(Exception):
    """An exception of a model, sorted and in words, so that it can cross to a process without its libraries."""

    def __init__(self, kind: str, text: str):
        super().__init__(kind, text)
        self.kind = kind
        self.text = text

    def __str__(self) -> str:
        return self.text


_CUDA = re.compile(
    r"CUDA error|device-side assert|illegal memory access|CUBLAS_STATUS|CUDNN_STATUS|NCCL error|uncorrectable ECC", re.I
)


def sort_error(error: BaseException) -> Exception:
    """The exception that an actor sends instead of `error`: a `DataError` as it is, anything else as `CallError`."""
    if isinstance(error, DataError):
        return DataError(redacted(str(error)))
    if isinstance(error, CallError):
        return error
    names = {cls.__name__ for cls in type(error).__mro__}
    text = redacted(described(error))  # here: the driver need not have this node's secrets
    if _CUDA.search(text) or "AcceleratorError" in names:
        return CallError("broken", text)
    if is_away(error):
        return CallError("service", text)
    where = traceback.extract_tb(error.__traceback__)
    place = f" ({where[-1].filename.rsplit('/', 1)[-1]}:{where[-1].lineno})" if where else ""
    return CallError("unknown", text + place)


def sort_load_error(error: BaseException) -> CallError:
    """Why a model did not load: `settings` will fail again anywhere, `load` may not.

    A sentence of this package is all there is to say; of any other exception the place is needed, too.
    """
    kind = "settings" if will_fail_again(error) else "load"
    if is_sentence(error):
        return CallError(kind, redacted(str(error)))
    text = f"{described(error)}\n{''.join(traceback.format_exception(error))}"
    return CallError(kind, redacted(text))


def read_error(error: BaseException) -> tuple[str, str]:
    """(kind, one line of text) of what awaiting an actor's reply raised on the driver."""
    cause = error.cause if isinstance(error, rx.RayTaskError) else error
    if isinstance(cause, DataError):
        return "data", str(cause)
    if isinstance(cause, CallError):
        return cause.kind, cause.text
    if isinstance(error, rx.ActorUnavailableError):
        return "unavailable", "the actor cannot be reached"
    if isinstance(error, rx.RayActorError):
        return ("preempted" if error.preempted or _node_gone(error) else "lost"), _last_words(error)
    if isinstance(error, rx.ObjectLostError | rx.NodeDiedError | rx.WorkerCrashedError | rx.GetTimeoutError):
        return "unavailable", f"{type(error).__name__}: the reply was lost"
    if isinstance(error, rx.OutOfMemoryError):
        return "lost", "the node ran out of memory and Ray ended the process"
    return "unknown", described(cause)


def _node_gone(error: rx.RayActorError) -> bool:
    text = str(error)
    return "node was terminated" in text or "node has died" in text or "owner's node has crashed" in text


def _last_words(error: rx.RayActorError) -> str:
    """What Ray says last, without its list of common causes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    return last.split(" Some common causes include")[0].split(" Worker exit detail:")[0][:300]
