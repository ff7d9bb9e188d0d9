"""Flower's Grid over HTTP, with what it lacks: it knows of answers that will not come, and does not wait for the rest of one for ever."""

import math
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.superlink.grid.http_grid import HttpGrid

from common import flower, salt
from common.deployment import LARGEST_ANSWER

LOST, LATE = "lost", "late"
"""Reasons of the errors that stand for answers that will not come: their node is gone, or they were not whole in time."""
LOOK_SECONDS = 1.0
"""How often it is asked which nodes are there."""

_UNAVAILABLE = {
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.CLIENT_APP_CRASHED,
}


class PatientGrid(HttpGrid):
    """A message that a node's earlier process was given is lost with it, which Flower does not notice where the node is soon back.

    ``give_up_at`` is when, on the monotonic clock, an answer that has begun to arrive is not waited for any longer. Messages travel salted. Every answer passes ``screen``.
    """

    def __init__(self, address: str, token: str, screen: Callable[[Message], Message] | None = None) -> None:
        super().__init__(address, insecure=True, token=token)
        self._screen = screen or (lambda message: message)
        self.give_up_at = math.inf
        self._sent: dict[str, tuple[Message, str | None]] = {}
        self._pulling: Collection[str] = ()
        self._pulled = 0
        self._there: dict[int, str] = {}
        self._looked = -math.inf

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages, and remember which process of each node they are for."""
        sent = list(messages)
        names = list(super().push_messages(self._salted(sent)))
        self._look()
        for name, message in zip(names, sent, strict=True):
            self._sent[name] = flower.without_content(message), self._there.get(message.metadata.dst_node_id)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Pull answers; in place of one that will not come there is an error, `LOST` or `LATE`."""
        self._pulling, self._pulled = (names := set(message_ids)), 0
        found = list(super().pull_messages(set(names)))
        lost = [] if found else self._lost(names)
        if lost:
            # What a node had sent before it was lost counts.
            found = list(super().pull_messages(set(names))) or [self._unavailable(name) for name in lost]
        return [self._screen(salt.desalted(self._kept(message))) for message in found]

    def _salted(self, sent: list[Message]) -> list[Message]:
        """Salt what is sent; a content that several messages share, once."""
        salted = {id(message.content): salt.salt(message.content) for message in sent}
        return [flower.with_content(message, salted[id(message.content)]) for message in sent]

    def _connect(self) -> None:
        super()._connect()
        client: Any = self._client
        pull = client.PullObject
        client.PullObject = lambda request: self._in_time(request, pull(request))

    def _in_time(self, request: Any, response: Any) -> Any:
        """Return a part of an answer, or that it is not there yet; raise where it will not come."""
        awaited = response.object_found and not response.object_available
        if awaited and (time.monotonic() > self.give_up_at or self._lost(self._pulling)):
            raise ObjectPullError(request.object_id, "its sender is gone, or its time is over")
        self._pulled += len(response.object_content)
        if self._pulled > LARGEST_ANSWER:
            raise ObjectPullError(request.object_id, "it is larger than an answer may be")
        return response

    def _look(self) -> None:
        self._looked = time.monotonic()
        self._there = {node.node_id: node.last_activated_at for node in self.get_nodes()}

    def _lost(self, names: Iterable[str]) -> list[str]:
        """Return which messages were for processes that are no more."""
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._look()
        sent = [(name, *self._sent[name]) for name in names if name in self._sent]
        return [name for name, message, began in sent if self._there.get(message.metadata.dst_node_id) != began]

    def _kept(self, message: Message) -> Message:
        """Forget what is answered; give errors of Flower's own a code for a reason."""
        name = message.metadata.reply_to_message_id
        known = name in self._sent
        answer = self._unavailable(name) if known and _is_unavailable(message) else message
        self._sent.pop(name, None)
        return answer

    def _unavailable(self, name: str) -> Message:
        reason = LATE if time.monotonic() > self.give_up_at else LOST
        return Message(Error(ErrorCode.NODE_UNAVAILABLE, reason), reply_to=self._sent[name][0])


def _is_unavailable(message: Message) -> bool:
    return not message.has_content() and message.error.code in _UNAVAILABLE
