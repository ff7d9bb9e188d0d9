import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import metadata

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import Context as ProtoContext
from flwr.proto.transport_pb2 import Scalar
from flwr.supercore.object_ref import load_app
from hypothesis import given
from hypothesis import strategies as st

from common import flower
from common.errors import FedwardError, UsageError
from common.wire import from_record, to_record


def content():
    arrays = {"delta": np.arange(5, dtype=np.float32), "places": np.array([1, 2], np.uint32)}
    return RecordDict(
        {
            "arrays": to_record(arrays),
            "config": ConfigRecord({"a": True, "b": "ü", "c": [1.5, 2.5]}),
            "metrics": MetricRecord({"num-examples": 3}),
        }
    )


@pytest.fixture
def message():
    with flower.identity(run_id=7):
        sent = Message(content(), 12, "train", group_id="3", ttl=60)
    return flower.stamp(sent, "id-1", 7, flower.server_node())


class TestBytes:
    def test_a_message_comes_back_whole(self, message):
        back = flower.message_from(flower.message_bytes(message))
        assert back.metadata == message.metadata
        assert back.content == message.content
        np.testing.assert_array_equal(from_record(back.content["arrays"])["delta"], np.arange(5))

    def test_an_error_reply_comes_back(self, message):
        reply = Message(Error(1, "refused"), reply_to=message)
        back = flower.message_from(flower.message_bytes(reply))
        assert (back.has_content(), back.error.code, back.error.reason) == (False, 1, "refused")

    def test_they_are_flowers_own(self, message):
        assert flower.message_bytes(message) == message_to_proto(message).SerializeToString()

    def test_a_context_comes_back_whole(self):
        context = Context(
            7, 12, {"partition-id": 3}, content(), {"scenario": "heart", "rounds": 3, "x": 0.5, "y": False}
        )
        assert flower.context_from(flower.context_bytes(context)) == context

    @given(st.binary(max_size=200))
    @pytest.mark.fault(9, passes_when="any bytes that are no message are one error")
    def test_any_other_bytes_are_one_error(self, data):
        for read in (flower.message_from, flower.context_from):
            with suppress(FedwardError):  # a few bytes do make a message
                read(data)

    @given(st.data())
    @pytest.mark.fault(9, passes_when="a damaged message is read or refused")
    def test_a_damaged_message_is_read_or_refused(self, data):
        with flower.identity(run_id=7):
            whole = bytearray(flower.message_bytes(Message(content(), 12, "train")))
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place] = data.draw(st.integers(0, 255))
        with suppress(FedwardError):  # some damage leaves a message
            flower.message_from(bytes(whole[: data.draw(st.integers(place, len(whole)))]))

    def test_a_value_that_is_not_set_is_refused(self):
        unset = ProtoContext(node_config={"partition-id": Scalar()}).SerializeToString()
        with pytest.raises(FedwardError, match="not a Flower context"):
            flower.context_from(unset)

    def test_nothing_is_no_message(self):
        with pytest.raises(FedwardError, match="not a Flower message"):
            flower.message_from(b"")


class TestAddresses:
    def test_a_stamp_sets_what_a_grid_sets(self, message):
        meta = message.metadata
        assert (meta.message_id, meta.run_id, meta.src_node_id, meta.dst_node_id, meta.group_id) == (
            "id-1",
            7,
            1,
            12,
            "3",
        )

    def test_a_reply_finds_its_way_back(self, message):
        meta = Message(content(), reply_to=message).metadata
        assert (meta.reply_to_message_id, meta.run_id, meta.src_node_id, meta.dst_node_id) == ("id-1", 7, 12, 1)

    def test_an_identity_ends_with_its_block_even_after_an_error(self):
        def fail():
            with flower.identity(run_id=2):
                assert Message(RecordDict(), 3, "train").metadata.run_id == 2
                raise ZeroDivisionError

        with flower.identity(run_id=1):
            with pytest.raises(ZeroDivisionError):
                fail()
            assert Message(RecordDict(), 3, "train").metadata.run_id == 1
        with pytest.raises(RuntimeError):
            Message(RecordDict(), 3, "train")

    def test_a_local_run_keeps_a_copy_of_its_settings(self):
        config = {"scenario": "heart"}
        run = flower.local_run(7, config)
        config["scenario"] = "other"
        assert (run.run_id, run.override_config) == (7, {"scenario": "heart"})


class TestLoad:
    def test_flowers_own_loading_beside_it_finds_the_module_whole(self, tmp_path, monkeypatch):
        (tmp_path / "slow_to_load.py").write_text("import time\ntime.sleep(0.5)\napp = 'whole'\n")
        monkeypatch.syspath_prepend(tmp_path)
        with ThreadPoolExecutor() as pool:
            ours = pool.submit(flower.load, "slow_to_load:app")
            while "slow_to_load" not in sys.modules:
                time.sleep(0.01)
            assert load_app("slow_to_load:app", ImportError) == "whole"
            assert ours.result() == "whole"
        del sys.modules["slow_to_load"]


class TestVersion:
    def test_the_installed_release_is_supported(self):
        flower.check_version()

    @pytest.mark.parametrize("other", ["1.40.9", "1.42.0", "2.41.0", "1.4.1", "1.410.0"])
    def test_another_is_refused_with_what_to_install(self, other, monkeypatch):
        monkeypatch.setattr(flower, "version", lambda _: other)
        with pytest.raises(UsageError, match=rf"found {other}; install it with: pip install 'flwr==1.41\.\*'"):
            flower.check_version()

    def test_none_is_refused(self, monkeypatch):
        def absent(name):
            raise metadata.PackageNotFoundError(name)

        monkeypatch.setattr(flower, "version", absent)
        with pytest.raises(UsageError, match="found none"):
            flower.check_version()


def run(script):
    names = (*flower.SILENT, "FLWR_LOG_LEVEL")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.run([sys.executable, "-c", script], env=clean, capture_output=True, text=True, check=True)


class TestQuiet:
    @pytest.mark.parametrize(
        "first",
        [
            "from common import flower; flower.quiet(); import flwr.app",
            "import flwr.app; from common import flower; flower.quiet()",
        ],
    )
    def test_before_or_after_the_import_nothing_calls_home_or_chatters(self, first):
        script = f"""
{first}
import os
from logging import INFO, WARNING
from flwr.supercore import log, telemetry
log(INFO, "chatter")
log(WARNING, "trouble")
print(telemetry.FLWR_TELEMETRY_ENABLED, *(os.environ[name] for name in flower.SILENT))
"""
        done = run(script)
        assert done.stdout.split() == ["0", "0", "1", "1", "0"]
        assert "trouble" in done.stderr
        assert "chatter" not in done.stderr

    def test_it_imports_nothing_heavy(self):
        script = "import sys; from common import flower, wire; flower.quiet(); flower.check_version(); print('flwr' in sys.modules, 'tensorflow' in sys.modules)"
        assert run(script).stdout.split() == ["False", "False"]
