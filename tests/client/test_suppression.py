"""Small cells: none leaves, totals and sums over hospitals keep their meaning, and the coordinator can read what is left."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.hospital import Hospital
from client.policy import Allow, Limits, Names, Site, SitePolicy
from client.suppression import _gathered, suppress
from client.worker import Worker
from common import metrics
from common.config import Choice, RunConfig, parse
from common.errors import PolicyRefused
from common.messages import STATISTICS, Reply, Request, group, prefixed, run_text
from common.statistics import total
from common.tasks import TASKS, task_of
from common.tasks.heart import Heart
from server import checks

COUNTS = ("confusion", "histogram")
KEY = bytes(range(32))


def policy(least=5, **allow):
    allow = {"statistics": Names(["count", "task", "compare"]), "metrics": True, **allow}
    return SitePolicy(Site("east", "heart", "heart.csv"), Allow(smallest_cell=least, **allow), Limits())


def shown(values, least=5, **allow):
    return suppress(values, policy(least, **allow), KEY)


def sizes(array, least):
    """Return whether every count is 0 or large enough."""
    return not ((array > 0) & (array < least)).any()


def judge(seed, rows, classes=2, skill=1.0):
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, rows).astype(np.int32)
    logits = draw.normal(0, 1, (rows, classes)) + skill * np.eye(classes)[labels]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return labels, scores


judged = st.builds(
    judge, st.integers(0, 2**20), st.integers(0, 400), st.integers(2, 5), st.sampled_from([0.0, 1.0, 4.0, 20.0])
)


class TestJudged:
    @given(judged, st.integers(1, 20))
    def test_a_cell_is_empty_or_large_enough(self, people, least):
        kept = group("test", shown(prefixed("test", metrics.summarise(*people)), least))
        for name in COUNTS:
            if kept:
                assert sizes(kept[name], least)
        if kept:
            count, hits, _ = kept["calibration"]
            assert all(sizes(part, least) for part in (count, hits, count - hits))

    @given(judged, st.integers(1, 20))
    def test_no_patient_is_added_or_lost(self, people, least):
        true = metrics.summarise(*people)
        kept = group("test", shown(prefixed("test", true), least))
        if kept:
            np.testing.assert_array_equal(kept["confusion"].sum(axis=1), true["confusion"].sum(axis=1))
            np.testing.assert_array_equal(kept["histogram"].sum(axis=2), true["histogram"].sum(axis=2))
            assert kept["calibration"][0].sum() == true["calibration"][0].sum()

    @given(judged, st.integers(2, 20))
    def test_nothing_leaves_that_the_counts_do_not_tell(self, people, least):
        """Two models of the same counts, whose scores differ within their bins: the answers are the same to the last bit."""
        labels, scores = people
        bins = metrics._bin(scores)
        coarse = metrics._CENTRES[bins]
        true, other = metrics.summarise(labels, scores), metrics.summarise(labels, scores)
        rough = metrics._losses(labels, coarse)
        other["losses"], other["calibration"] = metrics._sums(rough), true["calibration"] * [[1], [1], [0.97]]
        first, second = (shown(prefixed("test", each), least) for each in (true, other))
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert value.tobytes() == second[name].tobytes()

    def test_a_model_made_to_show_one_patients_label_shows_nothing(self):
        """Everybody has the same score but one, whose score differs by less than a bin: the exact sums told the label, what leaves is the same for both."""
        told = []
        for label in (0, 1):
            labels = np.array([0] * 50 + [1] * 50, np.int32)
            positive = np.full(100, 0.5005)
            positive[50 if label else 0] += 1e-4
            told.append(metrics.summarise(labels, np.stack([1 - positive, positive], axis=1)))
        assert (told[0]["losses"] != told[1]["losses"]).any()
        kept = [shown(prefixed("test", each)) for each in told]
        for name, value in kept[0].items():
            assert value.tobytes() == kept[1][name].tobytes(), name

    @given(judged)
    def test_what_the_counts_tell_is_what_the_scores_told(self, people):
        true = metrics.summarise(*people)
        told, exact = metrics.lost(true["histogram"]), true["losses"]
        rows = len(people[0])
        np.testing.assert_allclose(told[:, 0], exact[:, 0], rtol=1e-2, atol=2e-3 * rows + 1e-9)
        assert (told[:, 1] >= told[:, 0] ** 2 / max(rows, 1) * (1 - 1e-9)).all(), "no variance is below 0"
        if people[1].shape[1] > 2:
            assert told[0, 1] >= exact[0, 1] * 0.99 - 2e-3 * rows, "the interval is too wide rather than too narrow"
        told = metrics.calibrated(true["histogram"], true["calibration"])
        if people[1].shape[1] == 2:
            np.testing.assert_allclose(told, true["calibration"], atol=1e-3 * rows + 1e-9)

    @given(judged)
    def test_a_smallest_cell_of_one_changes_nothing(self, people):
        true = metrics.summarise(*people)
        for part in ("test", "validation"):
            kept = group(part, shown(prefixed(part, true), 1))
            assert set(kept) == set(true)
            for name, value in true.items():
                np.testing.assert_array_equal(kept[name], value)
                assert kept[name].dtype == value.dtype

    @given(judged, st.integers(1, 20))
    def test_all_leaves_or_nothing_and_nothing_when_a_class_is_too_small(self, people, least):
        kept = shown(prefixed("test", metrics.summarise(*people)), least)
        assert len(kept) in (0, 4)
        assert bool(kept) == sizes(np.bincount(people[0]), least)

    @given(judged, st.integers(1, 10))
    def test_the_coordinator_can_read_it(self, people, least):
        kept = group("test", shown(prefixed("test", metrics.summarise(*people)), least))
        if kept:
            objective = task_of(Choice("heart")).objective
            checks.check_sums(kept, checks.judged(objective, people[1].shape[1], "test"))
            metrics.compute(kept)

    def test_metrics_of_a_federation_are_off_by_chance_alone(self):
        """Of sixteen federations of twenty hospitals with 100 test patients: none is far off, and on average they are right."""
        names = ("accuracy", "auroc", "auprc", "recall", "specificity", "brier", "log_loss")
        off = []
        for federation in range(16):
            sums = [metrics.summarise(*judge(100 * federation + number, 100, skill=1.5)) for number in range(20)]
            true = metrics.compute(total(sums))
            kept = metrics.compute(total(group("test", shown(prefixed("test", each))) for each in sums))
            off.append([(kept[name].value - true[name].value) / (true[name].high - true[name].low) for name in names])
        # In widths of the 95 % interval.
        assert np.abs(off).max() < 1
        assert np.abs(np.mean(off, axis=0)).max() < 0.25

    @given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 20))
    def test_two_cells_move_by_less_than_a_group(self, left, right, least):
        counts = np.array([left, right], float)
        if left + right >= least:
            groups = int(counts.sum()) // least
            assert np.abs(_gathered(counts, least, KEY) - counts).max() < -(-counts.sum() // groups)

    def test_who_knows_all_patients_but_one_and_not_the_sites_secret_cannot_try_where_that_one_is(self):
        """What left comes out for every place that the one may have, under some secret."""
        known = np.array([4.0, 0, 3, 0, 5, 2, 0, 0])
        left = _gathered(known + np.eye(8)[3], 5, KEY).tolist()
        for place in range(8):
            counts = known + np.eye(8)[place]
            assert any(_gathered(counts, 5, bytes([secret])).tolist() == left for secret in range(256))

    @pytest.mark.parametrize("counts", [[97, 3], [96, 1, 3], [2, 0, 0, 3], [1] * 60])
    def test_on_average_every_patient_counts_as_before(self, counts):
        """The draw follows from the counts, so others are put behind them, far away, to draw again."""
        behind = [np.array([*counts, *[0] * 50, 500 + number], float) for number in range(2000)]
        least = 5
        moved = np.mean([_gathered(each, least, KEY)[: len(counts)] for each in behind], axis=0)
        np.testing.assert_allclose(moved, counts, atol=0.3)

    def test_metrics_that_must_stay_are_left_out_of_the_answer(self):
        statistics = {
            **prefixed("test", metrics.summarise(*judge(1, 200))),
            **prefixed("validation", metrics.summarise(*judge(2, 200))),
            "train/loss": np.array([12.5, 20.0]),
        }
        kept = shown(statistics, metrics=False)
        assert set(kept) == {"train/loss"}
        np.testing.assert_array_equal(kept["train/loss"], [0.0, 0.0])
        assert shown(statistics)["train/loss"].tolist() == [12.5, 20.0]

    def test_the_same_statistics_leave_in_the_same_form(self):
        statistics = prefixed("test", metrics.summarise(*judge(1, 200)))
        first, again = shown(statistics), shown(statistics)
        for name, value in first.items():
            assert value.tobytes() == again[name].tobytes()


class TestCompared:
    def statistics(self, rows=300):
        labels, scores = judge(1, rows)
        return prefixed("compare", metrics.compare(labels, scores, judge(2, rows)[1]))

    def test_one_small_cell_withholds_all(self):
        assert shown(self.statistics()) == {}

    def test_without_small_cells_it_leaves_as_it_is(self):
        kept = shown(self.statistics(), 1)
        for name, value in self.statistics().items():
            np.testing.assert_array_equal(kept[name], value)
        scores = np.array([[0.9, 0.1], [0.1, 0.9]]).repeat(50, axis=0)
        many = prefixed("compare", metrics.compare(np.repeat([0, 1], 50).astype(np.int32), scores, scores))
        kept = shown(many)
        assert set(kept) == set(many)
        (first, squares), true = kept["compare/losses"][1], many["compare/losses"][1]
        assert first == true[0] == 0
        assert squares >= true[1]
        metrics.differences(group("compare", kept))

    def test_a_difference_of_losses_tells_no_patient(self):
        """Under a second model that differs for one patient, within a bin, the exact sum told the label."""
        labels, told = np.repeat([0, 1], 50).astype(np.int32), []
        for one in (0, 50):
            positive = np.full((2, 100), 0.5005)
            positive[1, one] += 1e-4
            scores = [np.stack([1 - each, each], axis=1) for each in positive]
            told.append(prefixed("compare", metrics.compare(labels, *scores)))
        assert (told[0]["compare/losses"] != told[1]["compare/losses"]).any()
        kept = [shown(each) for each in told]
        assert kept[0]
        for name, value in kept[0].items():
            assert value.tobytes() == kept[1][name].tobytes(), name

    @pytest.mark.parametrize("allow", [{"metrics": False}, {"statistics": Names(["count", "task"])}])
    def test_it_stays_where_it_is_not_allowed(self, allow):
        assert shown(self.statistics(), 1, **allow) == {}


moments = st.lists(
    st.lists(st.floats(-100, 100).map(lambda x: round(x, 2)) | st.just(float("nan")), min_size=12, max_size=12),
    min_size=1,
    max_size=6,
).map(np.array)


def summed(columns):
    known = ~np.isnan(columns)
    values = np.where(known, columns, 0.0)
    return {"count": known.sum(axis=1).astype(float), "sum": values.sum(axis=1), "squares": (values**2).sum(axis=1)}


class TestSums:
    @given(moments, st.integers(1, 12))
    def test_a_column_of_too_few_patients_is_one_that_nobody_knows(self, columns, least):
        true = summed(columns)
        kept = group("task", shown(prefixed("task", true), least))
        small = true["count"] < least
        for name in true:
            assert (kept[name][small] == 0).all()
        np.testing.assert_array_equal(kept["count"][~small], true["count"][~small])
        numbers = ~small & (true["sum"] != true["squares"])
        for name in ("sum", "squares"):
            np.testing.assert_array_equal(kept[name][numbers], true[name][numbers])

    @given(st.lists(moments.filter(lambda columns: len(columns) == 1), min_size=1, max_size=5), st.integers(2, 6))
    def test_the_mean_over_hospitals_is_that_of_those_who_show_it(self, hospitals, least):
        sums = [summed(columns) for columns in hospitals]
        kept = total(group("task", shown(prefixed("task", each), least)) for each in sums)
        numbers = [each for each in sums if each["count"] >= least]
        if numbers and all(each["sum"] != each["squares"] for each in numbers):
            expected = total(numbers)
            assert kept["sum"] / kept["count"] == expected["sum"] / expected["count"]

    @given(st.integers(1, 400), st.integers(0, 400), st.integers(1, 20))
    def test_patients_with_a_code_are_shown_in_multiples(self, count, ones, least):
        ones = min(ones, count)
        true = {"count": np.array([count, 500.0]), "sum": np.array([ones, 7.5]), "squares": np.array([ones, 9.0])}
        kept = group("task", shown(prefixed("task", true), least))
        number = kept["sum"][0]
        assert number % least == 0 or number == count
        assert abs(number - ones) <= least / 2 or count < least
        assert kept["squares"][0] == number
        assert kept["sum"][1] == 7.5

    def test_a_code_can_not_be_told_from_its_neighbours(self):
        """Codes of one column add up to the patients in whom it is known; one that is rounded while the others are not would be their difference."""
        true = {"count": np.full(4, 203.0), "sum": np.array([121.0, 72.0, 9.0, 1.0])}
        true["squares"] = true["sum"].copy()
        kept = group("task", shown(prefixed("task", true)))
        np.testing.assert_array_equal(kept["sum"], [120, 70, 10, 0])

    def test_hearts_preparation_from_hospitals_with_few_known_values(self, make_patients):
        records = make_patients(200, 1)
        records["chol"] = np.where(np.arange(200) < 3, records["chol"], np.nan)
        task = Heart().build()
        preparation = task.fit(group("task", shown(prefixed("task", task.summarise(records)))))
        assert np.isfinite(preparation["mean"]).all()
        without = {**records, "chol": np.full(200, np.nan)}
        mended = task.fit(group("task", shown(prefixed("task", task.summarise(without)))))
        assert preparation == mended

    def test_what_can_not_be_screened_is_refused(self):
        for statistics in (
            {"task/means": np.ones(3)},
            {"task/count": np.ones(3), "task/patients": np.ones((3, 2))},
            {"names/count": np.ones(3)},
            prefixed("test", {"confusion": np.ones((2, 2)) * 50, "scores": np.ones(100)}),
        ):
            with pytest.raises(PolicyRefused) as caught:
                shown(statistics)
            assert caught.value.code == "statistics"

    @pytest.mark.parametrize("part", ["count", "task"])
    def test_a_part_that_is_not_allowed_is_refused(self, part):
        statistics = {f"{part}/count": np.array([50.0, 60.0])}
        shown(statistics)
        with pytest.raises(PolicyRefused, match=r"REFUSED policy.statistics: .*Change \[allow\]") as caught:
            shown(statistics, statistics=Names(["compare"]))
        assert caught.value.code == "statistics"


class TestCounts:
    def test_a_part_with_a_small_class_is_one_without_patients(self):
        statistics = prefixed(
            "count", {"train": np.array([80.0, 5.0]), "test": np.array([30.0, 4.0]), "validation": np.array([9.0, 0.0])}
        )
        kept = group("count", shown(statistics))
        assert {name: value.tolist() for name, value in kept.items()} == {
            "train": [80, 5],
            "test": [0, 0],
            "validation": [9, 0],
        }

    @pytest.mark.parametrize("count", [1, 4])
    def test_training_patients_are_shown_as_they_are_or_not_at_all(self, count):
        with pytest.raises(PolicyRefused) as caught:
            shown({"count/train": np.array([888.0, float(count)])})
        assert caught.value.code == "smallest_cell"
        assert str(count) not in str(caught.value)
        assert "888" not in str(caught.value)


def cells(draw):
    return {"image": draw.integers(0, 256, (200, 224, 224, 3), np.uint8), "label": draw.integers(0, 5, 200)}


def codes(draw):
    return draw.choice(["a\nb", "b", "c\na"], 200).astype(object)


def drawn(name, draw):
    """Draw a task's columns: codes, letters, and noughts and ones in all others."""
    task = TASKS[name]().build()
    cells = {
        "code": lambda _: draw.choice(["428", "V27"], 200).astype(object),
        "sequence": lambda column: np.array(["".join(draw.choice([*column.letters], 60)) for _ in range(200)], object),
    }
    noughts = lambda _: draw.integers(0, 2, 200).astype(float)  # noqa: E731
    records = {column.name: cells.get(column.kind, noughts)(column) for column in task.columns}
    return records | {task.label: draw.integers(0, len(task.classes), 200)}


RECORDS = {
    "heart": None,
    "cells": cells,
    "cells-vgg16": cells,
    "pneumonia": lambda draw: {
        "image": draw.integers(0, 256, (200, 28, 28)).astype(np.uint8),
        "label": draw.integers(0, 2, 200),
    },
    "notes": lambda draw: {
        "text": np.array([" ".join(draw.choice(["fever", "cough", "pain", "rash"], 6)) for _ in range(200)], object),
        "label": draw.integers(0, 2, 200),
    },
    **{name: partial(drawn, name) for name in ("readmission", "mimic", "splice", "survival", "peptides")},
    "icu": lambda draw: {
        **{name: draw.integers(1, 5, 200).astype(float) for name in ("age", "gender", "height", "unit")},
        "events": np.where(draw.random((200, 48, 37)) < 0.9, np.nan, 30.0).astype(np.float32),
        "death": draw.integers(0, 2, 200),
    },
    "treatment-next": lambda draw: {name: codes(draw) for name in ("history", "next")},
    "treatment-match": lambda draw: {name: codes(draw) for name in ("stay", "features", "given")},
}


class TestEveryTask:
    """What holds for every task's own statistics; a new task must come with them."""

    @pytest.fixture(params=TASKS)
    def answer(self, request, make_patients, tmp_path, monkeypatch):
        (tmp_path / "weights").write_bytes(b"a base's file, of which only the checksum is told")
        monkeypatch.setenv("FEDWARD_WEIGHTS", str(tmp_path / "weights"))
        draw = np.random.default_rng(1)
        make = RECORDS[request.param] or (lambda _: make_patients(200, 1))
        hospital = Hospital("east", make(draw), make(draw), make(draw))
        config = parse(RunConfig, {"task": {"name": request.param}})
        task = task_of(config.task)
        return task, Worker().answer(STATISTICS, hospital, Request(run_text(config)), {})

    def test_the_first_answer_passes_and_can_be_read(self, answer):
        task, reply = answer
        for least in (1, 5, 20):
            kept = suppress(reply.statistics, policy(least), KEY)
            checks.check_enrolment(replace(reply, statistics=kept), task)
            assert json.dumps(task.fit(group("task", kept)))
            assert group("count", kept)["train"].sum() == 200

    def test_a_smallest_cell_of_one_changes_nothing(self, answer):
        _, reply = answer
        kept = suppress(reply.statistics, policy(1), KEY)
        assert set(kept) == set(reply.statistics)
        for name, value in reply.statistics.items():
            np.testing.assert_array_equal(kept[name], value)


def test_nothing_in_nothing_out():
    assert suppress(Reply().statistics, policy(), KEY) == {}
