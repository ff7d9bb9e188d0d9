"""The local engine: a Flower ``Grid`` whose nodes are called in this process. The apps are the very ones that run over a network."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid

from common import flower

if TYPE_CHECKING:
    from common.flower import Run

Ask = Callable[[Message, Context], Callable[[], Message]]
"""Hands a message to its node; the answer is there when the function that comes back returns."""


class LocalGrid(Grid):
    """Messages to nodes of this process. A pull waits for the answer, so that nobody polls."""

    def __init__(self, ask: Ask, contexts: Mapping[int, Context]) -> None:
        self.contexts = dict(contexts)
        self._ask = ask
        self._waiting: dict[str, Callable[[], Message]] = {}
        self._run = flower.local_run(1, {})
        self._sent = 0

    def set_run(self, run: "Run") -> None:
        """Set the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> "Run":
        """Return the run that messages belong to."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message of this run."""
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Sequence[int]:
        """Return the numbers of all nodes."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Hand messages to their nodes; return the names under which the answers can be pulled."""
        names = []
        for message in messages:
            self._sent += 1
            name = str(self._sent)
            flower.stamp(message, name, self._run.run_id, flower.server_node())
            self._waiting[name] = self._ask(message, self.contexts[message.metadata.dst_node_id])
            names.append(name)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Wait for the named answers; each can be pulled once."""
        return [self._waiting.pop(name)() for name in message_ids if name in self._waiting]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and wait for all answers; nothing here can be late, so ``timeout`` has no effect."""
        del timeout
        return self.pull_messages(self.push_messages(messages))
