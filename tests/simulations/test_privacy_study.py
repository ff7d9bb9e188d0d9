"""One command leaves figure, tables and page; it goes on where it stopped; and nothing is releasable that was not measured inside the limits."""

import csv
import json
import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import fedward
from common.intervals import Estimate
from simulations import privacy_report as report
from simulations.privacy_study import (
    CENTRAL,
    ENOUGH,
    HOSPITAL,
    NONE,
    Line,
    lines_of,
    mean,
    planned,
    settings_of,
    share,
    verdicts,
)
from simulations.scenario import find

COMMAND = [
    "privacy",
    "heart",
    *("--epsilon", "1,inf", "--audit", "membership,canaries", "--shadows", "0"),
    *("--set", "rounds=1", "--set", "task.model=logistic", "--set", "training.compile=graph"),
]


def play(out, *words, seeds=1):
    return fedward.main([*COMMAND, "--seeds", str(seeds), "--out", str(out), *words])


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    assert play(folder, "--limit", "epsilon=3", seeds=2) == 0
    return folder


class TestIntervals:
    @given(st.integers(1, 500), st.floats(0, 1))
    def test_shares_have_those_of_clopper_and_pearson(self, trials, part):
        hits = int(part * trials)
        exact = stats.binomtest(hits, trials).proportion_ci(method="exact")
        assert share(hits, trials) == pytest.approx((hits / trials, exact.low, exact.high))

    @given(st.lists(st.floats(-1, 1), min_size=2, max_size=9).filter(lambda values: np.std(values) > 1e-6))
    def test_means_have_those_of_student(self, values):
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert mean(values) == pytest.approx((np.mean(values), low, high))

    def test_one_seed_has_none(self):
        assert math.isnan(mean([0.5]).low)


class TestLeaves:
    def test_the_table_has_every_run_and_every_quantity(self, out):
        rows = list(csv.DictReader((out / report.CSV).read_text().splitlines()))
        assert {(row["noise"], row["epsilon"]) for row in rows} == {
            ("none", "inf"),
            ("masked", "inf"),
            ("hospital", "1"),
            ("shared", "1"),
        }
        for row in rows:
            assert row["data"] == "real"
            assert row["seeds"] == "2"
            if row["low"] and row["high"]:
                assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
        bounds = [float(row["value"]) for row in rows if row["attack"] == "canaries"]
        assert len(bounds) == 2
        assert all(0 < bound < 1 for bound in bounds)

    def test_masks_change_nothing_in_what_the_model_is_worth(self, out):
        rows = list(csv.DictReader((out / report.CSV).read_text().splitlines()))
        values = {row["noise"]: row["value"] for row in rows if row["view"] == "pooled"}
        assert float(values["none"]) == pytest.approx(float(values["masked"]), abs=1e-4)

    def test_the_page_says_all_that_a_reader_has_to_know(self, out):
        text = (out / report.PAGE).read_text(encoding="utf-8")
        for word in (
            "one record",
            "add or remove one",
            "delta = 0.0001",
            "rounds: 1;",
            "Gaussian mechanism",
            "Who is trusted",
            "What composes",
            "What is not covered",
            "measured lower bound",
            "noise of each hospital, epsilon 1: **releasable**",
            "no privacy, epsilon inf: **not releasable**",
        ):
            assert word in text
        assert "inversion" not in text.split("## What is not covered")[0].split("## The attacks")[1]

    def test_the_picture_is_of_a_page_s_width_at_300_dpi(self, out):
        width, _ = struct.unpack(">II", (out / report.FIGURE).read_bytes()[16:24])
        assert width == pytest.approx(180 / 25.4 * 300, abs=2)

    def test_the_table_for_latex_has_a_row_a_way(self, out):
        lines = (out / report.TABLE).read_text().splitlines()
        body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
        assert len(body) == 4
        assert len({line.count(" & ") for line in body}) == 1


class TestArms:
    """Which runs a study has."""

    def arms(self, hospitals):
        tables = {
            "task": {"name": "heart"},
            "simulation": {"dataset": "heart", "partition": "iid", "hospitals": hospitals},
        }
        return planned(*settings_of(tables), [1.0, math.inf], 1)

    @pytest.mark.parametrize(("hospitals", "central"), [(4, False), (ENOUGH - 1, False), (ENOUGH, True)])
    def test_central_noise_is_among_them_where_there_are_enough_hospitals(self, hospitals, central):
        cells = {cell.arm: cell.scenario.run for cell in self.arms(hospitals)}
        assert (CENTRAL in cells) is central
        assert set(cells) - {CENTRAL} == {NONE, "masked", HOSPITAL, "shared"}
        if central:
            run = cells[CENTRAL]
            assert (run.privacy.unit, run.privacy.at_coordinator, run.secure.aggregation) == ("hospital", True, False)
            assert run.privacy.delta == cells[HOSPITAL].privacy.delta
            assert run.rounds == cells[NONE].rounds

    def test_a_private_scenario_has_its_own_settings_and_is_held_against_its_tasks(self):
        own, plain = (planned(*settings_of(find(name)), [1.0, math.inf], 1) for name in ("heart-private", "heart"))
        assert [cell.scenario.run.training for cell in own] == [cell.scenario.run.training for cell in plain]
        assert [cell.scenario.run.rounds for cell in own] == [cell.scenario.run.rounds for cell in plain]
        rounds = {cell.arm: cell.scenario.run.rounds for cell in own}
        assert rounds[HOSPITAL] == 10 < rounds[NONE]

    def test_the_page_says_whether_there_was_central_noise(self, out):
        assert "among 4 of them its noise leaves nothing of a model" in (out / report.PAGE).read_text(encoding="utf-8")

    @pytest.mark.slow
    def test_central_noise_is_trained_with_and_attacked(self, tmp_path):
        words = ("--set", "simulation.partition=iid", "--set", f"simulation.hospitals={ENOUGH}")
        assert play(tmp_path, *words, "--epsilon", "8") == 0
        rows = [
            row for row in csv.DictReader((tmp_path / report.CSV).read_text().splitlines()) if row["noise"] == CENTRAL
        ]
        assert {row["attack"] for row in rows} == {"utility", "membership"}
        assert "for one *hospital* added or removed" in (tmp_path / report.PAGE).read_text(encoding="utf-8")


def test_pictures_have_the_originals_above_what_was_found(tmp_path):
    """White above, black below, as the picture has it."""
    from PIL import Image

    pairs = [(np.full((28, 28, 1), 255.0), np.zeros((28, 28, 1)))] * 3
    report.save_pictures(pairs, tmp_path / "pair.png", synthetic=True)
    with Image.open(tmp_path / "pair.png") as opened:
        image = np.asarray(opened.convert("L"))
    dark = (image < 10).mean(axis=1)
    height = len(dark)
    assert dark[: height // 2].max() < 0.2
    assert dark[height // 2 :].max() > 0.6


class TestGoingOn:
    def test_what_is_finished_is_kept_and_gives_the_same_bytes(self, out, capsys):
        cells = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
        table = (out / report.CSV).read_bytes()
        assert play(out, "--limit", "epsilon=3", seeds=2) == 0
        assert {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()} == cells
        assert (out / report.CSV).read_bytes() == table
        assert "of 8" not in capsys.readouterr().err

    def test_a_folder_of_other_settings_is_refused(self, out, capsys):
        assert play(out, "--set", "rounds=2") == 2
        assert "holds a run of other settings" in capsys.readouterr().err

    def test_an_attack_that_is_asked_for_later_is_added(self, tmp_path):
        words = ("--epsilon", "1", "--audit")
        assert play(tmp_path, *words, "") == 0
        assert play(tmp_path, *words, "canaries") == 0
        for path in (tmp_path / "cells").iterdir():
            facts = json.loads(path.read_text())
            assert facts["attacked"] == ["canaries"]
            assert len(facts["findings"]) == 1

    def test_a_damaged_cell_is_named(self, out, tmp_path, capsys):
        (tmp_path / "cells").mkdir()
        source = next(path for path in (out / "cells").iterdir() if "hospital" in path.name and "seed=1" in path.name)
        (tmp_path / "cells" / source.name).write_text("{")
        assert play(tmp_path) == 1
        assert "damaged; delete it" in capsys.readouterr().err


def line(limit, value, high=math.nan, arm=HOSPITAL, epsilon=1.0, attack="membership", view="v"):
    return Line(arm, epsilon, attack, view, "m", Estimate(value, math.nan, high), 1, limit)


class TestGate:
    def test_the_upper_end_of_an_interval_counts(self):
        (found,) = verdicts([line("tpr", 0.04, 0.06)], {"tpr": 0.05})
        assert found.reasons
        (found,) = verdicts([line("tpr", 0.04, 0.05)], {"tpr": 0.05})
        assert not found.reasons

    @pytest.mark.parametrize("name", ["bound", "tpr", "auc", "psnr", "utility"])
    def test_what_was_not_measured_is_not_inside_a_limit(self, name):
        (found,) = verdicts([line("other", 0.0)], {name: 0.5})
        assert "was not measured" in found.reasons[0]

    def test_a_measured_bound_above_the_claim_is_never_released(self):
        (found,) = verdicts([line("bound", 1.2)], {"epsilon": 3.0})
        assert "the noise is not what it should be" in found.reasons[0]

    def test_a_value_that_is_no_number_is_beyond_every_limit(self):
        for name in ("tpr", "utility"):
            (found,) = verdicts([line(name, math.nan)], {name: 0.5})
            assert found.reasons

    def test_no_privacy_has_no_finite_epsilon(self):
        (found,) = verdicts([line("auc", 0.5, arm=NONE, epsilon=math.inf)], {"epsilon": 1e9})
        assert found.reasons

    def test_nothing_inside_the_limits_is_exit_code_3_and_stands_in_the_page(self, out, capsys):
        capsys.readouterr()
        assert play(out, "--limit", "tpr=0.0001", "--json", seeds=2) == 3
        told = json.loads(capsys.readouterr().out)
        assert not any(each["releasable"] for each in told["verdicts"])
        assert "**releasable**" not in (out / report.PAGE).read_text(encoding="utf-8")

    def test_without_limits_nothing_is_releasable(self, out, capsys):
        capsys.readouterr()
        assert play(out, "--json", seeds=2) == 0
        assert not any(each["releasable"] for each in json.loads(capsys.readouterr().out)["verdicts"])
        assert "no limits were given" in (out / report.PAGE).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    made = ["--set", "simulation.comparators=false", *COMMAND[COMMAND.index("--set") :]]
    assert fedward.main(["simulate", "heart", "--seed", "7", "--out", str(folder), *made]) == 0
    return folder / "heart-0001"


class TestRelease:
    """The mark of a run, by a study of runs like it."""

    def card(self, folder):
        return (folder / "model-card.md").read_text(encoding="utf-8")

    def test_until_then_a_model_is_not_releasable(self, trained):
        assert "**Not marked releasable**" in self.card(trained)

    @pytest.mark.parametrize(
        ("limit", "code", "told"),
        [
            ("epsilon=3", 3, "**Not releasable**: epsilon inf is above 3"),
            ("auc=0.999", 0, "**Releasable**: no privacy"),
        ],
    )
    def test_the_verdict_stands_in_record_and_card(self, out, trained, limit, code, told):
        before = json.loads((trained / "run.json").read_text())
        assert play(out, "--limit", limit, "--release", str(trained), seeds=2) == code
        record = json.loads((trained / "run.json").read_text())
        assert record.pop("release")["releasable"] == (code == 0)
        assert record == {name: value for name, value in before.items() if name != "release"}
        assert told in self.card(trained)

    def test_a_study_of_other_settings_says_nothing_of_it(self, trained, tmp_path, refused):
        words = ["--limit", "auc=0.999", "--release", trained, "--set", "training.learning_rate=0.123"]
        code, err = refused(*COMMAND, "--out", tmp_path / "out", *words)
        assert code == 2
        assert "no run of this study has its settings" in err
        assert not (tmp_path / "out").exists()

    def test_without_limits_there_is_nothing_to_hold_it_to(self, trained, tmp_path, refused):
        code, err = refused(*COMMAND, "--out", tmp_path / "out", "--release", trained)
        assert code == 2
        assert "--release: expected limits" in err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--limit", "auc=1", "--release", "nowhere"], "nowhere"),
        (["--epsilon", "0,1"], "--epsilon 0,1"),
        (["--epsilon", "nan"], "--epsilon nan"),
        (["--audit", "membersip"], "did you mean 'membership'"),
        (["--limit", "tpr"], "--limit tpr: expected NAME=number"),
        (["--limit", "trp=1"], "unknown limit"),
        (["--shadows", "3"], "--shadows 3"),
        (["--seeds", "0"], "--seeds 0"),
        (["--set", "task.name=nothing"], "nothing"),
        (["--private", "privacy.unit=hospital"], "hospital"),
    ],
)
def test_a_bad_command_is_refused_in_one_line_and_leaves_nothing(tmp_path, refused, words, hint):
    code, err = refused(*COMMAND, "--out", tmp_path / "out", *words)
    assert code == 2
    assert hint in err
    assert not (tmp_path / "out").exists()


def test_pooled_guesses_of_several_seeds_are_one_audit():
    finding = {"attack": "canaries", "view": "v", "measure": "m", "value": 0.0, "kind": "bound", "limit": "bound"}
    rows = [{**finding, "hits": 90, "trials": 100, "canaries": 1000} for _ in range(4)]
    cells = [
        {
            "arm": HOSPITAL,
            "epsilon": "3.0",
            "findings": [row],
            "utility": {"metric": "auroc", "mean of hospitals": 0.8, "pooled": 0.8},
        }
        for row in rows
    ]
    one, four = (
        next(e for e in lines_of(part, 1e-6) if e.attack == "canaries").estimate.value for part in (cells[:1], cells)
    )
    assert one < four < math.log(9)
