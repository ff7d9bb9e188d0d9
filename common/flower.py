"""The only place that touches what Flower does not export.

Flower moves its private parts every week or two, so `check_version` refuses any release but the one these were tried with.
Nothing here imports Flower before it is needed (half a second), and `quiet` has to run before anything does.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import FedwardError, UsageError

if TYPE_CHECKING:
    from flwr.app import Context, Message, RecordDict
    from flwr.supercore.run import Run as Run  # noqa: PLC0414 - re-exported for whoever implements a Grid

SUPPORTED = "1.41"
SILENT: Mapping[str, str] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Environment variables that keep Flower and Ray from calling out of the house."""


def check_version() -> None:
    """Refuse any Flower but the supported one.

    Raises
    ------
    UsageError
        When Flower is absent or of another release; the message says what to install.
    """
    try:
        installed = version("flwr")
    except PackageNotFoundError:
        installed = "none"
    if installed.split(".")[:2] != SUPPORTED.split("."):
        raise UsageError(
            f"Fedward needs Flower {SUPPORTED}, found {installed}; install it with: pip install 'flwr=={SUPPORTED}.*'"
        )


def quiet() -> None:
    """Keep Flower from calling home or installing packages, and its log to warnings; for this process and those it starts.

    Call it before Flower is imported. Where Flower itself started this process, telemetry and log are mended in place. ``FLWR_LOG_LEVEL`` in the
    environment has precedence for the log.
    """
    os.environ.update(SILENT)
    level = os.environ.setdefault("FLWR_LOG_LEVEL", "WARNING")
    if "flwr.supercore.telemetry" in sys.modules:
        from flwr.supercore import logger, telemetry

        telemetry.FLWR_TELEMETRY_ENABLED = SILENT["FLWR_TELEMETRY_ENABLED"]
        logger.update_console_handler(level=level.upper())


def message_bytes(message: "Message") -> bytes:
    """Write a message, its metadata included, as Flower's own protobuf bytes; at most 2 GiB, protobuf's limit."""
    from flwr.common.serde import message_to_proto

    return bytes(message_to_proto(message).SerializeToString())


def message_from(data: bytes) -> "Message":
    """Undo `message_bytes`.

    Raises
    ------
    FedwardError
        When the bytes are no Flower message.
    """
    from flwr.common.serde import message_from_proto
    from flwr.proto.message_pb2 import Message as Proto

    with _readable("message"):
        return message_from_proto(Proto.FromString(data))


def content_bytes(content: "RecordDict") -> bytes:
    """Write a message's content as Flower's own protobuf bytes."""
    from flwr.common.serde import recorddict_to_proto

    return bytes(recorddict_to_proto(content).SerializeToString())


def content_from(data: bytes) -> "RecordDict":
    """Undo `content_bytes`.

    Raises
    ------
    FedwardError
        When the bytes are no content of a Flower message.
    """
    from flwr.common.serde import recorddict_from_proto
    from flwr.proto.recorddict_pb2 import RecordDict as Proto

    with _readable("content"):
        return recorddict_from_proto(Proto.FromString(data))


def without_content(message: "Message") -> "Message":
    """Return the same message with nothing in it, for when its content travels by another way."""
    from flwr.app import RecordDict

    return with_content(message, RecordDict())


def with_content(message: "Message", content: "RecordDict") -> "Message":
    """Return the same message with another content."""
    from flwr.app.message.message import make_message

    return make_message(metadata=message.metadata, content=content)


def refused(message: "Message", code: str) -> "Message":
    """Return an answer with a code in the place of its content."""
    from flwr.app import Error
    from flwr.app.message.message import make_message

    return make_message(metadata=message.metadata, error=Error(1, code))


def context_bytes(context: "Context") -> bytes:
    """Write a context, its state included, as Flower's own protobuf bytes."""
    from flwr.common.serde import context_to_proto

    return bytes(context_to_proto(context).SerializeToString())


def context_from(data: bytes) -> "Context":
    """Undo `context_bytes`.

    Raises
    ------
    FedwardError
        When the bytes are no Flower context.
    """
    from flwr.common.serde import context_from_proto
    from flwr.proto.message_pb2 import Context as Proto

    with _readable("context"):
        return context_from_proto(Proto.FromString(data))


def stamp(message: "Message", message_id: str, run_id: int, source: int) -> "Message":
    """Set what a Grid sets on a message it takes over: its id, the run's id and the sender's node id. Return the same message."""
    message.metadata.__dict__.update(_message_id=message_id, _run_id=run_id, _src_node_id=source)
    return message


@contextmanager
def identity(run_id: int) -> Iterator[None]:
    """Within, this process is the server of run ``run_id``.

    Without an identity, which Flower's own launchers set, ``Message(content, node, kind)`` raises. It belongs to the whole process,
    so a second run in another thread would replace it; `stamp` sets the run again on every message.
    """
    from flwr.supercore.task_identity import TaskIdentity

    names = ("_task_id", "_run_id", "_node_id")
    before = [getattr(TaskIdentity, name) for name in names]
    try:
        for name, value in zip(names, (1, run_id, server_node()), strict=True):
            setattr(TaskIdentity, name, value)
        yield
    finally:
        for name, value in zip(names, before, strict=True):
            setattr(TaskIdentity, name, value)


def server_node() -> int:
    """Return the node id under which the server sends."""
    from flwr.common.constant import SUPERLINK_NODE_ID

    return SUPERLINK_NODE_ID


def load(reference: str) -> object:
    """Return what ``module:name`` refers to, loaded under the lock with which Flower loads apps.

    Flower's simulation loads the ClientApp in one thread while the ServerApp runs in another; an import of our own beside it would show Flower a half-loaded module.
    """
    from flwr.supercore.object_ref import load_app

    return load_app(reference, FedwardError, Path(__file__).parents[1])


def local_run(run_id: int, config: Mapping[str, bool | float | str]) -> "Run":
    """Return the description of a run that no SuperLink knows of, with the run's settings."""
    from flwr.supercore.run import Run

    return replace(Run.create_empty(run_id), override_config=dict(config))


@contextmanager
def _readable(noun: str) -> Iterator[None]:
    """Turn what Flower and protobuf raise for malformed bytes into one error that holds nothing of them."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        yield
    except (DecodeError, ValueError, TypeError, AttributeError, KeyError):
        raise FedwardError(f"these bytes are not a Flower {noun}; both sides need Flower {SUPPORTED}") from None
