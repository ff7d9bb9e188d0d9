"""The Flower ClientApp: a thin stub that hands each message to the hospital's worker and sends back its answer.

It imports neither TensorFlow nor data. Which worker answers is settled by the node, never by the run.
"""

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from client import secagg, service
from client.hospital import Hospital
from client.keeping import InContext, Keeping
from client.secagg import Shield
from client.worker import Worker
from common import messages
from common.errors import FedwardError, PolicyRefused, UpdateRejected
from common.messages import Reply

REFUSED, FAILED = 1, 2
"""Codes of errors that cross the border; the text is a code too, and details stay in the hospital's own log."""

_log = logging.getLogger(__name__)


Node = Callable[[Message, Context], Message]
"""Answers the messages of one node."""
Answer = Callable[[], Message]


def plainly(_message: Message, answer: Answer) -> Message:
    """Answer with nothing in between."""
    return answer()


@dataclass(frozen=True)
class Seat:
    """Where a node's messages are answered: the worker, the hospital that the node stands for, what stands between message and answer, what masks it there, and where the hospital keeps what lasts from round to round."""

    worker: Worker
    hospital: Hospital
    around: Callable[[Message, Answer], Message] = plainly
    shield: Shield | None = None
    keeping: Keeping = field(default_factory=InContext)

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message."""
        return self.around(message, lambda: _answer(self, message, context))


def guarded(node: Node) -> Node:
    """Return a node that answers with a code where ``node`` raises; what went wrong stays in the hospital's own log."""

    def handle(message: Message, context: Context) -> Message:
        try:
            return node(message, context)
        except FedwardError as error:
            _log.warning("request refused: %s", error)
            code = error.code if isinstance(error, UpdateRejected | PolicyRefused) else type(error).__name__
            return Message(Error(REFUSED, code), reply_to=message)
        except Exception:  # noqa: BLE001 - the border: whatever went wrong here, its text may hold a patient's value and must not travel
            _log.exception("request failed")
            return Message(Error(FAILED, "failed"), reply_to=message)

    return handle


def make_app(find: Callable[[Context], Node]) -> ClientApp:
    """Return the app of nodes that are found by ``find``."""
    app, handle = ClientApp(), guarded(lambda message, context: find(context)(message, context))
    app.train()(handle)
    app.evaluate()(handle)
    for kind in (messages.STATISTICS, messages.COMPARE, messages.KEYS, messages.SHARES):
        app.query(kind.partition(".")[2])(handle)
    return app


def _answer(seat: Seat, message: Message, context: Context) -> Message:
    request = messages.unpack_request(message.content)

    def clear() -> Reply:
        kind = message.metadata.message_type
        state = seat.keeping.load(kind, request, context)
        reply = seat.worker.answer(kind, seat.hospital, request, state)
        seat.keeping.keep(kind, request, context, state)
        return reply

    reply = secagg.answer(seat.shield, message, context, request, clear) if seat.shield else clear()
    return Message(messages.pack_reply(reply), reply_to=message)


def _find(context: Context) -> Node:
    """Find who answers for a node that Flower started: a hospital's worker behind its socket, or the harness, which is no part of the bundle."""
    if "worker" in context.node_config:
        return partial(service.ask, Path(str(context.node_config["worker"])))
    if "partition-id" in context.node_config:
        seat: Node = importlib.import_module("simulations.hospitals").seat_of(
            str(context.run_config["scenario"]), context
        )
        return seat
    raise FedwardError("this node has no worker; start it by 'fedward hospital start'")


app = make_app(_find)
