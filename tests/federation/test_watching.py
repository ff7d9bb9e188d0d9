"""Health, figures and the check before the start, of real programs that run."""

import json
import urllib.error
import urllib.request

import pytest

from tests.exposition import parsed
from tests.federation.processes import CELL, HOSPITALS, NAME, NUMBER, here, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),  # where Flower builds a bundle
]


def page(folder, name):
    """Return status and text of one of the two pages of a folder's programs."""
    port = (folder / "run" / "health").read_text()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/{name}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_where_all_runs_both_sides_are_healthy_and_pass_the_check(running):
    for hospital in HOSPITALS:
        told = here("hospital", "check", running.site(hospital), "--json")
        assert [row["check"] for row in told["checks"]][-3:] == ["gateway", "release", "clock"]
        assert not [row for row in told["checks"] if row["level"] == "FAIL"]
        assert page(running.site(hospital), "health")[0] == 200
    told = here("server", "check", running.server, "--listen", f"127.0.0.1:{running.port}", "--json")
    assert "this federation's gateway listens" in {row["check"]: row["text"] for row in told["checks"]}["port"]
    status, text = page(running.server, "health")
    assert (status, set(json.loads(text)["programs"])) == (200, {"superlink", "gateway"})


def test_the_figures_are_those_of_a_run(running):
    site = running.site("cleveland")
    before = parsed(page(site, "metrics")[1])
    running.run(rounds=2)
    after, server = parsed(page(site, "metrics")[1]), parsed(page(running.server, "metrics")[1])
    assert after["fedward_trained_rounds", None] - before["fedward_trained_rounds", None] == 2
    assert after["fedward_requests_total", "asked"] == [row["event"] for row in running.audit("cleveland")].count(
        "asked"
    )
    assert after["fedward_sent_bytes_total", None] > before["fedward_sent_bytes_total", None]
    assert after["fedward_coordinator_seconds", None] < 60
    assert server["fedward_hospitals", "connected"] == 3
    assert {value for (name, _), value in (after | server).items() if name == "fedward_program_up"} == {1.0}


def test_a_program_that_is_killed_shows_until_it_is_started_again(running):
    site = running.site("va")
    again = parsed(page(site, "metrics")[1])["fedward_program_restarts_total", "stub"]
    running.kill_program("va", "stub")
    until(lambda: page(site, "health")[0] == 503, 10, "nothing shows")
    until(lambda: page(site, "health")[0] == 200, 90, "it is not started again")
    assert parsed(page(site, "metrics")[1])["fedward_program_restarts_total", "stub"] == again + 1
    running.wait_for(HOSPITALS)


def test_nothing_of_a_patient_is_told(running):
    told = [page(folder, name)[1] for folder in map(running.site, HOSPITALS) for name in ("health", "metrics")]
    told += [here("hospital", "check", running.site(hospital)) for hospital in HOSPITALS]
    for canary in (NAME, NUMBER, CELL):
        assert not any(canary in text for text in told)
