"""Scenarios: found, read, written, and turned into hospitals whose patients are all there, once."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedward
from common.errors import ConfigError, UsageError
from simulations import scenario as scenarios
from simulations.hospitals import populate
from simulations.scenario import Scenario, find, names, read, tables_of

HEART = {"task": {"name": "heart"}, "simulation": {"dataset": "heart"}}


class TestFinding:
    @pytest.mark.parametrize("name", names())
    def test_every_scenario_that_comes_along_can_be_read(self, name):
        scenario = read(find(name))
        assert scenario.run.task.name
        assert read(tables_of(scenario.text())) == scenario

    def test_heart_is_among_them(self):
        assert "heart" in names()

    def test_an_unknown_name_shows_the_nearest(self):
        with pytest.raises(UsageError, match=r"unknown task or scenario 'hart'; did you mean 'heart'\?"):
            find("hart")

    def test_a_file_is_found_by_its_path(self, tmp_path):
        path = tmp_path / "mine.toml"
        path.write_text(read(HEART).text(), encoding="utf-8")
        assert read(find(str(path))) == read(HEART)

    @pytest.mark.parametrize("content", [None, b"\xff\xfe", b"rounds = = 3"])
    def test_a_file_that_can_not_be_read_is_named(self, tmp_path, content):
        path = tmp_path / "mine.toml"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UsageError) as caught:
            find(str(path))
        assert str(path) in str(caught.value)

    def test_text_is_told_from_a_name(self):
        assert tables_of("rounds = 3") == {"rounds": 3}
        assert tables_of("heart") == find("heart")


class TestReading:
    def test_the_tasks_defaults_lie_below_the_scenario_and_the_scenario_below_the_command(self):
        assert read(HEART).run.training.batch_size == 16  # the task's
        assert read({**HEART, "training": {"batch_size": 4}}).run.training.batch_size == 4
        over = {"training": {"batch_size": 2}}
        assert read({**HEART, "training": {"batch_size": 4, "epochs": 7}}, over).run.training.batch_size == 2
        assert read({**HEART, "training": {"batch_size": 4, "epochs": 7}}, over).run.training.epochs == 7

    def test_without_a_simulation_there_are_no_hospitals(self):
        with pytest.raises(ConfigError, match="simulation: this table is required"):
            read({"task": "heart"})

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ({"data": "heart"}, r"simulation.data: unknown key; did you mean 'dataset'"),
            ({"dataset": "heart", "hospitals": -1}, r"simulation.hospitals: expected a number from 0"),
            ({"dataset": "heart", "test": 0.0}, r"simulation.test: expected a number above 0"),
            (
                {"dataset": "heart", "faults": {"dropouts": 1.5}},
                r"simulation.faults.dropouts: expected a number from 0 to 1",
            ),
            ({"dataset": "heart", "engine": "rey"}, r"simulation.engine: got 'rey' .*did you mean 'ray'"),
            ({"dataset": 3}, r"simulation.dataset: expected text, got 3"),
            ({}, r"simulation.dataset: this setting is required"),
        ],
    )
    def test_what_is_wrong_is_named(self, table, message):
        with pytest.raises(ConfigError, match=message):
            read({"task": "heart", "simulation": table})

    @given(
        st.integers(0, 1000),
        st.sampled_from(["natural", "iid", "dirichlet:0.3"]),
        st.floats(0, 1),
        st.floats(0.01, 0.9),
        st.booleans(),
    )
    def test_a_scenario_survives_its_text(self, hospitals, partition, share, test, comparators):
        simulation = {
            "dataset": "heart",
            "hospitals": hospitals,
            "partition": partition,
            "test": test,
            "comparators": comparators,
            "faults": {"dropouts": share, "label_flips": share},
        }
        scenario = read(
            {
                "task": {"name": "heart", "hidden": 5},
                "strategy": {"name": "fedprox", "mu": share},
                "simulation": simulation,
            }
        )
        assert read(tables_of(scenario.text())) == scenario


def rows_of(hospital):
    """Return one line of text a patient, by part."""
    return {
        part: ["|".join(map(str, row)) for row in zip(*getattr(hospital, part).values(), strict=True)]
        for part in ("train", "validation", "test")
    }


def hospitals(seed=1, **simulation):
    tables = {**HEART, "seed": seed, "evaluation": {"validation": 0.2}}
    return populate(read(tables, {"simulation": simulation})).hospitals


class TestHospitals:
    @settings(max_examples=6)
    @given(st.integers(2, 12), st.sampled_from(["iid", "dirichlet:1", "quantity:2"]), st.integers(0, 99))
    def test_every_patient_is_in_one_place(self, count, partition, seed):
        tables = {**HEART, "seed": seed, "evaluation": {"validation": 0.2}}
        tables["simulation"] = {"dataset": "heart", "hospitals": count, "partition": partition}
        people = populate(read(tables))
        assert len(people.hospitals) == count
        dealt = [row for hospital in people.hospitals for rows in rows_of(hospital).values() for row in rows]
        whole = ["|".join(map(str, row)) for row in zip(*people.table.records.values(), strict=True)]
        assert sorted(dealt) == sorted(whole)
        assert people.names == sorted(people.names)

    def test_shares_are_as_set(self):
        for hospital in hospitals(hospitals=5, partition="iid", test=0.25):
            sizes = {part: len(rows) for part, rows in rows_of(hospital).items()}
            total = sum(sizes.values())
            assert sizes["test"] == pytest.approx(0.25 * total, abs=1)
            assert sizes["validation"] == pytest.approx(0.2 * (total - sizes["test"]), abs=1)

    def test_the_split_follows_from_the_seed(self):
        one, same, other = hospitals(), hospitals(), hospitals(seed=2)
        assert [rows_of(hospital) for hospital in one] == [rows_of(hospital) for hospital in same]
        assert [rows_of(hospital)["test"] for hospital in one] != [rows_of(hospital)["test"] for hospital in other]

    def test_data_of_another_task_are_refused(self):
        with pytest.raises(
            ConfigError,
            match=r"simulation.dataset: 'pneumonia-synthetic' serves the task 'pneumonia', and the run learns 'heart'",
        ):
            populate(read({"task": "heart", "simulation": {"dataset": "pneumonia-synthetic"}}))

    def test_an_unknown_data_set_shows_the_nearest(self):
        with pytest.raises(UsageError, match=r"unknown data set 'hart'; did you mean 'heart'"):
            populate(read({"task": "heart", "simulation": {"dataset": "hart"}}))


def test_a_scenario_is_one_value():
    assert isinstance(read(HEART), Scenario)
    assert read(HEART) == read(HEART)
    assert hash(read(HEART)) == hash(read(HEART))
    assert scenarios.names() == sorted(scenarios.names())


SHORT = ("--rounds", "1", "--set", "simulation.comparators=false", "--set", "simulation.workers=1")


class TestStudies:
    """The scenarios of studies, in their short form."""

    def play(self, tmp_path, name, *words):
        assert fedward.main(["simulate", name, *SHORT, *words, "--out", str(tmp_path)]) == 0
        (path,) = tmp_path.glob("*/run.json")
        return json.loads(path.read_text(encoding="utf-8"))

    @pytest.mark.parametrize("noise", ["hospital", "shared"])
    def test_heart_has_noise_of_each_hospital_or_shares_it(self, tmp_path, noise):
        words = ("--set", "task.model=logistic", "--set", "training.compile=graph", "--set", f"privacy.noise={noise}")
        account = self.play(tmp_path, "heart-private", *words)["privacy"]
        assert account["noise_by"] == ("each hospital" if noise == "hospital" else "all hospitals together")
        assert all(0 < row["epsilon"] <= 1 for row in account["spent"].values())

    @pytest.mark.slow
    @pytest.mark.parametrize(("name", "stand_in"), [("notes", "notes-synthetic"), ("pneumonia", "pneumonia-synthetic")])
    def test_notes_and_images_spend_what_they_claim(self, tmp_path, name, stand_in):
        account = self.play(tmp_path, f"{name}-private", "--set", f"simulation.dataset={stand_in}")["privacy"]
        vocabulary = 1 if name == "notes" else 0
        assert all(len(row["events"]) == 1 + vocabulary for row in account["spent"].values())
        assert all(0 < row["epsilon"] <= account["target"] for row in account["spent"].values())

    def test_poison_turns_a_mean_and_leaves_a_median(self, tmp_path):
        words = ("--set", "task.model=logistic", "--set", "training.compile=graph", "--set", "rounds=6")
        found = {
            rule: self.play(tmp_path / rule, "heart-poisoned", *words, "--set", f"strategy.name={rule}")
            for rule in ("fedavg", "median")
        }
        worth = {rule: record["results"]["federated"]["pooled"]["auroc"][0] for rule, record in found.items()}
        assert worth["median"] > worth["fedavg"] + 0.1
