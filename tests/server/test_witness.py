"""The witness: what a hospital's audit log promised is kept, an answer that does not fit is no answer, and a log that was rewritten is known for it."""

import json
import logging
import stat

import pytest
from flwr.app import Message, RecordDict

from client.audit import AuditLog
from common import chain, flower, joining, keys, messages
from common.errors import DataError, FedwardError, UpdateRejected
from common.messages import STATISTICS, TRAIN, Reply
from server import provision, witness
from server.witness import MOST


class Site:
    """A hospital with a log, and what its answers carry."""

    def __init__(self, folder, name):
        self.name, self.folder = name, folder
        self.tls, self.node, self.audit = (keys.generate(kind) for kind in ("tls", "node", "audit"))
        self.log = AuditLog(folder / f"{name}.jsonl", self.audit)

    @property
    def path(self):
        return self.folder / f"{self.name}.jsonl"

    def request(self):
        return joining.make_request(
            self.name, "heart", self.tls, keys.public_line(self.node), keys.public_line(self.audit)
        )

    def text(self, lines=1):
        for _ in range(lines):
            self.log.append("sent")
        return chain.checkpoint_text(self.log.checkpoint())

    def begin_anew(self):
        """Make the log again with the same key, as someone might who has it."""
        self.log.close()
        self.path.unlink()
        self.log = AuditLog(self.path, self.audit)


@pytest.fixture
def sites(tmp_path):
    made = {name: Site(tmp_path, name) for name in ("east", "west")}
    yield made
    for site in made.values():
        site.log.close()


@pytest.fixture
def federation(tmp_path, sites):
    made = provision.create(tmp_path / "federation", "trial")
    for site in sites.values():
        made.admit(site.request())
    return made


@pytest.fixture
def member(federation):
    return lambda name="east": next(each for each in federation.members() if each.name == name)


def sequences(held):
    return [checkpoint["sequence"] for checkpoint in held]


class TestTaken:
    def test_what_was_promised_is_held_and_survives(self, federation, member, sites):
        for lines in (1, 3, 2):
            federation.witness.take(member(), sites["east"].text(lines), 0)
        again = provision.open_federation(federation.folder).witness
        assert sequences(again.held(member())) == [1, 4, 6]
        assert again.heads() == {"east": 6, "west": 0}
        path = federation.folder / "checkpoints" / "east.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    def test_the_same_twice_is_held_once(self, federation, member, sites):
        text = sites["east"].text()
        assert [federation.witness.take(member(), text, 0) for _ in range(2)] == [1, 1]
        assert sequences(federation.witness.held(member())) == [1]

    @pytest.mark.parametrize("bad", ["none", "no text", "damaged", "of another", "of another line"])
    def test_what_its_key_did_not_sign_is_refused_and_not_held(self, federation, member, sites, bad):
        text = sites["east"].text()
        given = {
            "none": None,
            "no text": 7,
            "damaged": text[:-1] + ("0" if text[-1] != "0" else "1"),
            "of another": sites["west"].text(),
            "of another line": text.replace("1 ", "2 ", 1),
        }[bad]
        with pytest.raises(UpdateRejected) as caught:
            federation.witness.take(member(), given, 0)
        assert caught.value.code == "audit"
        assert federation.witness.held(member()) == []

    def test_a_log_that_went_back_is_refused(self, federation, member, sites):
        early, late = sites["east"].text(), sites["east"].text()
        federation.witness.take(member(), late, 0)
        with pytest.raises(UpdateRejected, match="audit log of 1 lines"):
            federation.witness.take(member(), early, 2)
        assert sequences(federation.witness.held(member())) == [2]

    def test_another_log_of_as_many_lines_is_refused(self, federation, member, sites):
        federation.witness.take(member(), sites["east"].text(2), 0)
        sites["east"].begin_anew()
        with pytest.raises(UpdateRejected, match="is not the one that was promised at 2 lines"):
            federation.witness.take(member(), sites["east"].text(2), 0)

    def test_answers_of_two_runs_may_come_in_any_order(self, federation, member, sites):
        early, late = sites["east"].text(), sites["east"].text()
        for text in (late, early):
            federation.witness.take(member(), text, 0)
        assert sequences(federation.witness.held(member())) == [1, 2]

    def test_so_many_are_held_and_the_newest_always(self, federation, member, sites, monkeypatch):
        monkeypatch.setattr(keys.os, "fsync", lambda _: None)
        for number in range(1, 3 * MOST):
            federation.witness.take(member(), sites["east"].text(), number - 1)
            held = sequences(federation.witness.held(member()))
            assert held[-1] == number
            assert len(held) <= MOST
        assert held == sorted(held)
        assert len(held) >= MOST // 2
        assert (federation.folder / "checkpoints" / "east.json").stat().st_size < joining.LARGEST

    def test_keys_that_the_hospital_has_no_more_bind_it_no_more(self, federation, member, sites, tmp_path):
        federation.witness.take(member(), sites["east"].text(5), 0)
        federation.revoke("east")
        (tmp_path / "new").mkdir()
        new = Site(tmp_path / "new", "east")
        federation.admit(new.request())
        assert federation.witness.heads()["east"] == 0
        federation.witness.take(member(), new.text(), 0)
        assert sequences(federation.witness.held(member())) == [1]
        new.log.close()

    @pytest.mark.parametrize("content", ["", "{}", '{"checkpoints": 3}', '{"checkpoints": ["x"]}', "[]"])
    def test_a_damaged_file_is_named(self, federation, member, sites, content, caplog):
        federation.witness.take(member(), sites["east"].text(), 0)
        (federation.folder / "checkpoints" / "east.json").write_text(content)
        with pytest.raises(DataError, match=r"east\.json: "):
            federation.witness.held(member())
        assert federation.witness.heads() == {"west": 0}
        assert "east.json: " in caplog.text


class TestVerified:
    def test_the_log_as_it_is_holds_all_that_was_promised(self, federation, member, sites):
        for _ in range(3):
            federation.witness.take(member(), sites["east"].text(2), 0)
        sites["east"].log.append("stopped")
        assert federation.witness.verify(member(), sites["east"].path) == 6

    def test_one_cut_off_does_not(self, federation, member, sites):
        federation.witness.take(member(), sites["east"].text(6), 0)
        lines = sites["east"].path.read_bytes().splitlines(keepends=True)
        sites["east"].path.write_bytes(b"".join(lines[:4]))
        with pytest.raises(FedwardError, match="line 5: missing: .* holds a checkpoint of line 6"):
            federation.witness.verify(member(), sites["east"].path)

    def test_one_written_anew_with_the_key_and_carried_on_does_not(self, federation, member, sites):
        """Each checkpoint alone looks good, and the log too; together they do not."""
        federation.witness.take(member(), sites["east"].text(2), 0)
        sites["east"].begin_anew()
        federation.witness.take(member(), sites["east"].text(5), 2)
        assert chain.verify(sites["east"].path, sites["east"].audit.public_key()) is None
        with pytest.raises(FedwardError, match="line 1: altered: lines 1 to 2"):
            federation.witness.verify(member(), sites["east"].path)

    def test_that_of_another_hospital_does_not(self, federation, member, sites):
        federation.witness.take(member(), sites["east"].text(), 0)
        sites["west"].text(2)
        with pytest.raises(FedwardError, match="altered"):
            federation.witness.verify(member(), sites["west"].path)

    def test_a_log_that_has_to_begin_anew_can(self, federation, member, sites):
        assert federation.witness.put_aside(member()) is None
        federation.witness.take(member(), sites["east"].text(5), 0)
        held = (federation.folder / "checkpoints" / "east.json").read_bytes()
        sites["east"].begin_anew()
        aside = federation.witness.put_aside(member())
        assert aside.read_bytes() == held
        assert federation.witness.heads()["east"] == 0
        federation.witness.take(member(), sites["east"].text(), 0)


class TestScreen:
    @pytest.fixture
    def answer(self):
        def made(node, text=None, hospital=None, kind=TRAIN):
            texts = ({"hospital": hospital} if hospital else {}) | ({} if text is None else {chain.CHECKPOINT: text})
            with flower.identity(7):
                asked = Message(RecordDict(), dst_node_id=node, message_type=kind)
            asked = flower.stamp(asked, "ab" * 32, 7, flower.server_node())
            return Message(messages.pack_reply(Reply(num_examples=5, texts=texts)), reply_to=asked)

        return made

    @pytest.fixture
    def screen(self, federation):
        return federation.screen()

    def test_a_good_answer_passes_as_it_is(self, screen, answer, sites):
        first = answer(3, sites["east"].text(), "east", STATISTICS)
        assert screen(first) is first
        later = answer(3, sites["east"].text())
        assert screen(later) is later

    def test_a_refusal_passes(self, screen, answer):
        refused = flower.refused(answer(3), "min_records")
        assert screen(refused) is refused

    @pytest.mark.parametrize(
        "bad", ["no checkpoint", "another's", "another's name", "nobody's name", "no name", "went back", "no records"]
    )
    def test_what_does_not_fit_is_a_refusal_with_a_code(self, screen, answer, sites, bad, caplog):
        early = sites["east"].text()
        screen(answer(3, sites["east"].text(), "east", STATISTICS))
        screen(answer(4, sites["west"].text(), "west", STATISTICS))
        given = {
            "no checkpoint": answer(3),
            "another's": answer(3, sites["west"].text()),
            "another's name": answer(5, sites["west"].text(), "east", STATISTICS),
            "nobody's name": answer(5, sites["west"].text(), "north", STATISTICS),
            "no name": answer(5, sites["west"].text()),
            "went back": answer(3, early),
            "no records": answer(3),
        }[bad]
        if bad == "no records":
            given.content.clear()
        with caplog.at_level(logging.WARNING):
            told = screen(given)
        assert not told.has_content()
        assert told.error.reason == "audit"
        assert told.metadata.src_node_id == given.metadata.src_node_id
        assert "its answer is dropped" in caplog.text
        later = answer(3, sites["east"].text())
        assert screen(later) is later, "the next answer counts again"

    def test_a_log_that_stands_still_while_its_hospital_answers_is_refused(
        self, screen, federation, answer, sites, caplog
    ):
        """A hospital that writes nothing down could promise the same line for ever, also from one run to the next."""
        promised = sites["east"].text()
        assert screen(answer(3, promised, "east", STATISTICS)).has_content()
        for asked in (screen(answer(3, promised)), federation.screen()(answer(3, promised, "east", STATISTICS))):
            assert asked.error.reason == "audit"
        assert "stands still" in caplog.text
        assert screen(answer(3, sites["east"].text())).has_content()

    @pytest.mark.parametrize("when", ["before the run", "in it"])
    def test_a_damaged_file_of_checkpoints_costs_that_hospital_its_answers_and_the_run_goes_on(
        self, federation, answer, sites, when, caplog
    ):
        path = federation.folder / "checkpoints" / "east.json"
        screen = federation.screen()
        screen(answer(3, sites["east"].text(), "east", STATISTICS))
        path.write_text("damaged")
        if when == "before the run":
            screen = federation.screen()
        assert screen(answer(3, sites["east"].text(), "east")).error.reason == "audit"
        assert "east.json" in caplog.text
        assert screen(answer(4, sites["west"].text(), "west", STATISTICS)).has_content()

    def test_a_hospital_that_was_revoked_meanwhile_is_out(self, screen, federation, answer, sites):
        screen(answer(3, sites["east"].text(), "east", STATISTICS))
        federation.revoke("east")
        assert screen(answer(3, sites["east"].text())).error.reason == "audit"

    @pytest.mark.parametrize(
        "damage",
        [
            lambda _: "damaged",
            lambda text: text.replace("ecdsa", "edcsa"),
            lambda text: text.replace("ed25519", "ed25518"),
        ],
    )
    def test_a_damaged_file_of_one_is_no_matter_to_the_others(self, federation, answer, sites, damage):
        path = federation.folder / "members" / "west.json"
        path.write_text(damage(path.read_text()))
        screen = federation.screen()
        assert screen(answer(3, sites["east"].text(), "east", STATISTICS)).has_content()
        assert screen(answer(4, sites["west"].text(), "west", STATISTICS)).error.reason == "audit"

    def test_a_run_that_begins_knows_what_was_promised_before(self, screen, federation, answer, sites):
        early = sites["east"].text()
        screen(answer(3, sites["east"].text(), "east", STATISTICS))
        assert federation.screen()(answer(9, early, "east", STATISTICS)).error.reason == "audit"


def test_importing_it_loads_no_flower():
    """The gateway imports it by way of the members."""
    import subprocess
    import sys

    script = "import sys, server.provision; print(sorted({'flwr', 'tensorflow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
    assert witness.MOST * 220 < joining.LARGEST
