"""Secure sums among virtual hospitals: what a run leaves says so in words, and every engine ends with the same bits."""

import importlib.util
import io
import json

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from rich.console import Console

from common.errors import UsageError
from common.secagg import keys
from common.secagg.protocol import Session
from server.plan import Plan
from server.records import sha256
from simulations import hospitals, run, secagg
from simulations.engines import ENGINES
from simulations.hospitals import populate
from simulations.live import Live
from simulations.scenario import read

TABLES = {
    "task": {"name": "heart", "hidden": 4},
    "rounds": 2,
    "training": {"epochs": 1, "compile": "graph"},
    "secure": {"aggregation": True},
    "simulation": {"dataset": "heart", "workers": 1, "comparators": False},
}


def play(folder, engine="local", **over):
    scenario = read(TABLES, over)
    outcomes = []
    ENGINES[engine](scenario, populate(scenario), Plan(scenario.run), folder, lambda _record: None, outcomes.append)
    return outcomes[0]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return play(tmp_path_factory.mktemp("local"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    comparing = {"simulation": {**TABLES["simulation"], "comparators": True}}
    run.simulate(read(TABLES, comparing), folder, "fedward simulate heart")
    return folder


class TestRun:
    def test_the_record_has_sums_and_no_hospitals_figures(self, folder):
        record = json.loads((folder / "run.json").read_text())
        assert record["results"]["federated"]["hospitals"] == {}
        assert record["results"]["federated"]["pooled"]["auroc"][0] > 0.5
        assert set(record["results"]["local"]["hospitals"]) == {h["name"] for h in record["hospitals"]}
        for row in record["rounds"]:
            assert row["hospitals"] == {}
            assert row["metrics"]["auroc"] is not None

    def test_everything_written_says_so_in_words(self, folder):
        statement, card, page = (
            (folder / name).read_text(encoding="utf-8") for name in ("privacy.md", "model-card.md", "report.html")
        )
        assert "secure aggregation was used, and no differential privacy" in statement
        assert "no single hospital's update, training loss or test figures" in statement
        assert "it sees every hospital's update" not in statement
        assert "only the hospitals' sum is known" in card
        assert "learnt sums over the hospitals of a round, no single hospital&#39;s update" in " ".join(page.split())
        metrics = (folder / "metrics.csv").read_text().splitlines()[1:]
        assert {line.split(",")[1] for line in metrics} == {"*"}

    def test_the_live_table_says_who_is_in_the_sum(self, local):
        console = Console(file=io.StringIO(), width=120)
        console.print(Live(quiet=True)._round_table(local.rounds[-1]))
        assert console.file.getvalue().count("in the sum") == 4


class TestIdentities:
    def test_every_process_with_the_runs_secret_makes_the_same_and_no_other_does(self):
        def cards(secret):
            made = [shield.identity() for shield in secagg.shields(["a", "b", "c"], secret)]
            secagg._identity.cache_clear()
            secagg._authority.cache_clear()
            return made

        one, again, other = cards(b"1" * 32), cards(b"1" * 32), cards(b"2" * 32)
        begun = [Session.begin(identity, b"run") for identity in (one[0], again[1], one[2])]
        for (session, _), identity in zip(begun, one, strict=True):
            session.join([card for _, card in begun], identity.authority)
        for identity in other:
            _, card = Session.begin(identity, b"run")
            with pytest.raises(Exception, match="no valid certificate"):
                keys.check(card, b"run", one[0].authority)

    def test_a_session_in_a_context_is_sealed_and_of_one_secret(self):
        identity = secagg.shields(["a"], b"1" * 32)[0].identity()
        context, other = (hospitals.context(node, {}) for node in (3, 4))
        session, _ = Session.begin(identity, b"run")
        secagg.Sealed(b"1" * 32).keep(None, context, session)
        kept = b"".join(array.data for array in context.state.array_records["secure"].values())
        for secret in (session.agreement, session.signing):
            assert secret not in kept
            assert secret.hex().encode() not in kept
        assert secagg.Sealed(b"1" * 32).load(None, context) == session
        assert secagg.Sealed(b"2" * 32).load(None, context) is None
        other.state["secure"] = context.state["secure"]
        assert secagg.Sealed(b"1" * 32).load(None, other) is None


def test_flowers_own_launcher_is_refused_with_what_to_do(tmp_path):
    scenario = read(TABLES)
    context = Context(
        run_id=1,
        node_id=1,
        node_config={},
        state=RecordDict(),
        run_config={"scenario": scenario.text(), "folder": str(tmp_path / "run")},
    )
    with pytest.raises(UsageError, match="take 'fedward simulate --engine ray'"):
        run.on_grid(None, context)


def test_masks_change_nothing_in_the_model(local, tmp_path):
    """Keys and seeds are drawn anew, and the sum is the same to the last bit."""
    assert sha256(play(tmp_path).model.weights) == sha256(local.model.weights)


def test_a_scenario_with_drop_outs_goes_on(tmp_path):
    faults = {"simulation": {**TABLES["simulation"], "faults": {"dropouts": 0.2}}}
    outcome = play(tmp_path, rounds=6, limits={"quorum": 0.5, "retries": 20}, **faults)
    assert len(outcome.rounds) == 6
    assert any(record.dropped for record in outcome.rounds)
    assert all(len(record.answered) >= 3 for record in outcome.rounds)


@pytest.mark.slow
def test_worker_processes_give_the_same_bits(local, tmp_path):
    outcome = play(tmp_path, simulation={**TABLES["simulation"], "workers": 2})
    assert sha256(outcome.model.weights) == sha256(local.model.weights)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'fedward[ray]'")
@pytest.mark.filterwarnings("ignore")
def test_ray_and_local_agree(local, tmp_path):
    np.testing.assert_allclose(play(tmp_path, "ray").model.weights, local.model.weights, atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore")
def test_real_processes_over_mutual_tls_give_the_same_bits(local, tmp_path):
    outcome = play(tmp_path, "deploy")
    assert sha256(outcome.model.weights) == sha256(local.model.weights)
    assert [record.answered for record in outcome.rounds] == [record.answered for record in local.rounds]
    assert [len(record.answered) for record in outcome.rounds] == [4, 4]
    assert not any(record.dropped for record in outcome.rounds)
