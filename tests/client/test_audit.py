"""The audit log: whatever is done to the file is found and named at its line, and what was written stays."""

import json
import os
import resource
import stat
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from client import audit
from client.audit import EVENTS, FIELDS, LONGEST, AuditLog
from common import chain, messages
from common.chain import ORIGIN, checkpoint_from, checkpoint_text, is_signed, verify
from common.errors import DataError, UsageError

ROOT = Path(__file__).parents[2]
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key()
LINES = 12
FEW = 5
"""Every so many lines of the logs made here is a checkpoint."""
CANARY = "Erika Mustermann"


def fill(log, lines=LINES):
    log.append("started", {"version": "0.1.0", "policy": "ab" * 32})
    while log.checkpoint()["sequence"] < lines:
        number = log.checkpoint()["sequence"]
        log.append("asked", {"kind": "train", "round": number, "message": "3f-9a", "hospitals": 4})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return the bytes of a good log of twelve lines, two of them checkpoints."""
    path = tmp_path_factory.mktemp("log") / "audit.jsonl"
    with AuditLog(path, KEY, FEW) as log:
        fill(log)
    return path.read_bytes()


@pytest.fixture
def check(tmp_path):
    """Return the way from a file's bytes to what is found in it."""
    path = tmp_path / "audit.jsonl"

    def checked(data, known=(), every=FEW):
        path.write_bytes(data)
        return verify(path, PUBLIC, known, every)

    return checked


def broken(found):
    return None if found is None else (found.line, found.how)


def line_of(data, place):
    """Return the number of the line that the byte at ``place`` belongs to, its newline included."""
    return data[:place].count(b"\n") + 1


def rewritten(data, begin, key=None, change=lambda content: content["fields"].update(round=99)):
    """Return the log that someone without the key could make, who changes line ``begin`` and computes all digests after it anew."""
    lines, previous = [], ORIGIN
    for number, line in enumerate(data.splitlines(), 1):
        content = json.loads(line)
        del content["sha256"]
        if number == begin:
            change(content)
        content["previous"] = previous
        if content["event"] == "checkpoint" and number > begin:
            content["fields"]["sha256"] = previous
            if key:
                content["fields"]["signature"] = key.sign(chain.statement(number - 1, previous)).hex()
        lines.append(chain.sealed(json.dumps(content, separators=(",", ":")).encode()[:-1]))
        previous = chain.sha256(lines[-1])
    return b"\n".join(lines) + b"\n"


class TestWriting:
    def test_a_good_log_has_nothing_to_name(self, written, check):
        assert check(written) is None
        assert check(b"") is None

    def test_lines_are_json_with_a_number_two_clocks_and_the_line_before(self, tmp_path):
        path = tmp_path / "audit.jsonl"
        begun, ticks = time.time(), time.monotonic()
        with AuditLog(path, KEY) as log:
            assert log.append("refused", {"kind": "train", "round": 3, "code": "min_records"}) == 1
            assert log.append("stopped") == 2
        first, second = path.read_bytes().splitlines()
        content = json.loads(first)
        assert list(content) == ["sequence", "time", "monotonic", "event", "fields", "previous", "sha256"]
        assert content["sequence"] == 1
        assert content["event"] == "refused"
        assert content["fields"] == {"kind": "train", "round": 3, "code": "min_records"}
        assert content["previous"] == ORIGIN
        when = audit.datetime.fromisoformat(content["time"])
        assert begun - 1 < when.timestamp() < time.time() + 1
        assert content["time"].endswith("Z")
        assert ticks - 1 < content["monotonic"] < time.monotonic() + 1
        assert json.loads(second)["previous"] == chain.sha256(first)
        assert json.loads(second)["fields"] == {}

    def test_it_goes_on_where_it_ended(self, tmp_path, written):
        path = tmp_path / "audit.jsonl"
        path.write_bytes(written)
        with AuditLog(path, KEY, FEW) as log:
            assert log.append("stopped") == LINES + 1
        assert path.read_bytes().startswith(written)
        assert verify(path, PUBLIC, every=FEW) is None

    def test_it_belongs_to_this_user_only(self, tmp_path):
        path = tmp_path / "audit.jsonl"
        with AuditLog(path, KEY):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_a_line_is_on_disk_before_append_returns(self, tmp_path, monkeypatch):
        path, order = tmp_path / "audit.jsonl", []
        write, fsync = os.write, os.fsync
        with AuditLog(path, KEY) as log:
            monkeypatch.setattr(os, "write", lambda *args: order.append("write") or write(*args))
            monkeypatch.setattr(os, "fsync", lambda *args: order.append("fsync") or fsync(*args))
            log.append("stopped")
            order.append("returned")
            monkeypatch.undo()
        assert order == ["write", "fsync", "returned"]

    def test_the_file_is_only_ever_appended_to(self, tmp_path):
        path = tmp_path / "audit.jsonl"
        with AuditLog(path, KEY) as log:
            import fcntl

            assert fcntl.fcntl(log._file, fcntl.F_GETFL) & os.O_APPEND

    def test_threads_may_share_it(self, tmp_path):
        path = tmp_path / "audit.jsonl"
        with AuditLog(path, KEY, FEW) as log:
            threads = [
                threading.Thread(target=lambda: [log.append("asked", {"round": n}) for n in range(25)])
                for _ in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert verify(path, PUBLIC, every=FEW) is None
        events = [json.loads(line)["event"] for line in path.read_bytes().splitlines()]
        assert events.count("asked") == 200
        assert events.count("checkpoint") == len(events) // FEW

    def test_a_symbolic_link_is_not_followed(self, tmp_path):
        (tmp_path / "elsewhere").write_bytes(b"")
        (tmp_path / "audit.jsonl").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(DataError, match="cannot be written"):
            AuditLog(tmp_path / "audit.jsonl", KEY)

    def test_a_folder_that_is_not_there_is_said(self, tmp_path):
        with pytest.raises(DataError, match="cannot be written"):
            AuditLog(tmp_path / "gone" / "audit.jsonl", KEY)


WRITER = """
import sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from client.audit import AuditLog
from common.errors import UsageError
try:
    with AuditLog(Path(sys.argv[1]), Ed25519PrivateKey.from_private_bytes(bytes(range(32)))) as log:
        print("open", flush=True)
        sys.stdin.readline()
        log.append("stopped")
except UsageError as error:
    print(error)
"""


class TestTwoWriters:
    def test_a_second_process_is_refused_until_the_first_ends(self, tmp_path):
        path = tmp_path / "audit.jsonl"
        command = [sys.executable, "-c", WRITER, path]
        options = {"cwd": ROOT, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **options) as first:
            assert first.stdout.readline() == "open\n"
            second = subprocess.run(command, cwd=ROOT, input="\n", capture_output=True, text=True, check=True)
            assert "another process writes this log" in second.stdout
            with pytest.raises(UsageError, match="another process"):
                AuditLog(path, KEY)
            assert path.read_bytes() == b""
            first.communicate("\n")
        with AuditLog(path, KEY) as log:
            assert log.append("started") == 2

    def test_a_killed_process_locks_nothing(self, tmp_path):
        path = tmp_path / "audit.jsonl"
        options = {"cwd": ROOT, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen([sys.executable, "-c", WRITER, path], **options) as first:
            first.stdout.readline()
            first.kill()
        with AuditLog(path, KEY) as log:
            assert log.append("started") == 1

    def test_who_writes_past_the_lock_is_noticed(self, tmp_path):
        path = tmp_path / "audit.jsonl"
        with AuditLog(path, KEY) as log:
            log.append("started")
            with path.open("ab") as file:
                file.write(b"{}\n")
            with pytest.raises(DataError, match="changed or moved by another program"):
                log.append("stopped")

    def test_a_file_moved_away_is_noticed(self, tmp_path):
        path = tmp_path / "audit.jsonl"
        with AuditLog(path, KEY) as log:
            log.append("started")
            path.rename(tmp_path / "other.jsonl")
            with pytest.raises(DataError, match="cannot be written"):
                log.append("stopped")
            path.write_bytes((tmp_path / "other.jsonl").read_bytes())
            with pytest.raises(DataError, match="changed or moved"):
                log.append("stopped")


class TestEdits:
    @pytest.mark.fault(9, passes_when="a byte of the audit log turned is found at its line")
    def test_any_byte_of_any_line_turned_is_found_at_its_line(self, written, check):
        for place in range(len(written)):
            turned = written[place] ^ (1 << place % 8)
            found = check(written[:place] + bytes([turned]) + written[place + 1 :])
            assert found is not None, place
            assert found.line == line_of(written, place)
            assert found.how == ("altered" if place < len(written) - 1 else "torn tail")

    @given(st.data())
    def test_any_stretch_replaced_is_found_at_its_line(self, written, tmp_path_factory, data):
        begin = data.draw(st.integers(0, len(written) - 1))
        end = data.draw(st.integers(begin, len(written)))
        put = data.draw(st.binary(max_size=40) | st.just(b"\n") | st.sampled_from(written.splitlines()))
        changed = written[:begin] + put + written[end:]
        if changed == written or not changed:
            return
        path = tmp_path_factory.mktemp("log") / "audit.jsonl"
        path.write_bytes(changed)
        found = verify(path, PUBLIC, every=FEW)
        same = next(
            (place for place, pair in enumerate(zip(written, changed, strict=False)) if pair[0] != pair[1]), None
        )
        intact = changed[: min(len(written), len(changed)) if same is None else same].count(b"\n")
        if found is None:
            # Whole lines cut off at the end need a checkpoint that the coordinator holds.
            assert written.startswith(changed)
            assert changed.endswith(b"\n")
        else:
            assert found.line == intact + 1

    @pytest.mark.parametrize("number", range(1, LINES))
    def test_a_line_taken_out_is_missing(self, written, check, number):
        lines = written.splitlines(keepends=True)
        assert broken(check(b"".join(lines[: number - 1] + lines[number:]))) == (number, "missing")

    @pytest.mark.parametrize("first", range(1, LINES + 1))
    def test_two_lines_exchanged_are_out_of_order(self, written, check, first):
        for second in range(first + 1, LINES + 1):
            lines = written.splitlines(keepends=True)
            lines[first - 1], lines[second - 1] = lines[second - 1], lines[first - 1]
            assert broken(check(b"".join(lines))) == (first, "out of order")

    @pytest.mark.parametrize("place", range(1, LINES + 2))
    def test_a_line_put_in_is_out_of_order(self, written, check, place):
        lines = written.splitlines(keepends=True)
        for number in range(1, LINES + 1):
            found = check(b"".join([*lines[: place - 1], lines[number - 1], *lines[place - 1 :]]))
            # Of two equal lines beside each other the second is the one too many.
            assert broken(found) == (place + 1 if number == place else place, "out of order")

    @pytest.mark.parametrize("put", [b"\n", b"{}\n", b"null\n", b"\x00\n"])
    def test_a_line_of_another_make_is_altered(self, written, check, put):
        lines = written.splitlines(keepends=True)
        for place in range(LINES + 1):
            found = check(b"".join([*lines[:place], put, *lines[place:]]))
            assert broken(found) == (place + 1, "altered")

    def test_a_line_written_anew_with_its_own_digest_is_named(self, written, check):
        lines, changed = written.splitlines(keepends=True), rewritten(written, 7).splitlines(keepends=True)
        assert broken(check(b"".join([*lines[:6], changed[6], *lines[7:]]))) == (7, "altered")

    def test_what_is_found_is_said_in_one_line(self, written, check):
        found = check(written.replace(b'"round":3', b'"round":4', 1))
        assert str(found) == "line 4: altered: its bytes are not those that were written"

    def test_another_sites_log_is_no_log_of_this_one(self, tmp_path):
        path = tmp_path / "audit.jsonl"
        with AuditLog(path, Ed25519PrivateKey.generate(), FEW) as log:
            fill(log)
        found = verify(path, PUBLIC, every=FEW)
        assert broken(found) == (1, "altered")


class TestCheckpoints:
    def held(self, written, *numbers):
        """Return what a coordinator holds that asked after each of these lines."""
        lines = written.splitlines()
        digests = {number: chain.sha256(lines[number - 1]) for number in numbers}
        return [
            {"sequence": n, "sha256": d, "signature": KEY.sign(chain.statement(n, d)).hex()} for n, d in digests.items()
        ]

    def test_a_log_gives_what_verify_takes(self, tmp_path):
        path, known = tmp_path / "audit.jsonl", []
        with AuditLog(path, KEY, FEW) as log:
            known.append(log.checkpoint())
            for _ in range(LINES):
                log.append("started")
                known.append(json.loads(json.dumps(log.checkpoint())))
        assert known[0]["sequence"] == 0
        assert all(is_signed(each, PUBLIC) for each in known)
        assert verify(path, PUBLIC, known, FEW) is None

    def test_one_travels_as_a_text(self, tmp_path):
        with AuditLog(tmp_path / "audit.jsonl", KEY) as log:
            log.append("started")
            given = log.checkpoint()
        text = checkpoint_text(given)
        assert checkpoint_from(text) == given
        assert is_signed(checkpoint_from(text), PUBLIC)
        for bad in (None, 3, "", text + "\n", text.upper(), text[1:], "-" + text, "9" * 19 + text[1:], text.encode()):
            assert checkpoint_from(bad) is None

    @pytest.mark.parametrize("kept", range(LINES))
    def test_a_tail_cut_off_is_noticed(self, written, check, kept):
        shorter = b"".join(written.splitlines(keepends=True)[:kept])
        assert check(shorter) is None
        found = check(shorter, self.held(written, 2, LINES))
        assert broken(found) == (kept + 1, "missing")
        assert f"line {LINES}" in found.text
        assert check(shorter, self.held(written, kept) if kept else []) is None

    def test_a_tail_torn_off_is_noticed_too(self, written, check):
        assert broken(check(written[:-5])) == (LINES, "torn tail")
        assert broken(check(written[:-5], self.held(written, LINES - 1))) == (LINES, "torn tail")
        assert broken(check(written[:-5], self.held(written, LINES))) == (LINES, "missing")

    @pytest.mark.parametrize("begin", [1, 2, 3, 4, 6, 7, 8, 9, 11, 12])
    def test_a_whole_log_written_anew_is_noticed_by_the_coordinators_checkpoints(self, written, check, begin):
        """Even with the site's key; what is named is the first line that may be another."""
        changed = rewritten(written, begin, KEY)
        assert check(changed) is None
        found = check(changed, self.held(written, *range(3, LINES + 1, 3)))
        assert found.how == "altered"
        assert begin - 3 < found.line <= begin

    @pytest.mark.parametrize("begin", range(1, LINES + 1))
    def test_without_the_key_the_logs_own_checkpoints_notice(self, written, check, begin):
        found = check(rewritten(written, begin))
        if begin < 2 * FEW and begin % FEW:
            assert found.how == "altered"
            assert begin - FEW < found.line <= begin
        elif begin > 2 * FEW:
            assert found is None  # nobody has signed anything since

    def test_checkpoints_can_not_be_left_out(self, tmp_path, written, check):
        path = tmp_path / "plain.jsonl"
        with AuditLog(path, KEY, 1000) as log:
            fill(log)
        assert verify(path, PUBLIC) is None
        assert broken(check(path.read_bytes())) == (1, "altered")
        assert broken(check(written, every=1000)) == (1, "altered")

    @pytest.mark.fault(9, passes_when="a checkpoint signed by another key counts for nothing")
    def test_a_checkpoint_that_someone_else_signed_counts_for_nothing(self, written, check):
        good = self.held(written, 3)[0]
        other = Ed25519PrivateKey.generate().sign(chain.statement(3, good["sha256"])).hex()
        for bad in (
            {**good, "signature": other},
            {**good, "sequence": 4},
            {**good, "sha256": ORIGIN},
            {**good, "signature": "zz"},
            {**good, "signature": None},
            {**good, "sequence": True},
            {"sequence": 3},
            {},
        ):
            assert not is_signed(bad, PUBLIC)
            with pytest.raises(DataError, match="checkpoint 2 of those given was not signed with this site's key"):
                check(written, [good, bad])
        assert check(written, [good]) is None

    def test_two_logs_of_one_site_do_not_both_fit(self, tmp_path):
        known = []
        for name in ("one", "two"):
            with AuditLog(tmp_path / name, KEY) as log:
                log.append("started")
                known.append(log.checkpoint())
        assert broken(verify(tmp_path / "two", PUBLIC, known)) == (1, "altered")


class TestTornTail:
    @pytest.mark.fault(4, passes_when="the audit log, cut at every byte: it opens, its last whole line intact")
    def test_truncated_at_every_byte_it_opens_with_the_last_whole_line_intact(self, tmp_path, monkeypatch):
        # Whether it is on disk is tested above, and would take most of the time here.
        monkeypatch.setattr(os, "fsync", lambda _: None)
        path, aside = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.torn"
        with AuditLog(path, KEY, 3) as log:
            for _ in range(3):
                log.append("stopped")
        written = path.read_bytes()
        for size in range(len(written) + 1):
            aside.unlink(missing_ok=True)
            path.write_bytes(written[:size])
            whole, rest = written[:size].rpartition(b"\n")[::2]
            whole = whole + b"\n" if whole else b""
            with AuditLog(path, KEY, 3) as log:
                added = 1 + bool(rest)
                assert log.append("started") >= whole.count(b"\n") + added
            after = path.read_bytes()
            assert after.startswith(whole)
            assert verify(path, PUBLIC, every=3) is None
            events = [json.loads(line) for line in after[len(whole) :].splitlines()]
            torn = [event["fields"] for event in events if event["event"] == "torn"]
            if rest:
                assert aside.read_bytes() == rest + b"\n"
                assert stat.S_IMODE(aside.stat().st_mode) == 0o600
                assert torn == [{"bytes": len(rest), "sha256": chain.sha256(rest)}]
            else:
                assert not aside.exists()
                assert torn == []

    @pytest.mark.fault(4, passes_when="what was torn off is kept beside it")
    def test_a_second_tear_does_not_overwrite_the_first(self, tmp_path):
        path = tmp_path / "audit.jsonl"
        for tail in (b'{"sequence":1,"ti', b"\x00\x00"):
            with path.open("ab") as file:
                file.write(tail)
            AuditLog(path, KEY).close()
        assert (tmp_path / "audit.jsonl.torn").read_bytes() == b'{"sequence":1,"ti\n\x00\x00\n'
        assert verify(path, PUBLIC) is None

    @pytest.mark.parametrize("number", range(1, LINES + 1))
    @pytest.mark.fault(4, passes_when="a damaged line of the audit log is named")
    def test_a_damaged_line_is_named_and_the_log_left_as_it_is(self, tmp_path, written, number):
        path = tmp_path / "audit.jsonl"
        lines = written.splitlines(keepends=True)
        lines[number - 1] = lines[number - 1].replace(b'"event"', b'"evenT"')
        path.write_bytes(b"".join(lines))
        with pytest.raises(DataError, match=f"audit.jsonl: line {number}: altered: .* as evidence"):
            AuditLog(path, KEY, FEW)
        assert path.read_bytes() == b"".join(lines)
        with pytest.raises(DataError, match=f"line {number}"):
            AuditLog(path, KEY, FEW)


FULL = """
import resource, signal, sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from client.audit import AuditLog
from common.errors import DataError
path, most = Path(sys.argv[1]), resource.getrlimit(resource.RLIMIT_FSIZE)[1]
with AuditLog(path, Ed25519PrivateKey.from_private_bytes(bytes(range(32)))) as log:
    log.append("started")
    size = path.stat().st_size
    for more in (0, 1, 100, 250):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + more, most))
        try:
            log.append("stopped")
        except DataError as error:
            print(path.stat().st_size - size, error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    print(log.append("stopped"))
"""


class TestFullDisk:
    def test_nothing_half_written_and_it_goes_on_when_there_is_space(self, tmp_path):
        """The limit on a file's size does what a full disk does: the first bytes of a line are written, the rest is refused."""
        path = tmp_path / "audit.jsonl"
        assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
        done = subprocess.run([sys.executable, "-c", FULL, path], cwd=ROOT, capture_output=True, text=True, check=True)
        *refused, last = done.stdout.splitlines()
        assert len(refused) == 4
        for line in refused:
            assert line.startswith(f"0 {path}: cannot be written (")
        assert last == "2"
        assert verify(path, PUBLIC) is None

    def test_a_closed_log_writes_nothing(self, tmp_path):
        log = AuditLog(tmp_path / "audit.jsonl", KEY)
        log.close()
        log.close()
        with pytest.raises(DataError, match="cannot be written"):
            log.append("stopped")


class TestFields:
    def test_every_field_of_every_event_has_a_form(self):
        assert {name for names in EVENTS.values() for name in names} == set(FIELDS)

    def test_an_unknown_event_or_field_is_refused_without_its_value(self, tmp_path):
        with AuditLog(tmp_path / "audit.jsonl", KEY) as log:
            for event, fields in (
                (CANARY, {}),
                ("asked", {CANARY: 1}),
                ("asked", {"code": "failed"}),
                ("sent", {"task": "heart"}),
                ("asked", {"round": CANARY}),
                ("asked", {"round": 1.5}),
                ("asked", {"round": True}),
                ("asked", {"kind": 3}),
                ("asked", {"kind": None}),
                ("asked", {"round": None}),
                ("asked", {"round": [CANARY]}),
            ):
                with pytest.raises(UsageError) as caught:
                    log.append(event, fields)
                assert CANARY not in str(caught.value)
        assert (tmp_path / "audit.jsonl").read_bytes() == b""

    @given(st.text(max_size=300), st.sampled_from([n for n, form in FIELDS.items() if not isinstance(form, type)]))
    def test_a_text_of_another_form_stays_out(self, text, name):
        value = audit._short(name, text)
        assert value == text if FIELDS[name].fullmatch(text) else value == "?"
        assert len(value) <= 128
        assert " " not in value
        assert "\n" not in value

    @pytest.mark.parametrize(
        "text", [CANARY, "1954-03-12", "140/90", "erika.mustermann@example.org", "+49 170 1234567"]
    )
    def test_no_text_field_takes_what_patients_are_known_by(self, text):
        numbers = {"message", "run"}  # digits and hyphens, which Flower makes
        for name, form in FIELDS.items():
            if not isinstance(form, type) and not (name in numbers and set(text) <= set("0123456789-")):
                assert audit._short(name, text) == "?"

    def test_canaries_in_every_field_of_every_event_are_not_written(self, tmp_path):
        path = tmp_path / "audit.jsonl"
        with AuditLog(path, KEY) as log:
            for event, names in EVENTS.items():
                if event != "checkpoint":
                    log.append(event, {n: CANARY if not isinstance(FIELDS[n], type) else 1 for n in names})
        assert not any(part.encode() in path.read_bytes() for part in CANARY.split())
        assert verify(path, PUBLIC) is None

    @pytest.mark.parametrize("norm", [float("nan"), float("inf"), -float("inf")])
    def test_a_norm_that_is_no_number_is_null(self, tmp_path, norm):
        path = tmp_path / "audit.jsonl"
        with AuditLog(path, KEY) as log:
            log.append("sent", {"norm": norm, "bytes": 2**70})
        assert json.loads(path.read_bytes())["fields"] == {"norm": None, "bytes": None}
        assert verify(path, PUBLIC) is None


class TestTrained:
    def test_rounds_and_seconds_of_a_day_survive_a_restart(self, tmp_path):
        path = tmp_path / "audit.jsonl"
        with AuditLog(path, KEY) as log:
            assert log.trained() == (0, 0.0)
            log.append("trained", {"rounds": 1, "seconds": 2.5})
            log.append("trained", {"seconds": 4.0})
            log.append("sent", {"bytes": 3})
            assert log.trained() == (2, 6.5)
        with AuditLog(path, KEY) as log:
            assert log.trained() == (2, 6.5)
            assert log.trained(0.0) == (0, 0.0)

    def test_what_is_older_no_longer_counts_and_the_future_does(self, tmp_path, monkeypatch):
        path, now = tmp_path / "audit.jsonl", time.time()
        with AuditLog(path, KEY) as log:
            log.append("trained", {"seconds": 1.0})
            monkeypatch.setattr(audit.time, "time", lambda: now + 86_000)
            assert log.trained() == (1, 1.0)
            monkeypatch.setattr(audit.time, "time", lambda: now + 86_500)
            assert log.trained() == (0, 0.0)
            monkeypatch.setattr(audit.time, "time", lambda: now - 1_000_000)
            assert log.trained() == (1, 1.0)


ALLOWED = {"message": "3f", "run": "7", "kind": "train", "round": 3}


class TestMemory:
    """What the gate asks the log for; lines that were written before it was opened count as those since."""

    @pytest.fixture
    def reopened(self, tmp_path):
        path, opened = tmp_path / "audit.jsonl", []

        def again(*lines):
            with AuditLog(path, KEY) as log:
                for event, fields in lines:
                    log.append(event, fields)
                told = log.seen("3f"), log.last_round("7"), log.trained()
            opened.append(AuditLog(path, KEY))
            assert (opened[-1].seen("3f"), opened[-1].last_round("7"), opened[-1].trained()) == told
            return opened[-1]

        yield again
        for log in opened:
            log.close()

    @pytest.mark.parametrize("event", ["asked", "refused", "failed", "replay"])
    def test_messages_are_remembered_whatever_became_of_them(self, reopened, event):
        log = reopened((event, {"message": "3f"}))
        assert log.seen("3f")
        assert not log.seen("3e")

    def test_a_name_that_is_none_is_taken_for_every_other_of_its_kind(self, reopened):
        log = reopened(("asked", {"message": CANARY}))
        assert log.seen("x y")
        assert not log.seen("3f")

    def test_the_last_round_is_that_which_was_allowed(self, reopened):
        log = reopened(("allowed", ALLOWED), ("asked", {**ALLOWED, "round": 9}), ("allowed", {**ALLOWED, "run": "8"}))
        assert (log.last_round("7"), log.last_round("8"), log.last_round("9")) == (3, 3, 0)
        log.append("allowed", {**ALLOWED, "kind": "evaluate", "round": 5})
        assert log.last_round("7") == 3

    def test_so_much_is_remembered_and_no_more(self, reopened, monkeypatch):
        monkeypatch.setattr(audit, "MOST_MESSAGES", 3)
        monkeypatch.setattr(audit, "MOST_RUNS", 2)
        lines = [("allowed", {**ALLOWED, "message": f"{number:x}", "run": str(number)}) for number in range(5)]
        log = reopened(*lines)
        assert [log.seen(f"{number:x}") for number in range(5)] == [False, False, True, True, True]
        assert [log.last_round(str(number)) for number in range(5)] == [0, 0, 0, 3, 3]

    def test_training_that_failed_counts_with_its_seconds(self, reopened, monkeypatch):
        ticks = iter([100.0, 107.5, 200.0])
        monkeypatch.setattr(audit, "time", SimpleNamespace(monotonic=lambda: next(ticks), time=time.time))
        log = reopened(("allowed", ALLOWED), ("failed", {"message": "3f", "code": "failed"}), ("failed", {}))
        assert log.trained() == (1, 7.5)

    def test_what_the_worker_refused_was_not_trained(self, reopened):
        assert reopened(("allowed", ALLOWED), ("refused", {"message": "3f", "code": "layout"})).trained() == (0, 0.0)

    def test_judging_is_no_training(self, reopened):
        evaluated = {**ALLOWED, "kind": "evaluate"}
        assert reopened(("allowed", evaluated), ("failed", {"message": "3f"})).trained() == (0, 0.0)

    @pytest.mark.parametrize("kind", [messages.STATISTICS, messages.EVALUATE, messages.COMPARE])
    def test_questions_count_for_a_day_whatever_became_of_them(self, reopened, monkeypatch, kind):
        asked = {**ALLOWED, "kind": kind}
        log, now = reopened(("allowed", asked), ("sent", asked), ("allowed", asked), ("failed", asked)), time.time()
        assert log.questions() == 2
        log.append("allowed", ALLOWED)
        log.append("refused", asked)
        assert log.questions() == 2
        monkeypatch.setattr(audit.time, "time", lambda: now - 1_000_000)
        assert log.questions() == 2, "a clock that is set back frees nothing"
        monkeypatch.setattr(audit.time, "time", lambda: now + 86_500)
        assert log.questions() == 0

    def test_training_during_which_the_process_died_counts(self, reopened):
        log = reopened(("allowed", ALLOWED))
        assert log.trained() == (1, 0.0), "also before the next process has said that it started"
        log.append("started")
        rounds, seconds = log.trained()
        assert rounds == 1
        assert 0 < seconds < 60
        log.append("started")
        assert log.trained() == (rounds, seconds), "once"

    @pytest.mark.parametrize(("off", "counted"), [(-100.0, 0.0), (100.0, 100.0), (2 * LONGEST, LONGEST)])
    def test_the_time_that_a_machine_was_off_is_no_training(self, reopened, monkeypatch, off, counted):
        log = reopened(("allowed", ALLOWED))
        later = audit.datetime.now(audit.UTC) + timedelta(seconds=off)
        clock = type("Clock", (), {"now": lambda _: later, "fromisoformat": datetime.fromisoformat})
        monkeypatch.setattr(audit, "datetime", clock)
        log.append("started")
        assert log.trained()[0] == 1
        assert log.trained()[1] == pytest.approx(counted, abs=5.0)

    def test_one_whose_end_could_not_be_written_counts_too(self, reopened):
        second = {**ALLOWED, "message": "4f"}
        log = reopened(("allowed", ALLOWED), ("allowed", second), ("trained", {**second, "rounds": 1, "seconds": 2.0}))
        assert log.trained() == (2, 2.0)

    def test_one_that_went_well_counts_once(self, reopened):
        log = reopened(("allowed", ALLOWED), ("trained", {**ALLOWED, "rounds": 1, "seconds": 2.0}), ("started", {}))
        assert log.trained() == (1, 2.0)


class TestVerify:
    def test_a_file_that_is_not_there_is_said(self, tmp_path):
        with pytest.raises(DataError, match="gone.jsonl: cannot be read"):
            verify(tmp_path / "gone.jsonl", PUBLIC)

    def test_importing_it_loads_nothing_heavy(self):
        script = "import sys, client.audit; print(sorted({'flwr', 'tensorflow', 'pandas', 'numpy'} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"
