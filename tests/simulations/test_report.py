"""The report, its pictures and its cards, from made-up run records."""

import copy
import csv
import itertools
import json
import math
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DataError, UsageError
from server import records
from simulations import cards, forest, panels, paper, pictures, report, words

CHINESE = ["儿科", "内科", "外科", "妇产科", "皮肤科", "眼科", "耳鼻咽喉科", "口腔科", "肿瘤科", "精神科", "中医科"]
EVIL = "<script>alert(1)</script>"


def fake_record(
    seed=1,
    hospitals=("cleveland", "hungary", "switzerland", "va long beach"),
    classes=("no disease", "disease"),
    rounds=20,
    public=True,
):
    """Return a run record as the simulation writes it, with made-up numbers that hang together."""
    random = np.random.default_rng(seed)
    names = [f"hospital-{place:03d}" for place in range(hospitals)] if isinstance(hospitals, int) else list(hospitals)
    sizes = {name: int(random.lognormal(5, 0.7)) + 12 for name in names}
    skill = {"local": 0.79, "federated": 0.85, "central": 0.855}
    metrics = ("accuracy", "auroc", "macro_f1", "brier", "calibration_error")

    def estimate(level, amount):
        value = float(np.clip(level + random.normal(0, 0.25 / math.sqrt(amount)), 0.02, 0.98))
        half = 1.96 * math.sqrt(value * (1 - value) / amount)
        return [value, max(0.0, value - half), min(1.0, value + half)]

    def level(kind, metric):
        return 1 - skill[kind] if metric in cards.LOWER_IS_BETTER else skill[kind] - 0.04 * (metric != "auroc")

    def part(amount):
        return {
            "rows": amount,
            "classes": random.multinomial(amount, random.dirichlet(np.ones(len(classes)) * 2)).tolist(),
        }

    def difference(other, amount):
        gaps = {}
        for metric in metrics[:4]:
            gap = level("federated", metric) - level(other, metric) + random.normal(0, 0.01)
            gaps[metric] = [gap, gap - 0.5 / math.sqrt(amount), gap + 0.5 / math.sqrt(amount)]
        return gaps

    def curves(kind):
        x = np.linspace(0, 1, 40)
        return {
            "roc": {"fpr": x.tolist(), "tpr": (x ** (1 - skill[kind])).tolist()},
            "calibration": {
                "score": (x[2::4]).tolist(),
                "fraction": np.clip(x[2::4] ** 1.2, 0, 1).tolist(),
                "count": [30.0] * 8 + [4.0, 2.0],
            },
            "confusion": (np.eye(len(classes)) * 80 + random.integers(0, 20, (len(classes),) * 2)).tolist(),
        }

    def one_round(number):
        dropped = (
            [{"hospital": names[-1], "reason": "nan", "message": "the update holds NaN"}] if number in (4, 9) else []
        )
        answered = [name for name in names if not dropped or name != names[-1]]
        answered = answered[1:] if number == 7 else answered
        value = 0.85 - 0.35 * math.exp(-number / 4)
        return {
            "round": number,
            "asked": names,
            "answered": answered,
            "dropped": dropped,
            "bytes_down": 2884 * len(names),
            "bytes_up": 2884 * len(answered),
            "seconds": 0.012,
            "examples": sum(sizes.values()),
            "train_loss": 0.7 - value / 2,
            "update_norm": 1 / number,
            "metrics": {"auroc": value, "accuracy": value - 0.04} if number % 2 else {},
        }

    test = {name: max(4, sizes[name] // 3) for name in names}
    results = {
        kind: {
            "pooled": {metric: estimate(level(kind, metric), sum(test.values())) for metric in metrics},
            "hospitals": {
                name: {metric: estimate(level(kind, metric), test[name]) for metric in metrics} for name in names
            },
        }
        for kind in skill
    }
    return {
        "schema": 1,
        "name": f"heart-{seed:04d}",
        "task": "heart",
        "title": "Heart disease from 13 clinical features",
        "synthetic": False,
        "headline": "auroc",
        "shown": ["auroc", "accuracy", "macro_f1", "brier"],
        "command": f"fedward simulate heart --seed {seed}",
        "started": "2026-01-01T10:00:00Z",
        "continued_after": 0,
        "seed": seed,
        "engine": "local",
        "parameters": 721,
        "local_parts": [],
        "control_variates": False,
        "statistics": "count, sum and sum of squares of every feature",
        "weights_sha256": "9f" * 32,
        "layout_sha256": "3c" * 32,
        "stopped": "rounds",
        "trained": rounds,
        "seconds": {"total": 9.1, "federated": 2.0, "comparators": 3.0},
        "bytes": {"down": 2884 * len(names) * rounds, "up": 2884 * len(names) * rounds},
        "peak_memory_mb": 900,
        "config": {
            "seed": seed,
            "rounds": rounds,
            "task": {"name": "heart", "hidden": 16},
            "strategy": {"name": "fedavg"},
            "update": {"codec": "float32"},
            "simulation": {"dataset": "heart", "partition": "natural"},
        },
        "versions": {
            "fedward": "0.1.0",
            "flwr": "1.41.0",
            "tensorflow": "2.21.0",
            "keras": "3.15.1",
            "numpy": "2.4.6",
            "python": "3.11.7",
        },
        "machine": {"system": "Linux", "cores": 2},
        "data": {
            "name": "heart",
            "title": "UCI heart disease",
            "origin": "UCI Machine Learning Repository, set 45",
            "licence": "CC BY 4.0",
            "citation": "Detrano R et al. (1989). Am J Cardiol 64:304-310.",
            "sha256": {"heart.csv": "ab" * 32},
            "rows": sum(sizes.values()),
            "duplicates_removed": 2,
            "public": public,
        },
        "classes": list(classes),
        "hospitals": [
            {"name": name, "train": part(sizes[name] - test[name]), "validation": part(0), "test": part(test[name])}
            for name in names
        ],
        "rounds": [one_round(number) for number in range(1, rounds + 1)],
        "results": results,
        "differences": {
            other: {
                "pooled": difference(other, 900),
                "hospitals": {name: difference(other, test[name]) for name in names},
            }
            for other in ("local", "central")
        },
        "curves": {kind: curves(kind) for kind in skill},
    }


def nulls(record):
    """Return the record with everything that may be undefined set so, at one hospital and in the pooled curves."""
    record = copy.deepcopy(record)
    name = record["hospitals"][0]["name"]
    for kind in record["results"]:
        record["results"][kind]["hospitals"][name] = {
            metric: [None, None, None] for metric in record["results"][kind]["pooled"]
        }
        record["curves"][kind] = {
            "roc": {"fpr": [], "tpr": []},
            "calibration": {"score": [], "fraction": [], "count": []},
            "confusion": [],
        }
    record["results"]["local"]["pooled"]["auroc"] = [None, None, None]
    for other in record["differences"]:
        record["differences"][other]["hospitals"][name] = {"auroc": [None, None, None]}
        record["differences"][other]["pooled"]["auroc"] = [0.1, None, None]
    for item in record["rounds"]:
        item |= {"train_loss": None, "metrics": {"auroc": None}}
    return record


def without_comparators(record):
    """Return the record of a run that trained no local and no central models."""
    return {
        **record,
        "results": {"federated": record["results"]["federated"]},
        "differences": {},
        "curves": {"federated": {}},
        "rounds": [],
    }


def save_run(record, folder):
    """Write the files that a report is made from."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    random = np.random.default_rng(0)
    with (folder / "metrics.csv").open("w", encoding="utf-8", newline="") as lines:
        rows = csv.writer(lines)
        rows.writerow(["round", "hospital", "metric", "value"])
        for item in record["rounds"]:
            for place, hospital in enumerate(record["hospitals"]):
                value = 0.86 - 0.01 * (place % 7) - 0.3 * math.exp(-item["round"] / 5) + random.normal(0, 0.01)
                rows.writerow([item["round"], hospital["name"], "auroc", value])
                rows.writerow([item["round"], hospital["name"], "accuracy", ""])
    return folder


class Page(HTMLParser):
    """Tags, attributes and words of a page, and whether all tags are closed."""

    VOID = frozenset({"meta", "br", "path", "use", "rect"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.values, self.ids, self.words, self.open = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.values += [value for _, value in attributes if value]
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def html(record, curves=None):
    return report.page(record, curves or {})


RECORDS = {
    "four": fake_record,
    "thirty": lambda: fake_record(2, hospitals=30),
    "chinese": lambda: fake_record(
        3, hospitals=("北京协和医院", "华西医院", "a $10^2$ name_{x}", "x" * 60), classes=CHINESE
    ),
    "nulls": lambda: nulls(fake_record(4)),
    "alone": lambda: without_comparators(fake_record(5, hospitals=1)),
    "evil": lambda: {
        **fake_record(6, hospitals=(EVIL, "a|b", "&amp;"), classes=(EVIL, "b", "c")),
        "title": EVIL,
        "synthetic": True,
    },
    "private": lambda: fake_record(7, hospitals=5, public=False),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_report_is_written_for_every_kind_of_run(name, tmp_path):
    folder = save_run(RECORDS[name](), tmp_path / "run")
    report.write_report(folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    parsed = Page(page)
    assert parsed.open == []
    assert len(parsed.ids) == len(set(parsed.ids))
    assert "script" not in parsed.tags
    assert "nan" not in " ".join(parsed.words).replace("nan: the update", "").replace("(nan)", "").split()
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "model-card.md").read_text(encoding="utf-8").startswith("# ")
    assert "no differential privacy and no secure aggregation" in (folder / "privacy.md").read_text(encoding="utf-8")


def test_the_page_opens_offline():
    page = html(fake_record())
    assert not re.search(r"https?:|//\w+\.\w+|@import|url\((?!#)|<link|<img|<iframe", page)


def test_the_picture_is_180_mm_wide_at_300_dpi(tmp_path):
    record = fake_record()
    pictures.save_picture(record, {}, tmp_path / "picture.png")
    width = int.from_bytes((tmp_path / "picture.png").read_bytes()[16:20], "big")
    assert width == round(180 / 25.4 * 300) or width == int(180 / 25.4 * 300)


def test_the_page_and_the_card_say_which_threshold_and_by_which_rule():
    record = fake_record()
    assert cards.thresholds(record) == ""
    record["config"]["evaluation"] = {"threshold": "youden"}
    record["classes"] = ["well", "ill"]
    local = dict.fromkeys(cards.hospitals(record), None) | {cards.hospitals(record)[0]: 0.123456}
    record["thresholds"] = {"federated": {"*": 0.3}, "local": local, "central": {"east": 1e-5}}
    told = cards.thresholds(record)
    assert told.startswith(
        "Predicted is 'ill' from a score of 0.123 to 0.5 (local only), 0.3 (federated), 1e-05 (centralised) on"
    )
    assert "sensitivity + specificity (Youden's J) on its own validation patients" in told
    assert cards.markdown(told) in cards.model_card(record)
    assert "from a score of 0.123 to 0.5 (local only)" in html(record)


def test_names_cannot_leave_the_page_or_the_cards():
    record = RECORDS["evil"]()
    page = html(record)
    assert EVIL not in page
    assert page.count("&lt;script&gt;") > 5
    assert "<script" not in cards.model_card(record)
    assert "<script" not in cards.privacy_statement(record)
    assert r"| a\|b |" in cards.model_card(record)


def test_the_privacy_statement_names_all_that_this_run_sent():
    record = fake_record()
    assert record["statistics"] in cards.privacy_statement(record)
    assert "control variate" not in cards.privacy_statement(record)
    assert "control variate" in cards.privacy_statement({**record, "control_variates": True})


def test_the_privacy_statement_says_unit_relation_epsilon_delta_mechanism_and_who_is_trusted():
    record = fake_record()
    settings = {"privacy": {"method": "full", "statistics": 0.0}}
    account = {
        "target": 1.0,
        "delta": 1e-4,
        "unit": "record",
        "relation": "add or remove one",
        "noise_by": "each hospital",
    }
    spent = {
        "east": {"epsilon": 0.75, "events": ["[20.0, 1.0, 1]"], "rounds": 10},
        "west": {"epsilon": 0.998, "events": [], "rounds": 10},
    }
    statement = cards.privacy_statement(
        {**record, "config": record["config"] | settings, "privacy": account | {"spent": spent}}
    )
    for said in (
        "epsilon 0.998 at delta 0.0001 for one record",
        "Neighbours: add or remove one",
        "noised at each hospital (one step a round",
        "The noise is Gaussian, and composed over 10 rounds",
        "the coordinator saw the noised update of every single hospital",
        "one step a round on all rows",
        "none; public ranges stood in",
        "The coordinator**: it sees every hospital's noised updates",
        "Not covered:",
    ):
        assert said in statement
    assert "no differential privacy" not in statement
    assert "Training loss" not in statement


def test_the_mean_of_hospitals_stands_in_the_report_and_in_the_card_with_its_interval():
    record = fake_record()
    mean = cards.mean_of_hospitals(record, "federated", "auroc")
    assert mean.low < mean.value < mean.high
    told = " ".join(" ".join(Page(html(record)).words).split())
    assert words.interval(mean) in told
    assert words.interval(mean) in cards.model_card(record)


def test_synthetic_data_are_called_so_in_every_output(tmp_path):
    record = without_comparators(fake_record(hospitals=1))
    pages = {}
    for synthetic in (False, True):
        marked = {**record, "synthetic": synthetic}
        pictures.save_picture(marked, {}, tmp_path / "picture.png")
        pages[synthetic] = (tmp_path / "picture.png").read_bytes()
        for text in (html, cards.model_card, cards.privacy_statement):
            assert ("SYNTHETIC" in text(marked)) == synthetic
    assert pages[False] != pages[True]


def test_the_page_says_what_a_reader_must_know():
    record = fake_record()
    told = " ".join(" ".join(Page(html(record)).words).split())
    for expected in (
        record["command"],
        record["weights_sha256"],
        "CC BY 4.0",
        "Detrano",
        "strategy.name",
        "fedavg",
        "1.41.0",
        "nan: the update holds NaN",
    ):
        assert expected in told
    for kind in record["results"]:
        for metric in record["results"][kind]["pooled"]:
            assert words.interval(cards.estimate(record, kind, metric)) in told
    for other in ("local", "central"):
        assert words.interval(cards.difference(record, other, "auroc"), signed=True) in told


@pytest.mark.parametrize(
    ("metric", "gap", "verdict"),
    [
        (
            "auroc",
            [0.03, 0.01, 0.05],
            "better than local-only training (difference +0.030, 95 % interval +0.010 to +0.050)",
        ),
        ("auroc", [-0.03, -0.05, -0.01], "worse than local-only"),
        ("auroc", [0.03, -0.01, 0.07], "not shown to differ from local-only"),
        (
            "auroc",
            [0.03, None, None],
            "not shown to differ from local-only training (difference +0.030, interval not defined)",
        ),
        ("brier", [-0.03, -0.05, -0.01], "better than local-only"),
    ],
)
def test_the_sentence_claims_no_more_than_the_interval(metric, gap, verdict):
    record = {**fake_record(), "headline": metric}
    record["differences"]["local"]["pooled"][metric] = gap
    sentence = cards.headline(record)
    assert verdict in sentence
    assert sentence.count(".") == len(re.findall(r"\d\.\d", sentence)) + 1


def test_the_sentence_falls_back_where_the_difference_is_not_defined():
    record = fake_record()
    for other in record["differences"]:
        del record["differences"][other]["pooled"]["auroc"]
    assert "; in accuracy it is " in cards.headline(record)


@given(
    counts=st.lists(st.lists(st.integers(0, 40), min_size=2, max_size=2), min_size=1, max_size=6),
    public=st.booleans(),
)
def test_small_counts_are_hidden_and_do_not_follow_from_others(counts, public):
    record = fake_record(hospitals=len(counts), rounds=1, public=public)
    for hospital, row in zip(record["hospitals"], counts, strict=True):
        hospital["train"] = {"rows": sum(row), "classes": row}
        hospital["validation"] = hospital["test"] = {"rows": 0, "classes": [0, 0]}
    for line, row in zip(report.split_table(record).rows, counts, strict=True):
        shown = line[4:6]
        small = [count < 5 and not public for count in row]
        assert shown == ["<5" if hide else str(count) for count, hide in zip(row, small, strict=True)]
        assert (str(sum(row)) == line[6]) == (not any(small))
        assert line[1] == "–" if any(small) else line[1] == str(sum(row))


def test_bins_with_few_patients_are_drawn_of_public_data_only():
    record = fake_record()
    public = pictures.calibration_svg(record)
    private = pictures.calibration_svg({**record, "data": {**record["data"], "public": False}})
    assert private.count("<use") < public.count("<use")


def test_chinese_names_are_drawn_or_numbered(monkeypatch):
    record = RECORDS["chinese"]()
    monkeypatch.setattr(paper, "drawable", str.isascii)
    assert paper.class_labels(record) == [f"class {number}" for number in range(1, 12)]
    page = html(record)
    assert "3 外科" in page
    assert "class 3" in page
    assert "北京协和医院" in page
    assert "hospital 1" in pictures.forest_svg(record, "auroc")
    monkeypatch.setattr(paper, "drawable", lambda _: True)
    assert paper.class_labels(record)[2] == "外科"


def test_a_font_has_latin_letters_but_not_every_sign():
    assert paper.drawable("Hôpital Zürich – 3")
    assert not paper.drawable("\U0010ffff")


def test_curves_are_read_by_rounds_of_training(tmp_path):
    record = fake_record(rounds=3)
    folder = save_run(record, tmp_path)
    curves = report.read_curves(folder / "metrics.csv", record)
    assert list(curves) == cards.hospitals(record)
    assert curves["cleveland"][0] == [0.0, 1.0, 2.0, 3.0]
    assert curves["cleveland"][1][-1] == cards.estimate(record, "federated", "auroc", "cleveland").value
    assert report.read_curves(folder / "metrics.csv", {**record, "stopped": "patience"})["cleveland"][0] == [
        0.0,
        1.0,
        2.0,
    ]
    assert report.read_curves(tmp_path / "absent.csv", record) == {}


@pytest.mark.parametrize("synthetic", [True, False])
def test_the_table_of_metrics_says_what_data_it_is_of_and_any_reader_reads_it(synthetic, tmp_path):
    record = {**fake_record(rounds=3, hospitals=("a, b", 'the "old" one')), "synthetic": synthetic}
    for item in record["rounds"]:
        item["validation_loss"] = None
        item["hospitals"] = {name: {"auroc": 0.1 * item["round"], "brier": None} for name in cards.hospitals(record)}
    records.write_metrics(tmp_path, record)
    frame = pd.read_csv(tmp_path / records.METRICS)
    assert list(frame.columns) == ["round", "hospital", "metric", "value", "data"]
    assert set(frame["data"]) == {"SYNTHETIC" if synthetic else "real"}
    assert set(frame["hospital"]) == {"*", "a, b", 'the "old" one'}
    assert set(frame["metric"]) == {"train_loss", "update_norm", "auroc", "accuracy"}
    losses = frame.query("hospital == '*' and metric == 'train_loss'")["value"]
    assert losses.tolist() == [item["train_loss"] for item in record["rounds"]]
    curves = report.read_curves(tmp_path / records.METRICS, {**record, "stopped": "patience"})
    assert curves == {name: ([0.0, 1.0, 2.0], [0.1, 0.2, 0.1 * 3]) for name in cards.hospitals(record)}


def test_who_was_silent_and_who_was_dropped_is_told():
    record = fake_record(rounds=9)
    rows = report.rounds_table(record).rows
    assert rows[0][1:3] == ["all 4", "–"]
    assert rows[3][1:3] == ["all 4", "va long beach (nan)"]
    assert rows[6][1] == "3 of 4; silent: cleveland"
    assert report.drops_table(record).rows == [
        ["va long beach", "nan: the update holds NaN", "2"],
        ["cleveland", "no answer", "1"],
    ]
    assert report.drops_table({**record, "rounds": record["rounds"][:2]}) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 99}'])
def test_a_folder_without_a_readable_record_is_refused(text, tmp_path):
    (tmp_path / "run.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"run\.json"):
        report.write_report(tmp_path)


def test_a_folder_that_is_no_run_is_told_what_one_is_and_where_they_lie(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def refusal(name):
        with pytest.raises(UsageError) as caught:
            report.load(report.Path(name))
        assert "\n" not in str(caught.value)
        assert "Errno" not in str(caught.value)
        return str(caught.value)

    for name in ("docs", "absent"):
        (tmp_path / "docs").mkdir(exist_ok=True)
        assert f"{name}: not a run folder (run.json is missing)" in refusal(name)
        assert "such as runs/heart-0001; there is none here yet" in refusal(name)
    save_run(fake_record(), tmp_path / "runs" / "heart-0001")
    save_run(fake_record(), tmp_path / "runs" / "sweep-heart" / "seed=1")
    assert refusal("docs").endswith("here: runs/heart-0001, runs/sweep-heart/seed=1")
    assert refusal("runs/sweep-heart").endswith(
        "holds runs and is none itself; name them, for example: runs/sweep-heart/seed=1"
    )
    assert refusal("runs/heart-0001/run.json").endswith("got a file; its folder is runs/heart-0001")
    (tmp_path / "docs" / "config.toml").touch()
    assert refusal("docs").endswith("not finished; go on with it: fedward simulate --resume docs")


def labels_of(drawing, names):
    """Return the names in the order in which they stand in a drawing from top to bottom."""
    found = re.findall(r">([^<>]+)</text>", drawing)
    return [text for text in found if text in names]


@pytest.mark.parametrize("hospitals", [("cleveland", "hungary", "switzerland", "va"), 30, 60])
def test_hospitals_stand_in_one_order_everywhere(hospitals):
    record = fake_record(hospitals=hospitals)
    names = cards.hospitals(record)
    drawn = paper.drawn_hospitals(record)
    largest = sorted((cards.rows(item, "test") for item in record["hospitals"]), reverse=True)[: paper.MOST]
    assert drawn == [name for name in names if name in drawn]
    by_name = {item["name"]: cards.rows(item, "test") for item in record["hospitals"]}
    assert sorted((by_name[name] for name in drawn), reverse=True) == largest
    for metric in ("auroc", "accuracy", "brier"):
        assert labels_of(pictures.forest_svg(record, metric), names) == drawn
    assert labels_of(pictures.differences_svg(record), names) == drawn
    assert labels_of(pictures.split_svg(record), names) == drawn
    for table in (report.hospital_table(record), report.split_table(record)):
        assert [row[0] for row in table.rows if row[0] != "mean of hospitals"] == names


def test_what_is_not_defined_is_explained_wherever_it_shows():
    whole, gaps = fake_record(), nulls(fake_record())
    reason = "AUROC is not defined where the test patients are all of one class, or there are none"
    for text in (html, cards.model_card):
        assert reason not in text(whole)
        assert reason in text(gaps)
    assert report.hospital_table(whole).note == report.pooled_table(whole).note == ""
    assert report.hospital_table(gaps).note == f"–: {reason}."
    assert report.pooled_table(gaps).note == f"–: {reason}."
    assert "–: " in report.rounds_table(gaps).note or "– for AUROC" in report.rounds_table(gaps).note
    page = html(gaps, {"hungary": ([0.0, 1.0], [0.5, 0.6])})
    for what in ("No mark: ", "No line: "):
        assert f"{what}{reason}" in page
        assert what not in html(whole, {name: ([0.0, 1.0], [0.5, 0.6]) for name in cards.hospitals(whole)})


def test_the_picture_says_where_a_number_is_not_defined():
    record = nulls(fake_record())
    with paper.style():
        axes = paper.place(paper.sheet(100, 100), 20, 20, 40, 60)
        forest.draw(axes, forest.rows_of(record, "auroc"), forest.marks_of(record), "AUROC", numbers=True)
    beside = [text.get_text() for text in axes.texts]
    assert beside[0] == "not defined"
    assert beside[1] == words.interval(cards.estimate(record, "federated", "auroc", "hungary"), 2)
    assert words.DASH not in beside


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium to lay the page out")
@pytest.mark.parametrize("classes", [("no disease", "disease"), CHINESE[:4]])
def test_no_table_is_wider_than_a_page_of_1100_pixels(classes, tmp_path):
    record = fake_record(hospitals=("a clinic with a long name", *"bcdefgh"), classes=classes)
    if len(classes) > 2:
        for other in record["differences"].values():
            for line in (other["pooled"], *other["hospitals"].values()):
                line.pop("auroc")
    told = (
        "document.querySelectorAll('details').forEach(each => each.open = true);"
        "document.title = [...document.querySelectorAll('.wide')].map(each => each.scrollWidth - each.clientWidth)"
    )
    (tmp_path / "page.html").write_text(html(record).replace("</body>", f"<script>{told}</script></body>"))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    command += ["--window-size=1100,900", "--dump-dom", (tmp_path / "page.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    beyond = re.search(r"<title>(.*?)</title>", dom)[1].split(",")
    assert len(beyond) == html(record).count('<div class="wide">')
    assert set(beyond) == {"0"}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12).map(sorted), st.floats(0.001, 0.5))
def test_labels_are_kept_apart_in_order(values, gap):
    moved = panels.apart(values, gap)
    assert all(after - before >= gap * (1 - 1e-6) for before, after in itertools.pairwise(moved))
    assert np.mean(moved) == pytest.approx(np.mean(values))


@pytest.mark.slow
def test_very_many_hospitals_do_not_take_long(tmp_path):
    record = fake_record(8, hospitals=3000, rounds=3)
    curves = {name: ([0.0, 1.0], [0.6, 0.8]) for name in cards.hospitals(record)}
    start = time.process_time()
    pictures.save_picture(record, curves, tmp_path / "picture.png")
    page = report.page(record, curves)
    assert time.process_time() - start < 8
    assert "all 3,000 hospitals" in page
    assert "2,800 more hospitals" in page
    assert len(page) < 2_000_000


def test_the_page_says_which_round_is_kept_and_where_a_run_went_on():
    record = fake_record(8) | {"stopped": "patience", "trained": 9, "continued_after": 4}
    facts = dict(report.origin_table(record).rows)
    assert facts["rounds run"].endswith(", stopped early, keeping the model after 9")
    assert facts["started"] == "2026-01-01T10:00:00Z, after round 4 of a run begun before"
    assert "after round" not in html(fake_record(8)).split("started", 1)[1][:200]
