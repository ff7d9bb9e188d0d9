"""What lies in the folder of examples works. (A file of its own, beside that of the README, so that both can run at once.)"""

import json
import re
import socket

import pytest

from tests.test_readme import ROOT, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_script_of_the_readme_trains_over_three_hospitals_and_stops_them(tmp_path):
    told = run([str(ROOT / "examples" / "three-hospitals.sh"), "trial", "2"], tmp_path)
    assert "3 of 3 hospitals" in told
    assert told.count("none of them changed") == 3
    record = json.loads((tmp_path / "trial" / "federation" / "runs" / "heart-0001" / "run.json").read_text())
    assert len(record["rounds"]) == 2
    assert not list((tmp_path / "trial").glob("*/run/pid"))
    _, port = re.search(r'address = "(.*):(\d+)"', (tmp_path / "trial/federation/federation.toml").read_text()).groups()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(port)), timeout=5)
