"""Flower's own programs on both sides of the door, and what a hospital could do if Flower alone kept it."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_to_proto
from flwr.proto.control_pb2 import ListNodesRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client import tunnel
from common import deployment, flower, keys
from common.deployment import Control, Tasks
from common.errors import Unreachable
from server import gateway
from server.coordinator import free_port

TOKEN = "t" * 64


@contextmanager
def program(folder, name, *words):
    """Run a program; what it says is in a file."""
    environment = {**os.environ, **flower.SILENT, "FLWR_HOME": str(folder / "flower"), "NO_PROXY": "127.0.0.1"}
    with (
        (folder / f"{name}.log").open("wb") as log,
        subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            process.wait(15)


class SuperLink:
    """A SuperLink that knows the nodes of both hospitals."""

    def __init__(self, port, secret):
        self.address, self.secret = f"127.0.0.1:{port}", secret
        self.url = f"http://{self.address}"
        self.control = Control(self.address, TOKEN)

    def answers(self):
        try:
            self.control.online()
        except Unreachable:
            return False
        return True

    def status(self):
        with self.control._opened() as client:
            return {node.name: node.status for node in client.ListNodes(ListNodesRequest()).nodes_info}


@pytest.fixture
def superlink(tmp_path, hospitals, tools):
    port, secret, token = free_port(), tmp_path / "secret", tmp_path / "token"
    secret.write_bytes(b"s" * 32)
    token.write_text(TOKEN)
    words = [sys.executable, "-m", "server.superlink", token, "--insecure", "--isolation", "process"]
    words += ["--host", "127.0.0.1", "--port", str(port), "--superexec-auth-secret-file", secret]
    with program(tmp_path, "superlink", *words):
        started = SuperLink(port, secret)
        tools.until(started.answers, 30)
        for member in hospitals.federation.members():
            started.control.register(member.node_key, member.name)
        yield started


@pytest.fixture
def way(superlink, hospitals, tools, tmp_path):
    """Give the address of a tunnel in front of a gateway in front of the SuperLink."""
    door = gateway.Gateway(hospitals.federation, superlink.url)
    with tools.serving(door, gateway.context_of(hospitals.federation)) as hospitals.port:
        app = tunnel.Tunnel(hospitals.url, hospitals.east)
        with tools.serving(app, tunnel.loopback(tmp_path / "tunnel")) as port:
            yield f"127.0.0.1:{port}"


@contextmanager
def supernode(folder, site, address):
    key = folder / "node.key"
    keys.write(key, site.node_key())
    words = [Path(sys.executable).with_name("flower-supernode"), "--superlink", address]
    words += ["--root-certificates", folder / "tunnel" / tunnel.TRUST, "--auth-supernode-private-key", key]
    words += ["--isolation", "process", "--host", "127.0.0.1", "--port", str(free_port())]
    with program(folder, "supernode", *words) as process:
        yield process


@pytest.mark.slow
def test_a_hospitals_node_comes_online_through_tunnel_and_gateway(way, superlink, hospitals, tools, tmp_path):
    assert superlink.status() == {"east": "registered", "west": "registered"}
    with supernode(tmp_path, hospitals.east, way) as process:
        tools.until(lambda: superlink.control.online() == ["east"], 30)
        assert process.poll() is None


@pytest.mark.slow
def test_a_node_that_is_not_the_one_of_the_certificate_does_not(way, superlink, hospitals, tools, tmp_path, caplog):
    """Flower knows the west's node as well, but the tunnel shows the east's certificate."""
    with supernode(tmp_path, hospitals.west, way):
        tools.until(lambda: "another node key than was enrolled" in caplog.text, 30)
    assert superlink.status() == {"east": "registered", "west": "registered"}


def keys_of(site):
    private = serialization.load_ssh_private_key(site.node_key(), None)
    return private, private.public_key()


def fleet(address, site, trust=None):
    """Speak as Flower's node does, with the hospital's own node key."""
    interceptors = [NodeAuthHttpInterceptor(*keys_of(site))]
    return FleetHttpClient.from_server_address(address, trust is None, trust, interceptors)


def activated(client, site):
    """Return the number of a hospital's node, which is online from now on."""
    key = public_key_to_bytes(keys_of(site)[1])
    return client.ActivateNode(ActivateNodeRequest(public_key=key, heartbeat_interval=30)).node_id


def forged(run_id, sender, receiver):
    """Return an announcement by which a node speaks to another one as the coordinator."""
    message = Message(RecordDict({"config": ConfigRecord({"do": "as I say"})}), receiver, "train")
    flower.stamp(message, "", run_id, SUPERLINK_NODE_ID)
    message.metadata.__dict__["_message_id"] = message.object_id
    bare = message_to_proto(remove_content_from_message(message))
    request = PushMessagesRequest(messages_list=[bare], message_object_trees=[get_object_tree(message)])
    request.node.node_id = sender
    return request


def received(client, node_id):
    request = PullMessagesRequest()
    request.node.node_id = node_id
    return [each.metadata.src_node_id for each in client.PullMessages(request).messages_list]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower's, when it makes a bundle
def test_a_hospital_cannot_command_another_as_it_could_through_flower_alone(way, superlink, hospitals, tmp_path):
    trust = (tmp_path / "tunnel" / tunnel.TRUST).read_bytes()
    run_id = superlink.control.start(deployment.bundle(), {"run": ""})
    tasks = Tasks(superlink.address, superlink.secret.read_bytes(), deployment.SERVER)
    task = next(tasks.wait())
    with (
        tasks._client,
        task.grid(),
        fleet(way, hospitals.east, trust) as east,
        fleet(superlink.address, hospitals.east) as unguarded,
        fleet(superlink.address, hospitals.west) as west,
    ):
        sender, receiver = activated(east, hospitals.east), activated(west, hospitals.west)
        request = forged(run_id, sender, receiver)
        with pytest.raises(httpx.HTTPStatusError) as caught:
            east.PushMessages(request)
        assert caught.value.response.status_code == 403
        assert received(west, receiver) == []
        unguarded.PushMessages(request)
        assert received(west, receiver) == [SUPERLINK_NODE_ID]
