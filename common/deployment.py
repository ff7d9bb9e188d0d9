"""What Fedward needs of a running Flower, beyond what Flower exports: the SuperLink's control and run-time services, and the SuperNode's.

Both programs run unmodified, with process isolation: they carry messages, and the processes that take part in a run are ours. The coordinator's own
process is the ServerApp of its runs, and a hospital's own process answers the messages of its node, so that at a hospital code that came with a run
is never executed. As in `common.flower`, all of this was tried with one release of Flower.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import FedwardError, Unreachable

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.serverapp import Grid

TOKEN_HEADER = "x-fedward-token"  # noqa: S105 - a header's name
POLL_SECONDS = 0.1
LARGEST_ANSWER = 1 << 30
"""Bytes of the largest answer of a hospital that is taken."""
FIRST_LOOK, PART_SECONDS = 0.02, 900.0
"""Seconds after which a part of a message that was not there is looked for again, and after which it is given up: its sender may be gone."""


@dataclass(frozen=True)
class Bundle:
    """What a run says it runs: Flower's app bundle, which hospitals approve by its SHA-256."""

    content: bytes

    @property
    def sha256(self) -> str:
        """Return the hash in hex."""
        return hashlib.sha256(self.content).hexdigest()


def bundle() -> Bundle:
    """Return the bundle of the installed packages; the same files give the same bytes."""
    from flwr.cli.build import build_fab_from_files

    root = Path(__file__).parents[1]
    files: dict[str, bytes | Path] = {"pyproject.toml": _PROJECT.encode()}
    for package in ("client", "common", "server"):
        files |= {path.relative_to(root).as_posix(): path for path in sorted((root / package).rglob("*.py"))}
    return Bundle(build_fab_from_files(files)[0])


_PROJECT = """[project]
name = "fedward"
version = "0.1.0"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "fedward"
fab-include = ["/client/**/*.py", "/common/**/*.py", "/server/**/*.py"]

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
run = ""
"""


class Control:
    """The operator's side of a SuperLink on this machine, which answers to the federation's token alone."""

    def __init__(self, address: str, token: str) -> None:
        self._address, self._token = address, token

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """Give a client for one question; nothing stays open between them."""
        from flwr.supercore.control.control_http_client import ControlHttpClient
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

        client = ControlHttpClient.from_server_address(
            self._address,
            insecure=True,
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor("flwr CLI"), _Token(self._token)],
        )
        try:
            with _reached():
                yield client
        finally:
            client.close()

    def register(self, public_key: str, name: str) -> None:
        """Let a node take part, by its public key as OpenSSH writes it; one that does so already stays as it is."""
        from cryptography.hazmat.primitives.serialization import load_ssh_public_key
        from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest
        from flwr.supercore.primitives.asymmetric import public_key_to_bytes

        known = public_key_to_bytes(load_ssh_public_key(public_key.encode()))  # type: ignore[arg-type]
        with self._opened() as client:
            # Asked first: Flower writes an error into its log where it knows the key.
            if known not in {node.public_key for node in client.ListNodes(ListNodesRequest()).nodes_info}:
                client.RegisterNode(RegisterNodeRequest(public_key=known, name=name))

    def online(self) -> list[str]:
        """Return the names of the nodes that are connected."""
        from flwr.proto.control_pb2 import ListNodesRequest

        with self._opened() as client:
            nodes = client.ListNodes(ListNodesRequest()).nodes_info
        return sorted(node.name for node in nodes if node.status == "online")

    def start(self, content: Bundle, config: Mapping[str, str]) -> int:
        """Begin a run; return Flower's number for it."""
        from flwr.common.serde import fab_to_proto, user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.supercore.fab import Fab

        request = StartRunRequest(
            fab=fab_to_proto(Fab(content.sha256, content.content, {})),
            override_config=user_config_to_proto(dict(config)),
        )
        with self._opened() as client:
            return int(client.StartRun(request).run_id)

    def stop(self, run_id: int) -> None:
        """End a run."""
        from flwr.proto.control_pb2 import StopRunRequest

        with self._opened() as client:
            client.StopRun(StopRunRequest(run_id=run_id))


class _Token:
    """Puts the operator's token on every request."""

    def __init__(self, token: str) -> None:
        self._token = token

    def intercept(self, context: Any, call_next: Callable[[Any], Any]) -> Any:
        context.request.headers[TOKEN_HEADER] = self._token
        return call_next(context)


class Tasks:
    """Work that waits at a SuperLink or SuperNode for a process to take it up: a run's ServerApp, or a message to a node."""

    def __init__(self, address: str, secret: bytes, kind: str) -> None:
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
        from flwr.supercore.runtime import RuntimeHttpClient

        signing = SuperExecAuthHttpInterceptor(
            master_secret=secret, protected_methods={"/flwr.proto.Runtime/AcquireTask"}
        )
        self._address, self._kind = address, kind
        self._next: Task | None = None
        self._looking = threading.Lock()
        self._client = RuntimeHttpClient.from_server_address(
            address,
            insecure=True,
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor("SuperExec"), signing],
        )

    def close(self) -> None:
        """Close the connection; work that was taken up keeps its own."""
        self._client.close()

    def take(self) -> "Task | None":
        """Take the oldest piece of work; None where there is none.

        Raises
        ------
        Unreachable
            When Flower's program does not answer.
        """
        from flwr.proto.runtime_pb2 import AcquireTaskRequest

        with _reached():
            found = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[self._kind]))
        return Task(self._address, found.token, found.task.run_id) if found.token else None

    def wait(self) -> Iterator["Task"]:
        """Yield work as it comes, for ever; a Flower that does not answer is waited for."""
        pause = POLL_SECONDS
        while True:
            try:
                task, self._next = self._next or self.take(), None
                pause = POLL_SECONDS
            except Unreachable:
                task, pause = None, min(2 * pause, 5.0)
            if task:
                yield task
            else:
                time.sleep(pause)

    def more(self) -> bool:
        """Tell whether more work has come, which `wait` will yield next."""
        with self._looking, suppress(Unreachable):
            self._next = self._next or self.take()
        return self._next is not None


SERVER, CLIENT = "flwr-serverapp", "flwr-clientapp"
"""Kinds of work."""


@dataclass(frozen=True)
class Task:
    """One piece of work that this process has taken up; its token opens what belongs to it, and nothing else."""

    address: str
    token: str
    run_id: int

    @contextmanager
    def message(self, more: Callable[[], bool] = lambda: False) -> Iterator["Received"]:
        """Give the message to answer; while the block runs, the node knows that somebody works on it.

        A node has one message at a time. When its run ends while the parts arrive, it gives that one up without a word, and the parts never come: so where
        there is ``more`` for it, what was awaited is void.

        Raises
        ------
        FedwardError
            When the message never became whole.
        """
        from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
        from flwr.supernode.runtime import run_clientapp as flower

        with _client(self) as client:
            pull = client.PullObject

            def part(request: Any) -> Any:
                response = pull(request)
                if response.object_found and not response.object_available and more():
                    raise ObjectPullError(request.object_id, "void")
                return response

            client.PullObject = part
            try:
                message, context, _, fab = flower.pull_task_input(client)
            except ObjectPullError:
                # Otherwise the node sends an error in its place a minute later, and keeps the next answer back meanwhile.
                flower.push_task_output(client, None, "failed", "no message")
                raise FedwardError("a message never became whole; its run is over") from None
            received = Received(message, context, Bundle(fab.content))
            yield received
            if received.reply:
                flower.push_message(client, received.reply, context)
            flower.push_task_output(
                client, context, *(("completed", "") if received.reply else ("failed", "no answer"))
            )

    @contextmanager
    def grid(self, screen: "Callable[[Message], Message] | None" = None) -> Iterator["Grid"]:
        """Give the Grid of the run, whose answers pass ``screen``; at the end of the block the run is over, well or, after an error, not."""
        from flwr.common.serde import run_from_proto
        from flwr.proto.runtime_pb2 import PullTaskInputRequest, PushTaskOutputRequest

        from common import flower
        from common.grid import PatientGrid

        with _reached(), _client(self) as client:
            given = client.PullTaskInput(PullTaskInputRequest())
            grid = PatientGrid(self.address, self.token, screen)
            grid.set_run(run_from_proto(given.run))
            ended = PushTaskOutputRequest(context=given.context, sub_status="failed", details="ended by an error")
            try:
                with flower.identity(self.run_id):
                    yield grid
                ended = PushTaskOutputRequest(context=given.context, sub_status="completed")
            finally:
                _tell_once(client, ended)
                grid.close()


@dataclass
class Received:
    """A message with its node's context and the bundle of its run, and room for the answer."""

    message: "Message"
    context: "Context"
    bundle: Bundle
    reply: "Message | None" = None


@contextmanager
def _client(task: Task) -> Iterator[Any]:
    """Open a piece of work and send signs of life for it."""
    from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
    from flwr.supercore.inflatable.inflatable_utils import pull_objects
    from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
    from flwr.supercore.retry import make_simple_http_retry_invoker
    from flwr.supercore.runtime import RuntimeHttpClient

    # Messages are announced before their parts have arrived; Flower then waits a second before it looks again, at every hop.
    limits = {"initial_backoff": FIRST_LOOK, "backoff_cap": 1.0, "max_time": PART_SECONDS}
    pull_objects.__kwdefaults__ = {**(pull_objects.__kwdefaults__ or {}), **limits}
    client = RuntimeHttpClient.from_server_address(
        task.address,
        insecure=True,
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor("flwr-clientapp"), RuntimeTokenHttpInterceptor(task.token)],
        retry_invoker=make_simple_http_retry_invoker(),
    )
    life = HeartbeatSender(make_task_heartbeat_fn_http(client))
    life.start()
    try:
        yield client
    finally:
        life.stop()
        client.close()


def _tell_once(client: Any, ended: Any) -> None:
    """Tell Flower how a run ended, where it can be told: whoever stops a run does not wait for a Flower that is gone, and what was trained is saved by then."""
    import httpx
    from flwr.supercore.run import RunNotRunningException

    client._retry_invoker.max_tries = 1  # noqa: SLF001 - as Flower's own launcher does when it ends
    with suppress(httpx.HTTPError, RunNotRunningException):
        client.PushTaskOutput(ended)


@contextmanager
def _reached() -> Iterator[None]:
    """Turn what an HTTP client raises into errors that a user can mend."""
    import httpx
    from flwr.supercore.run import RunNotRunningException

    try:
        yield
    except RunNotRunningException:
        raise FedwardError("Flower has ended this run, as it does when it hears nothing of it for a minute") from None
    except httpx.TransportError:
        raise Unreachable("Flower does not answer on this machine; is it running?") from None
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        hint = "; the federation's token is not the one it was started with" if code == httpx.codes.FORBIDDEN else ""
        raise FedwardError(f"Flower refused {error.request.url.path} with {code}{hint}") from None
