"""The site policy: what it refuses, how it says so, and that nothing but the hospital's own file counts."""

import dataclasses
import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import policy as policies
from client.policy import (
    Allow,
    Asked,
    Limits,
    Names,
    Privacy,
    Site,
    SitePolicy,
    added,
    default_policy,
    markdown,
    parse_policy,
    permits,
    read_policy,
    rules,
    template,
)
from common.config import Choice, RunConfig, TrainingConfig, as_table, describe, dumps
from common.errors import ConfigError, DataError, PolicyRefused
from common.messages import COMPARE, EVALUATE, STATISTICS, TRAIN
from common.tasks import TASKS, read_run

ROOT = Path(__file__).parents[2]
CA, BUNDLE = "3f" * 32, "2d" * 32
HEART = Choice("heart")
NAMES = ("east", "north", "south", "west")


def config(**settings):
    training = {key: settings.pop(key) for key in ("batch_size", "epochs") if key in settings}
    return RunConfig(
        task=settings.pop("task", HEART), training=TrainingConfig(**{"batch_size": 10, **training}), **settings
    )


def allowing(section="allow", **settings):
    """Return a policy that permits `asking`, with other settings in one section."""
    base = SitePolicy(
        Site("east", "heart", "heart.csv"),
        Allow(
            Names(["heart"]), Names([BUNDLE]), Names([CA]), Names(), Names(["count", "task", "compare"]), metrics=True
        ),
        Limits(min_cohort=4, min_patients=100, min_records=10, min_steps=10, max_steps=10, max_rounds=20),
    )
    return replace(base, **{section: replace(getattr(base, section), **settings)})


def asking(kind=TRAIN, **facts):
    base = Asked(kind, HEART, config(), CA, BUNDLE, 1, NAMES, 4, 100, 1000)
    return replace(base, **facts)


def refusal(policy, asked):
    with pytest.raises(PolicyRefused) as caught:
        permits(policy, asked)
    return caught.value


def objections(policy, asked):
    """Return the codes of all rules that a request breaks, not just of the first."""
    return [
        rule.code for rule in rules() if (not rule.kinds or asked.kind in rule.kinds) and rule.objection(policy, asked)
    ]


WIDE = Choice("heart", (("hidden", 32),))

# Every rule: a policy, what it refuses at its limit, and what it permits beyond.
CASES = {
    "coordinator": (allowing(), asking(coordinator="4f" * 32), asking(coordinator=":".join(["3F"] * 32))),
    "bundle": (allowing(), asking(bundle="2e" * 32), asking(bundle=BUNDLE.upper())),
    "kind": (allowing(), asking("query.patients"), asking(EVALUATE)),
    "task": (
        allowing(tasks=Names(["heart", "notes"])),
        asking(task=Choice("pneumonia"), config=config(task=Choice("pneumonia"))),
        asking(task=Choice("notes"), config=config(task=Choice("notes"))),
    ),
    "settings": (
        allowing(settings=Names(["task.hidden=32", "task.hidden=64"])),
        asking(),
        asking(task=WIDE, config=config(task=WIDE)),
    ),
    "cohort": (
        allowing(cohort=Names(["north", "south", "west"])),
        asking(cohort=("east", "north", "south", "stranger")),
        asking(),
    ),
    "min_cohort": (allowing(), asking(cohort=NAMES[:3], hospitals=3), asking()),
    "privacy": (allowing("privacy", minimum="dp", epsilon=3.0), asking(epsilon=3.1), asking(epsilon=3.0)),
    "statistics": (allowing(statistics=Names(["count"])), asking(STATISTICS), asking(TRAIN)),
    "metrics": (allowing(metrics=False), asking(EVALUATE), asking(TRAIN)),
    "compare": (allowing(statistics=Names(["count", "task"])), asking(COMPARE), asking(EVALUATE)),
    "min_patients": (allowing(), asking(rows=99), asking(rows=100)),
    "min_records": (
        allowing("limits", max_steps=100),
        asking(config=config(batch_size=9)),
        asking(config=config(batch_size=10)),
    ),
    "min_steps": (allowing(), asking(config=config(batch_size=11)), asking(config=config(batch_size=10))),
    "max_steps": (
        allowing("limits", max_steps=19),
        asking(config=config(epochs=2)),
        asking(config=config(batch_size=10)),
    ),
    "max_rounds": (allowing(), asking(config=config(rounds=21)), asking(config=config(rounds=20))),
    "round": (allowing(), asking(round=21), asking(round=20)),
    "max_rounds_a_day": (
        allowing("limits", max_rounds_a_day=7),
        asking(rounds_today=7),
        asking(rounds_today=6),
    ),
    "max_hours_a_day": (
        allowing("limits", max_hours_a_day=2.5),
        asking(hours_today=2.5),
        asking(hours_today=2.49),
    ),
    "max_questions_a_day": (
        allowing("limits", max_questions_a_day=7),
        asking(EVALUATE, questions_today=7),
        asking(EVALUATE, questions_today=6),
    ),
    "max_parameters": (allowing("limits", max_parameters=5000), asking(parameters=5001), asking(parameters=5000)),
}


class TestRules:
    def test_every_rule_has_a_case(self):
        assert list(CASES) == [rule.code for rule in rules()]

    @pytest.mark.parametrize("code", CASES)
    def test_it_refuses_at_the_limit_and_permits_beyond(self, code):
        policy, refused, permitted = CASES[code]
        error = refusal(policy, refused)
        assert error.code == code
        assert error.exit_code == 3
        permits(policy, permitted)

    @pytest.mark.parametrize("code", CASES)
    def test_a_refusal_says_what_why_and_what_to_do_in_one_line(self, code):
        text = str(refusal(*CASES[code][:2]))
        assert text.startswith(f"REFUSED policy.{code}: ")
        assert "this hospital" in text
        assert text.endswith("sk the coordinator.")
        setting = next(rule.setting for rule in rules() if rule.code == code)
        if setting:
            assert f"Change [{setting.partition('.')[0]}] in site.toml, or ask the coordinator." in text
        assert "\n" not in text

    @pytest.mark.parametrize("code", CASES)
    def test_its_code_passes_the_border(self, code):
        """The coordinator takes a code for one only if it is a short word."""
        assert code.isidentifier()
        assert len(code) <= 32

    @pytest.mark.parametrize("kind", [STATISTICS, TRAIN, EVALUATE, COMPARE])
    def test_the_honest_request_is_permitted(self, kind):
        permits(allowing(), asking(kind))

    @pytest.mark.parametrize("kind", [STATISTICS, TRAIN, EVALUATE, COMPARE])
    @pytest.mark.parametrize("code", [code for code in CASES if code != "kind"])
    def test_it_counts_for_its_kinds_of_message_and_no_other(self, code, kind):
        policy, refused, _ = CASES[code]
        kinds = next(rule.kinds for rule in rules() if rule.code == code)
        assert (code in objections(policy, replace(refused, kind=kind))) is (not kinds or kind in kinds)

    def test_every_setting_of_limits_and_privacy_is_a_rules_or_the_workers_own(self):
        settings = {key for key, _, _ in describe(SitePolicy) if not key.startswith("site.")}
        workers_own = {"allow.smallest_cell", "limits.memory_mb", "limits.threads", "privacy.epsilon"}
        workers_own |= {"privacy.budget", "privacy.delta"}  # the ledger's
        assert settings - workers_own == {rule.setting for rule in rules() if rule.setting}

    def test_the_words_of_the_blueprint(self):
        policy = allowing("limits", min_records=64)
        assert str(refusal(policy, asking(config=config(batch_size=1)))) == (
            "REFUSED policy.min_records: the run asks for 1 record a step, this hospital allows 64 or more. "
            "Change [limits] in site.toml, or ask the coordinator."
        )

    @given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 200), st.integers(1, 40))
    def test_steps_are_those_of_the_plan(self, rows, batch_size, epochs, least):
        import numpy as np

        from client.training import plan

        asked = asking(rows=rows, config=config(batch_size=batch_size, epochs=min(epochs, 5)))
        assert asked.steps(least) == len(plan(rows, batch_size, min(epochs, 5), np.random.default_rng(0), least))

    @given(st.integers(0, 8), st.integers(0, 8), st.integers(1, 8))
    def test_a_cohort_is_as_large_as_the_smaller_claim(self, named, claimed, least):
        cohort = tuple(f"h{number}" for number in range(named))
        size = min(named, claimed) if named else claimed
        asked = asking(cohort=cohort, hospitals=claimed)
        policy = allowing("limits", min_cohort=least)
        if size < least:
            assert refusal(policy, asked).code == "min_cohort"
        else:
            permits(policy, asked)

    def test_one_name_twice_is_one_hospital(self):
        assert refusal(allowing(), asking(cohort=("east", "north", "south", "south"))).code == "min_cohort"

    def test_hospitals_that_are_not_named_are_not_allowed_where_names_are(self):
        permits(allowing(cohort=Names(f"{name}@{'ab' * 32}" for name in NAMES)), asking())
        policy = allowing(cohort=Names(NAMES))
        assert refusal(policy, asking(cohort=())).code == "cohort"
        assert refusal(policy, asking(hospitals=5)).code == "cohort"

    def test_a_task_may_not_differ_from_that_of_the_settings(self):
        assert refusal(allowing(), asking(config=config(task=Choice("heart", (("hidden", 5000),))))).code == "task"

    @pytest.mark.parametrize("epsilon", [None, 0.0, -1.0, float("nan"), float("inf")])
    def test_a_demand_for_privacy_refuses_what_offers_none(self, epsilon):
        policy = allowing("privacy", minimum="dp")
        for kind in (STATISTICS, TRAIN, EVALUATE, COMPARE):
            assert refusal(policy, asking(kind, epsilon=epsilon)).code == "privacy"

    def test_hours_that_are_no_number_are_refused(self):
        assert refusal(allowing(), asking(hours_today=float("nan"))).code == "max_hours_a_day"

    @pytest.mark.parametrize("round_number", [0, -1, 2**40])
    def test_rounds_that_no_run_has(self, round_number):
        assert refusal(allowing(), asking(round=round_number)).code == "round"

    def test_nothing_is_allowed_by_default(self):
        """Given only who it is, a hospital refuses every kind of message, by every list in turn."""
        bare = SitePolicy(Site("east", "heart", "heart.csv"))
        opened = {"coordinators": Names([CA]), "bundles": Names([BUNDLE]), "tasks": Names(["heart"])}
        for kind in (STATISTICS, TRAIN, EVALUATE, COMPARE):
            policy = bare
            for code, (key, names) in zip(("coordinator", "bundle", "task"), opened.items(), strict=True):
                assert refusal(policy, asking(kind)).code == code
                policy = replace(policy, allow=replace(policy.allow, **{key: names}))
        assert refusal(policy, asking(STATISTICS)).code == "statistics"
        assert refusal(policy, asking(EVALUATE)).code == "metrics"
        assert refusal(policy, asking(COMPARE)).code == "metrics"

    @pytest.mark.parametrize("name", TASKS)
    def test_the_tasks_own_settings_pass_the_defaults(self, name):
        run = read_run({"task": {"name": name}})
        policy = default_policy("east", name, "data")
        for kind in (STATISTICS, TRAIN, EVALUATE):
            asked = asking(kind, task=run.task, config=run)
            assert objections(policy, asked) == ["coordinator", "bundle"], "these a new site allows none of"


class TestSettings:
    """Settings of the task decide which model is trained, so they are those that the hospital approved."""

    @pytest.mark.parametrize(("name", "key"), [(n, item.name) for n, kind in TASKS.items() for item in fields(kind)])
    def test_a_tasks_own_setting_is_the_default_or_named(self, name, key):
        default = getattr(TASKS[name](), key)
        other = not default if isinstance(default, bool) else f"{default}s" if isinstance(default, str) else default + 1
        allow = {"tasks": Names([name])}
        for value, codes in ((default, []), (other, ["settings"])):
            task = Choice(name, ((key, value),))
            asked = asking(task=task, config=config(task=task))
            assert objections(allowing(**allow), asked) == codes
            for text in ("*", json.dumps(value)):
                assert objections(allowing(**allow, settings=Names([f"task.{key}={text}"])), asked) == []

    @pytest.mark.parametrize(
        ("words", "hidden", "good"),
        [
            ([], 16, True),
            ([], 4096, False),
            (["task.hidden=16", "task.hidden=32"], 32, True),
            (["task.hidden=16", "task.hidden=32"], 24, False),
            (["task.hidden=8..64"], 8, True),
            (["task.hidden=8..64"], 64, True),
            (["task.hidden=8..64"], 7, False),
            (["task.hidden=8..64"], 65, False),
            (["task.hidden=8..64"], True, False),
            (["task.hidden=1"], True, False),
            (["task.model=mlp"], 4096, False),
            (["task.hidden=nan..nan"], 16, False),
        ],
    )
    def test_values_and_ranges(self, words, hidden, good):
        task = Choice("heart", (("hidden", hidden),))
        asked = asking(task=task, config=config(task=task))
        assert objections(allowing(settings=Names(words)), asked) == ([] if good else ["settings"])

    def test_a_setting_that_the_task_does_not_have_is_refused(self):
        task = Choice("heart", (("layers", 2),))
        assert objections(allowing(), asking(task=task, config=config(task=task))) == ["settings"]

    def test_where_another_value_is_approved_the_default_is_not(self):
        assert objections(allowing(settings=Names(["task.hidden=32"])), asking()) == ["settings"]

    def test_other_settings_are_free_until_they_are_named(self):
        asked = asking(config=config(seed=5, strategy=Choice("fedprox", (("mu", 0.5),))))
        assert objections(allowing(), asked) == []
        for word in (
            "seed=5",
            "strategy.mu=0..1",
            "training.learning_rate=0.1",
            "training.class_weights=none",
            "rounds=1..20",
        ):
            assert objections(allowing(settings=Names([word])), asked) == [], word
        for word in (
            "seed=6",
            "strategy.mu=0.4",
            "training.optimizer=adam",
            "training.class_weights=balanced",
            "rounds=1..19",
        ):
            assert objections(allowing(settings=Names([word])), asked) == ["settings"], word

    @pytest.mark.parametrize(
        "word", ["strategy.name=fedavg", "selection.fraction=1", "limits.retries=0", "stopping.patience=0"]
    )
    def test_what_acts_at_the_coordinator_alone_is_refused_by_its_name(self, word):
        with pytest.raises(ConfigError, match=rf"allow\.settings: .*got '{word}'"):
            allowing(settings=Names([word]))

    def test_a_setting_of_a_task_stays_when_the_task_is_no_longer_allowed(self):
        assert objections(allowing(tasks=Names(), settings=Names(["task.hidden=4"])), asking()) == ["task", "settings"]

    def test_the_pull_that_acts_here_is_the_one_that_is_asked_for(self):
        """A coordinator may tell one strategy and send another's pull; and what the run leaves open is a default that only the coordinator knows."""
        for told in (Choice("fedprox", (("mu", 0.1),)), Choice("fedprox"), Choice("fedavg")):
            asked = asking(config=config(strategy=told), proximal=5.0)
            assert objections(allowing(settings=Names(["strategy.mu=0..1"])), asked) == ["settings"]
            assert objections(allowing(settings=Names(["strategy.mu=0..9"])), asked) == []

    def test_the_refusal_names_setting_and_value_and_what_is_allowed(self):
        task = Choice("heart", (("hidden", 4096),))
        text = str(
            refusal(allowing(settings=Names(["task.hidden=8..64"])), asking(task=task, config=config(task=task)))
        )
        assert "the setting 'task.hidden' at '4096', this hospital allows 8..64." in text

    @given(st.text(max_size=200))
    def test_a_value_that_is_a_text_can_not_break_the_line(self, text):
        task = Choice("heart", (("model", text + "\r"),))
        assert str(refusal(allowing(), asking(task=task, config=config(task=task)))).isprintable()

    @pytest.mark.parametrize(
        "word",
        [
            "task.hidden",
            "task.hidden=",
            "=3",
            "hidden=3",
            "trainng.optimizer=sgd",
            "task.hidden=8..",
            "task.x.y=1",
            "task.hiden=32",
            "strategy.beta=0.5",
        ],
    )
    def test_what_names_no_setting_is_a_mistake(self, word):
        """Else it would be a rule that never counts."""
        text = added(template("east", "heart", "heart.csv"), "settings", "rounds=1..20")
        with pytest.raises(ConfigError, match=r"allow\.settings: "):
            parse_policy(text.replace("rounds=1..20", word))


class TestRefusalsHoldNoValue:
    @pytest.mark.parametrize("rows", [0, 1, 7, 43, 99])
    def test_a_small_count_of_patients_is_not_told(self, rows):
        assert str(rows) not in str(refusal(allowing("limits", min_patients=888), asking(rows=rows))).replace("888", "")

    @given(st.text(max_size=100), st.sampled_from(["coordinator", "bundle", "kind"]))
    def test_what_the_coordinator_writes_can_not_break_the_line(self, text, name):
        asked = asking(**{name: text + "\n\x1b[2J2026-01-01 allowed"})
        message = str(refusal(allowing(), asked))
        assert message.isprintable()
        assert "2026-01-01" not in message

    @given(st.text(max_size=200))
    def test_names_of_tasks_and_hospitals_neither(self, text):
        for asked in (
            asking(cohort=(*NAMES, text + "\r"), hospitals=5),
            asking(task=Choice(text + "\t"), config=config(task=Choice(text + "\t"))),
        ):
            assert str(refusal(allowing(cohort=Names(NAMES)), asked)).isprintable()


class TestFile:
    @given(st.from_regex(r"\w[\w .-]{0,20}", fullmatch=True), st.text(st.characters(exclude_categories=["Cs"])))
    def test_the_template_is_the_default_policy(self, name, data):
        text = template(name, "heart", data)
        assert parse_policy(text) == default_policy(name, "heart", data)

    def test_the_template_says_what_every_setting_means(self):
        lines = template("east", "heart", "/data/heart.csv").splitlines()
        for key, _, meaning in describe(SitePolicy):
            place = next(number for number, line in enumerate(lines) if line.startswith(key.partition(".")[2] + " = "))
            assert lines[place - 1] == f"# {meaning}"

    def test_what_the_file_leaves_out_is_denied(self):
        policy = parse_policy(dumps({"site": {"name": "east", "task": "heart", "data": "heart.csv"}}))
        assert policy == SitePolicy(Site("east", "heart", "heart.csv"))
        assert not any(getattr(policy.allow, item.name) for item in fields(Allow) if item.name != "smallest_cell")

    def test_every_policy_survives_its_file(self):
        for policy, _, _ in CASES.values():
            assert parse_policy(dumps(as_table(policy))) == policy

    @pytest.mark.parametrize(
        ("old", "new", "words"),
        [
            ("min_records", "min_record", "limits.min_record: unknown key; did you mean 'min_records'?"),
            ("[limits]", "[limit]", "limit: unknown key; did you mean 'limits'?"),
            ("min_records = 8", "min_records = 0", "limits.min_records: expected a number from 1 to 65536, got 0"),
            ("min_records = 8", "min_records = true", "limits.min_records: expected a whole number, got True"),
            ("metrics = true", 'metrics = "yes"', "allow.metrics: expected true or false"),
            ('tasks = ["heart"]', 'tasks = "heart"', "allow.tasks: expected a list of texts"),
            ('tasks = ["heart"]', "tasks = [1]", "allow.tasks: expected a list of texts"),
            (
                "bundles = []",
                'bundles = ["2d08"]',
                "allow.bundles: expected SHA-256 as 64 hexadecimal digits, got '2d08'",
            ),
            ("coordinators = []", 'coordinators = ["xy"]', "allow.coordinators: expected SHA-256"),
            ("cohort = []", 'cohort = ["north@ab"]', "allow.cohort: expected NAME, or NAME@ and 64 hexadecimal digits"),
            ('["count", "task"]', '["counts"]', "allow.statistics: unknown part 'counts'; did you mean 'count'?"),
            ('minimum = "none"', 'minimum = "some"', "privacy.minimum: got 'some' (str)"),
            ("min_steps = 2", "min_steps = 20000", "limits.min_steps: above limits.max_steps"),
            ("min_records = 8", "min_records = 51", "limits.min_patients: below limits.min_records"),
            ('name = "east"', 'name = ["east"]', "site.name: expected text"),
            ('name = "east"', 'name = "/"', "site.name: expected 1 to 64 letters"),
            ('name = "east"', "", "site.name: this setting is required"),
            ("[site]", "[site", "not valid TOML"),
            ("# The hospital itself.", "site = 3", "not valid TOML"),
        ],
    )
    def test_a_mistake_is_named_by_file_and_key(self, tmp_path, old, new, words):
        text = template("east", "heart", "heart.csv")
        assert old in text
        path = tmp_path / "site.toml"
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(ConfigError) as caught:
            read_policy(path)
        assert str(caught.value).startswith(str(path))
        assert words in str(caught.value)

    def test_a_section_that_is_no_table(self):
        with pytest.raises(ConfigError, match="allow: expected a table"):
            parse_policy('allow = 3\n[site]\nname = "a"\ntask = "b"\ndata = "c"')

    def test_the_section_on_the_data_is_not_the_policys(self):
        text = template("east", "heart", "heart.csv")
        mapping = '\n[data]\nformat = "csv"\n[data.columns.age]\nname = "Alter"\n'
        assert parse_policy(text + mapping) == parse_policy(text)

    def test_no_file_is_said(self, tmp_path):
        with pytest.raises(DataError, match="site.toml: cannot be read"):
            read_policy(tmp_path / "site.toml")
        (tmp_path / "site.toml").write_bytes(b"\xff\xfe")
        with pytest.raises(DataError, match="site.toml: cannot be read"):
            read_policy(tmp_path / "site.toml")

    def test_a_policy_can_not_be_changed(self):
        policy = default_policy("east", "heart", "heart.csv")
        parts = [policy, policy.site, policy.allow, policy.limits, policy.privacy]
        for part in parts:
            for item in fields(part):
                with pytest.raises(FrozenInstanceError):
                    setattr(part, item.name, None)
        assert isinstance(policy.allow.tasks, tuple)
        assert not hasattr(policy.allow.tasks, "append")
        assert all(dataclasses.is_dataclass(part) for part in parts)
        hash(policy)


class TestAdded:
    def test_a_value_joins_a_list_and_all_else_stays(self):
        text = template("east", "heart", "heart.csv")
        more = added(added(text, "bundles", BUNDLE), "bundles", "2e" * 32)
        assert parse_policy(more).allow.bundles == (BUNDLE, "2e" * 32)
        different = [pair for pair in zip(text.splitlines(), more.splitlines(), strict=True) if pair[0] != pair[1]]
        assert len(different) == 1
        assert added(more, "bundles", BUNDLE) == more

    def test_a_comment_behind_the_list_stays(self):
        text = template("east", "heart", "heart.csv").replace("bundles = []", "bundles = []  # none yet")
        assert f'bundles = ["{BUNDLE}"]  # none yet' in added(text, "bundles", BUNDLE)

    def test_a_list_over_several_lines_is_left_to_the_user(self):
        text = template("east", "heart", "heart.csv").replace("bundles = []", "bundles = [\n]")
        with pytest.raises(ConfigError, match="allow.bundles is not a list on one line"):
            added(text, "bundles", BUNDLE)

    def test_another_list_of_the_same_name_is_not_taken_for_it(self):
        text = '[data]\nbundles = []\n[site]\nname = "a"\ntask = "b"\ndata = "c"\n[allow]\nbundles = []\n'
        with pytest.raises(ConfigError, match="by hand"):
            added(text, "bundles", BUNDLE)

    def test_a_value_that_does_not_fit_is_refused(self):
        with pytest.raises(ConfigError, match="expected SHA-256"):
            added(template("east", "heart", "heart.csv"), "bundles", "latest")


class TestNoOtherFileCounts:
    def test_the_policy_file_of_a_bundle_can_not_matter(self, tmp_path):
        """A bundle lies first on the path and is the working folder, as Flower has it; only the file named is ever opened."""
        bundle, site = tmp_path / "bundle", tmp_path / "site"
        site.mkdir()
        for folder in (bundle, bundle / "client", bundle / "config"):
            folder.mkdir(parents=True)
            (folder / "site.toml").write_text(
                template("bundle", "notes", "x").replace("min_records = 8", "min_records = 1")
            )
        (site / "site.toml").write_text(template("east", "heart", "heart.csv"))
        script = """
import json, sys
bundle, site, root = sys.argv[1:]
sys.path[:0] = [root]
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from pathlib import Path
from client.policy import read_policy
sys.path.insert(0, bundle)
policy = read_policy(Path(site) / "site.toml")
print(json.dumps([policy.site.name, policy.limits.min_records, [name for name in opened if name.endswith(".toml")]]))
"""
        command = [sys.executable, "-c", script, bundle, site, ROOT]
        environment = {"SITE": str(bundle), "FEDWARD_POLICY": str(bundle / "site.toml"), "HOME": str(bundle)}
        done = subprocess.run(command, cwd=bundle, env=environment, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == ["east", 8, [str(site / "site.toml")]]

    def test_a_run_has_no_setting_that_the_policy_reads(self):
        """The run's limits and privacy share a word with the policy's, and nothing else: they are other classes, and no run can name a policy."""
        assert not {item.name for item in fields(RunConfig)} & {"policy", "allow"}
        assert type(config().limits) is not policies.Limits
        assert Privacy() == SitePolicy(Site("east", "heart", "heart.csv")).privacy

    def test_importing_it_loads_nothing_heavy(self):
        script = (
            "import sys, client.policy; print(sorted({'flwr', 'tensorflow', 'pandas', 'numpy'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


class TestPage:
    def test_it_holds_every_setting_and_every_rule(self):
        page = markdown()
        for key, _, _ in describe(SitePolicy):
            assert f"| `{key}` |" in page
        for rule in rules():
            assert f"| `{rule.code}` |" in page

    def test_every_row_has_the_columns_of_its_table(self):
        lengths = [line.count(" | ") for line in markdown().splitlines() if line.startswith("| ")]
        assert set(lengths) == {2, 3}
