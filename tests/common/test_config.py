"""Settings: what is refused and how, and that settings survive every way in which they travel."""

import dataclasses
import json
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Literal, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import (
    Choice,
    EvaluationConfig,
    LimitsConfig,
    Range,
    RunConfig,
    SelectionConfig,
    StoppingConfig,
    TrainingConfig,
    UpdateConfig,
    as_table,
    assign,
    describe,
    dumps,
    loads,
    merge,
    parse,
)
from common.errors import ConfigError
from common.messages import run_config, run_text

HEART = {"task": {"name": "heart"}}

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
keys = st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyz_"), min_size=1, max_size=8)
scalars = st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False) | texts


def values_of(annotation):
    """Draw any allowed value of a setting from its own annotation."""
    bare, *extras = get_args(annotation)
    limits = next((extra for extra in extras if isinstance(extra, Range)), Range())
    if get_origin(bare) is Literal:
        return st.sampled_from(get_args(bare))
    if bare is bool:
        return st.booleans()
    if bare is int:
        return st.integers(int(limits.low), int(limits.high))
    assert bare is float
    return st.floats(limits.low, limits.high, exclude_min=limits.open_low)


def settings_of(kind):
    return st.builds(kind, **{f.name: values_of(f.type) for f in fields(kind)})


def is_contradiction(drawn):
    """Tell a threshold that nobody could choose."""
    return isinstance(drawn, EvaluationConfig) and drawn.threshold != "half" and not drawn.validation


choices = st.builds(
    Choice,
    keys,
    st.dictionaries(keys.filter("name".__ne__), scalars, max_size=3).map(lambda table: tuple(sorted(table.items()))),
)
parts = {
    "training": TrainingConfig,
    "selection": SelectionConfig,
    "limits": LimitsConfig,
    "update": UpdateConfig,
    "evaluation": EvaluationConfig,
}
runs = st.builds(
    RunConfig,
    task=choices,
    strategy=choices,
    seed=st.integers(0, 2**32 - 1),
    rounds=st.integers(1, 1_000_000),
    **{name: settings_of(kind).filter(lambda drawn: not is_contradiction(drawn)) for name, kind in parts.items()},
)
nested = st.recursive(
    st.dictionaries(keys, scalars | st.lists(scalars, max_size=3), max_size=3),
    lambda below: st.dictionaries(keys, scalars | below, max_size=3),
    max_leaves=8,
)


class TestRefusals:
    @pytest.mark.parametrize(
        ("table", "words"),
        [
            ({"round": 3}, ["round: unknown key", "did you mean 'rounds'?"]),
            ({"training": {"learning_rat": 0.1}}, ["training.learning_rat: unknown key", "'learning_rate'"]),
            ({"training": {"optimizer": "adan"}}, ["training.optimizer", "'adan'", "did you mean 'adam'?"]),
            ({"update": {"codec": 8}}, ["update.codec", "8 (int)", "int8"]),
            ({"rounds": 0}, ["rounds", "from 1", "got 0"]),
            ({"rounds": 3.0}, ["rounds", "a whole number", "3.0 (float)"]),
            ({"rounds": True}, ["rounds", "a whole number", "True (bool)"]),
            ({"rounds": "3"}, ["rounds", "a whole number", "'3' (str)"]),
            ({"training": {"learning_rate": 0}}, ["training.learning_rate", "above 0", "got 0"]),
            ({"training": {"learning_rate": float("nan")}}, ["training.learning_rate", "a number", "nan"]),
            ({"training": {"learning_rate": float("inf")}}, ["training.learning_rate", "inf"]),
            ({"training": {"learning_rate": False}}, ["training.learning_rate", "a number"]),
            ({"training": {"augment": 1}}, ["training.augment", "true or false", "1 (int)"]),
            ({"training": 3}, ["training", "a table of settings", "3 (int)"]),
            ({"selection": {"fraction": 1.5}}, ["selection.fraction", "1.5"]),
            ({"strategy": {"mu": 0.1}}, ["strategy.name", "the strategy that has mu", "strategy.mu"]),
            ({"strategy": {"nam": "fedprox"}}, ["strategy.nam: unknown key", "did you mean 'strategy.name'?"]),
            ({"strategy": {"name": "fedprox", "mu": [1]}}, ["strategy.mu", "[1] (list)"]),
            ({"stopping": {"patience": 2}}, ["stopping.patience", "evaluation.validation"]),
            (
                {"stopping": {"patience": 2}, "evaluation": {"validation": 0.2, "every": 0}},
                ["stopping.patience", "evaluation.every"],
            ),
        ],
    )
    def test_the_message_names_the_key_what_came_and_what_is_near(self, table, words):
        with pytest.raises(ConfigError) as caught:
            parse(RunConfig, HEART | table)
        message = str(caught.value)
        assert all(word in message for word in words), message
        assert "\n" not in message

    def test_a_required_setting_that_is_missing_is_named(self):
        with pytest.raises(ConfigError, match=r"^task: this setting is required"):
            parse(RunConfig, {})

    def test_an_unknown_part_and_an_unknown_option_of_a_part_are_named(self):
        @dataclass(frozen=True)
        class Prox:
            mu: Annotated[float, Range(0, 1), "pull"] = 0.5

        kinds = {"prox": Prox}
        assert Choice("prox", (("mu", 0.25),)).resolve(kinds, "strategy") == Prox(0.25)
        with pytest.raises(ConfigError, match=r"strategy.name: unknown strategy 'pro'; did you mean 'prox'\?"):
            Choice("pro").resolve(kinds, "strategy")
        with pytest.raises(ConfigError, match=r"strategy.nu: unknown key; .*mu"):
            Choice("prox", (("nu", 1),)).resolve(kinds, "strategy")
        with pytest.raises(ConfigError, match=r"strategy.mu: expected a number from 0 to 1, got 2"):
            Choice("prox", (("mu", 2),)).resolve(kinds, "strategy")

    def test_text_that_is_not_toml_names_its_origin_and_line(self):
        with pytest.raises(ConfigError, match=r"mine.toml: not valid TOML: .*line 2"):
            loads("rounds = 3\nseed = = 4", "mine.toml")

    @given(st.sampled_from(sorted(parts)), st.data())
    def test_every_setting_refuses_what_lies_just_outside_its_range(self, part, data):
        limited = [f for f in fields(parts[part]) if any(isinstance(extra, Range) for extra in get_args(f.type))]
        if not limited:
            return
        item = data.draw(st.sampled_from(limited))
        kind, *extras = get_args(item.type)
        limits = next(extra for extra in extras if isinstance(extra, Range))
        low = limits.low if limits.open_low else limits.low - 1
        for value in (kind(low), kind(limits.high) + 1):
            with pytest.raises(ConfigError, match=rf"^{part}\.{item.name}: expected a number"):
                parse(RunConfig, HEART | {part: {item.name: value}})


class TestRoundTrips:
    @given(runs)
    def test_parse_undoes_as_table(self, config):
        assert parse(RunConfig, as_table(config)) == config

    def test_the_order_in_which_options_are_written_does_not_matter(self):
        one = assign(["strategy.name=fedadam", "strategy.tau=0.1", "strategy.beta_1=0.5"])
        other = assign(["strategy.beta_1=0.5", "strategy.tau=0.1", "strategy.name=fedadam"])
        assert parse(RunConfig, HEART | one) == parse(RunConfig, HEART | other)

    @given(runs)
    def test_settings_survive_toml_and_the_wire(self, config):
        assert parse(RunConfig, loads(dumps(as_table(config)))) == config
        assert run_config(run_text(config)) == config

    @given(nested)
    def test_loads_undoes_dumps_for_any_tables(self, table):
        assert loads(dumps(table)) == table

    @given(runs)
    def test_settings_travel_as_the_same_text_for_the_same_settings(self, config):
        twin = parse(RunConfig, json.loads(json.dumps(as_table(config))))
        assert run_text(twin) == run_text(config)
        assert run_config(run_text(twin)) is run_config(run_text(config))

    def test_stopping_and_its_contradictions_survive_too(self):
        config = RunConfig(
            Choice("heart"), evaluation=EvaluationConfig(validation=0.2), stopping=StoppingConfig(3, 0.01)
        )
        assert parse(RunConfig, loads(dumps(as_table(config)))) == config


class TestWords:
    def test_values_are_toml_and_otherwise_text(self):
        words = ["a=3", "b=0.5", "c=true", "d=fedavg", 'e="7"', "f.g=x=y", "h=dirichlet:0.3", "f.i=-1e-3", "j="]
        assert assign(words) == {
            "a": 3, "b": 0.5, "c": True, "d": "fedavg", "e": "7", "f": {"g": "x=y", "i": -0.001}, "h": "dirichlet:0.3", "j": "",
        }  # fmt: skip

    def test_the_last_word_wins(self):
        assert assign(["a.b=1", "a.b=2"]) == {"a": {"b": 2}}

    @pytest.mark.parametrize("word", ["rounds", "=3", "a..b=3", ".a=3", "a.=3"])
    def test_a_word_that_is_no_setting_is_refused_by_name(self, word):
        with pytest.raises(ConfigError, match=r"--set .*expected key=value") as caught:
            assign([word])
        assert word in str(caught.value)

    @pytest.mark.parametrize("words", [["a=1", "a.b=2"], ["a.b=2", "a=1"]])
    def test_a_table_and_a_value_of_one_name_end_in_one_of_them(self, words):
        assert assign(words) == assign(words[-1:])


class TestMerge:
    def test_exchanging_a_part_drops_the_options_of_the_other(self):
        base = {"strategy": {"name": "fedprox", "mu": 0.1}, "rounds": 3}
        assert merge(base, assign(["strategy.name=fedavg"])) == {"strategy": {"name": "fedavg"}, "rounds": 3}
        assert merge(base, assign(["strategy.name=fedprox"])) == base
        assert merge(base, assign(["strategy.mu=0.2"]))["strategy"] == {"name": "fedprox", "mu": 0.2}

    @given(nested, nested)
    def test_what_lies_on_top_wins_and_neither_is_changed(self, base, over):
        before = repr((base, over))
        merged = merge(base, over)
        assert merge(merged, over) == merged
        assert set(merged) == {*base, *over}
        assert repr((base, over)) == before

    @given(nested)
    def test_nothing_laid_over_changes_nothing(self, table):
        assert merge(table, {}) == table
        assert merge({}, table) == table


class TestDescribe:
    def leaves(self, kind, path=""):
        for item in fields(kind):
            bare = get_args(item.type)[0] if get_origin(item.type) is Annotated else item.type
            if is_dataclass(bare) and bare is not Choice:
                yield from self.leaves(bare, f"{path}{item.name}.")
            else:
                yield f"{path}{item.name}.name" if bare is Choice else f"{path}{item.name}"

    def test_every_setting_is_described_once_with_a_meaning(self):
        rows = describe(RunConfig)
        assert [key for key, *_ in rows] == list(self.leaves(RunConfig))
        assert all(meaning and default for _, default, meaning in rows)

    def test_the_defaults_that_are_described_are_the_defaults(self):
        table = {key: default for key, default, _ in describe(RunConfig) if default != "required"}
        text = [f"{key}={value}" for key, value in table.items()]
        assert parse(RunConfig, merge(HEART, assign(text))) == RunConfig(Choice("heart"))

    def test_limits_and_choices_are_part_of_the_meaning(self):
        rows = {key: meaning for key, _, meaning in describe(RunConfig)}
        assert "from 1 to" in rows["rounds"]
        assert "one of sgd, momentum, adam" in rows["training.optimizer"]
        assert "above 0" in rows["selection.fraction"]


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig(Choice("heart")).rounds = 3  # type: ignore[misc]
