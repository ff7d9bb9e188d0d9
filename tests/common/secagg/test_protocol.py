"""The protocol: exact for every drop-out pattern that it tolerates, over beyond it, and closed to whoever does not keep to it."""

import contextlib
import itertools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import certificates
from common.config import SecureConfig
from common.errors import PolicyRefused, QuorumError, UpdateRejected
from common.secagg import keys, protocol, shares
from common.secagg.protocol import Session, needed_of
from tests.common.secagg.conftest import RUN, Play, authority, identity

STAGES = ("undealt", "unsent", "silent")


def patterns(names, most):
    """Yield every way in which up to so many hospitals are gone, each at one stage."""
    for count in range(most + 1):
        for gone in itertools.combinations(names, count):
            for stages in itertools.product(STAGES, repeat=count):
                yield {stage: [n for n, s in zip(gone, stages, strict=True) if s == stage] for stage in STAGES}


class TestSum:
    @pytest.mark.fault(17, passes_when="3 to 5 hospitals, each pattern of 0 to t gone at each stage: the exact sum")
    @pytest.mark.parametrize("count", [3, 4, 5])
    def test_it_is_exact_for_every_pattern_of_drop_outs_up_to_what_is_tolerated(self, play, count):
        """Also over many sums of one run, in which hospitals come back."""
        game = play(count)
        tolerated = count - needed_of(count, game.settings)
        assert tolerated >= 1
        for number, gone in enumerate(patterns(game.names, tolerated)):
            total, ought = game.add_up(f"{number}.0", **gone)
            np.testing.assert_array_equal(total, ought, err_msg=str(gone))

    @pytest.mark.fault(17, passes_when="t + 1 gone, at any stages: nothing is unmasked")
    @pytest.mark.parametrize("count", [3, 4, 5])
    def test_with_one_more_gone_at_any_stage_nothing_is_unmasked(self, play, count):
        game = play(count)
        limit = count - needed_of(count, game.settings)
        for number, gone in enumerate(patterns(game.names, limit + 1)):
            if sum(map(len, gone.values())) == limit + 1:
                with pytest.raises((QuorumError, PolicyRefused), match=r"are needed"):
                    game.add_up(f"{number}.0", **gone)

    @given(st.data())
    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_it_is_exact_on_a_sparse_graph_too_or_is_not_made(self, play, data):
        game = play(12, settings=SecureConfig(aggregation=True, neighbours=6, threshold=0.75))
        stages = data.draw(st.lists(st.sampled_from(["", "", "", *STAGES]), min_size=12, max_size=12))
        gone = {stage: [n for n, s in zip(game.names, stages, strict=True) if s == stage] for stage in STAGES}
        try:
            total, ought = game.add_up(**gone)
        except (QuorumError, PolicyRefused):
            assert sum(map(bool, stages)) > 1  # of 7 holders 6 are needed: one gone cannot hurt
        else:
            np.testing.assert_array_equal(total, ought)

    def test_a_session_that_was_kept_as_bytes_goes_on_where_it_was(self, play):
        game = play()
        gathering = game.deal()
        for name in game.names:
            game.sessions[name] = Session.load(game.sessions[name].dump())
            game.send(gathering, name)
        game.sessions = {name: Session.load(session.dump()) for name, session in game.sessions.items()}
        total = gathering.total({name: game.reveal(gathering, name) for name in game.names})
        np.testing.assert_array_equal(total, sum(game.vectors.values()))
        assert json.loads(game.sessions["h00"].dump())["dealt"] is None

    def test_a_wrong_share_is_found_and_nothing_is_summed(self, play):
        game = play()
        gathering = game.deal()
        for name in game.names:
            game.send(gathering, name)
        revealed = {name: game.reveal(gathering, name) for name in game.names}
        revealed["h01"][2] = bytes(32) + b"\x07"
        with pytest.raises(QuorumError, match="the shares of what 'h02' dealt do not fit it"):
            gathering.total(revealed)

    def test_a_letter_that_cannot_be_read_costs_one_share(self, play):
        game = play()
        gathering = game.deal()
        for name in game.names:
            game.send(gathering, name)
        letters = {**gathering.letters("h00"), "h03": bytes(protocol.SEALED)}
        revealed = {"h00": game.sessions["h00"].reveal("1.0", gathering.survivors, gathering.signatures, letters)}
        assert revealed["h00"][3] == shares.NONE
        revealed |= {name: game.reveal(gathering, name) for name in game.names[1:]}
        np.testing.assert_array_equal(gathering.total(revealed), sum(game.vectors.values()))


class TestLeakage:
    """What one hospital sends tells nothing of what it has."""

    WORDS = 200_000

    @pytest.fixture
    def sent(self, play):
        def made(vector, label="1.0", game=None):
            game = game or play(3, words=self.WORDS)
            game.vectors["h00"] = vector
            return game.cover(game.deal(label), "h00")

        return made

    @pytest.fixture
    def update(self):
        """What an update looks like in fixed point: small values around 0."""
        return np.random.default_rng(3).normal(0, 2000, self.WORDS).astype(np.int32).view(np.uint32)

    @pytest.mark.parametrize("kind", ["update", "zeros"])
    @pytest.mark.parametrize("shift", [0, 8, 16, 24])
    def test_every_byte_of_it_is_uniform(self, sent, update, kind, shift):
        masked = sent(update if kind == "update" else np.zeros(self.WORDS, np.uint32))
        counts = np.bincount((masked >> np.uint32(shift)) & np.uint32(255), minlength=256)
        chi_square = float(((counts - self.WORDS / 256) ** 2 / (self.WORDS / 256)).sum())
        assert 255 - 6 * np.sqrt(2 * 255) < chi_square < 255 + 6 * np.sqrt(2 * 255)

    def test_the_test_above_would_see_an_update(self, update):
        counts = np.bincount(update >> np.uint32(24), minlength=256)
        assert ((counts - self.WORDS / 256) ** 2 / (self.WORDS / 256)).sum() > 1e5

    def test_it_does_not_correlate_with_the_update(self, sent, update):
        masked = sent(update).view(np.int32).astype(np.float64)
        assert abs(np.corrcoef(masked, update.view(np.int32))[0, 1]) < 5 / np.sqrt(self.WORDS)

    def test_nor_does_one_word_with_the_next(self, sent, update):
        masked = sent(update).astype(np.float64)
        assert abs(np.corrcoef(masked[1:], masked[:-1])[0, 1]) < 5 / np.sqrt(self.WORDS)

    def test_no_constant_shift_leads_back(self, sent, update):
        """One scalar for a whole tensor, as a known product adds, would leave one value of the difference."""
        difference = sent(update) - update
        assert len(np.unique(difference)) > 0.99 * self.WORDS

    def test_the_same_update_looks_different_every_time(self, sent, update, play):
        game = play(3, words=self.WORDS)
        first, second = (sent(update, label, game) for label in ("1.0", "1.1"))
        assert (first == second).mean() < 1e-4
        assert len(np.unique(first - second)) > 0.99 * self.WORDS

    @pytest.mark.fault(17, passes_when="no key and no seed of 20 sums comes twice")
    def test_no_secret_comes_twice_in_a_run(self, play):
        game, seen = play(5), []
        for number in range(20):
            game.deal(f"{number}.0")
            seen += [secret for s in game.sessions.values() for secret in (s.dealt.key, s.dealt.seed)]
        assert len(set(seen)) == len(seen) == 200

    def test_what_one_sum_revealed_opens_no_other(self, play):
        """h00 drops out of the first sum, and its key is put together; its vector of the second stays under other masks."""
        game = play(3)
        first = game.deal("1.0")
        for name in ("h01", "h02"):
            game.send(first, name)
        key = game.sessions["h00"].dealt.key
        first.signatures.update(game.agree(first))
        first.total({name: game.reveal(first, name) for name in ("h01", "h02")})
        second = game.deal("2.0")
        dealt = game.sessions["h00"].dealt
        assert key not in (dealt.key, dealt.seed)
        assert keys.public_of(key) not in second.packages["h00"]
        assert not any(keys.public_of(key) in package for package in second.packages.values())

    def test_nothing_secret_is_in_what_is_public(self, play):
        game = play()
        gathering = game.deal()
        public = b"".join(
            [*gathering.packages.values(), *(b"".join(gathering.letters(n).values()) for n in game.names)]
        )
        for session in game.sessions.values():
            for secret in (session.agreement, session.signing, session.dealt.key, session.dealt.seed):
                assert secret not in public
                assert secret.hex() not in repr(session)
                assert repr(secret) not in repr(session)


class TestManInTheMiddle:
    def joined(self, admitted, cards, **terms):
        session, own = Session.begin(admitted[0], RUN)
        session.join([own, *cards], admitted[0].authority, **terms)

    def cards(self, identities, run=RUN):
        return [Session.begin(each, run)[1] for each in identities]

    def test_a_hospital_of_the_authority_is_believed(self, admitted):
        self.joined(admitted, self.cards(admitted[1:3]))

    def test_a_card_under_another_authority_is_refused(self, admitted):
        other = identity("h02", *authority())
        with pytest.raises(UpdateRejected, match="no valid certificate of this federation") as raised:
            self.joined(admitted, self.cards([admitted[1], other]))
        assert raised.value.code == "identity"

    def test_nor_does_the_same_name_help_the_other_authority(self, admitted):
        twin = identity("h02", *authority("federation"))
        with pytest.raises(UpdateRejected, match="no valid certificate"):
            self.joined(admitted, self.cards([admitted[1], twin]))

    @pytest.mark.parametrize("field", ["agreement", "signing"])
    def test_a_key_exchanged_on_the_way_is_refused(self, admitted, field):
        _, mine = Session.begin(admitted[2], RUN)
        card = self.cards([admitted[2]])[0]
        swapped = keys.Card(**{**vars(card), field: getattr(mine, field)})
        with pytest.raises(UpdateRejected, match="not signed for this run"):
            self.joined(admitted, [*self.cards([admitted[1]]), swapped])

    def test_a_hospitals_card_under_anothers_name_is_refused(self, admitted):
        card = self.cards([admitted[2]])[0]
        with pytest.raises(UpdateRejected, match="not signed for this run"):
            self.joined(admitted, [*self.cards([admitted[1]]), keys.Card(**{**vars(card), "name": "h03"})])

    def test_a_hospital_cannot_speak_as_another(self, admitted):
        """h02's own key and certificate, and a card in the name of h03."""
        impostor = keys.Identity("h03", admitted[2].key, admitted[2].certificate, admitted[2].authority)
        with pytest.raises(UpdateRejected, match="no valid certificate of this federation for its name"):
            self.joined(admitted, self.cards([admitted[1], impostor]))

    def test_a_card_of_another_run_is_refused(self, admitted):
        with pytest.raises(UpdateRejected, match="not signed for this run"):
            self.joined(admitted, self.cards(admitted[1:3], b"another run"))

    def test_a_hospital_whose_own_card_is_missing_or_exchanged_refuses(self, admitted):
        session, _ = Session.begin(admitted[0], RUN)
        for cards in (self.cards(admitted[1:4]), self.cards(admitted[:3])):
            with pytest.raises(PolicyRefused, match="this one's own among them"):
                session.join(cards, admitted[0].authority)

    def test_one_that_is_not_in_the_policy_is_refused(self, admitted):
        with pytest.raises(PolicyRefused, match="not named in allow.cohort"):
            self.joined(admitted, self.cards(admitted[1:4]), known=("h01", "h02"))

    def test_an_authority_that_turns_on_its_hospitals_meets_the_keys_that_they_told_each_other(self):
        """Whoever holds the authority's key can certify a key of its own under a hospital's name; a fingerprint in the policy stops that."""
        issuer, pem = authority()
        mine, other, third, twin = (identity(name, issuer, pem) for name in ("h00", "h01", "h02", "h01"))
        real = certificates.key_fingerprint(certificates.load(other.certificate, "certificate"))
        known = (f"h01@{real}", "h02")
        self.joined([mine], self.cards([other, third]), known=known)
        self.joined([mine], self.cards([twin, third]), known=("h01", "h02"))
        with pytest.raises(PolicyRefused, match="not named in allow.cohort, or has another key"):
            self.joined([mine], self.cards([twin, third]), known=known)

    @pytest.mark.parametrize(("count", "least"), [(1, 0), (3, 5)])
    def test_too_small_a_company_is_refused(self, admitted, count, least):
        with pytest.raises(PolicyRefused, match=f"{count + 1} hospitals, and {max(least, 3)} or more are needed"):
            self.joined(admitted, self.cards(admitted[1 : count + 1]), least=least)

    def test_damaged_cards_are_refused(self, admitted):
        packed = keys.pack(self.cards(admitted[:2]))
        assert keys.unpack(packed) == keys.unpack(packed.copy())
        for data in (b"", b"[]x", b'[{"name": 1}]', b'[["a"]]', b'[{"name": "a", "agreement": "%%"}]', b"[" * 10**5):
            with pytest.raises(UpdateRejected, match="another form"):
                keys.unpack(np.frombuffer(data, np.uint8))

    @pytest.mark.parametrize("place", [0, 40, 70, 120])
    def test_a_package_altered_on_the_way_is_refused_by_both_sides(self, play, place):
        game = play()
        gathering = game.deal()
        package = bytearray(gathering.packages["h01"])
        package[place] ^= 1
        with pytest.raises(UpdateRejected, match="not signed for this sum"):
            gathering.take("h01", bytes(package), list(gathering.letters("h00").values()))
        gathering.packages["h01"] = bytes(package)
        with pytest.raises(PolicyRefused, match="not signed for this sum"):
            game.cover(gathering, "h00")

    def test_a_package_of_another_sum_is_refused(self, play):
        game = play()
        old, new = game.deal("1.0"), game.deal("2.0")
        new.packages["h01"] = old.packages["h01"]
        with pytest.raises(PolicyRefused, match="not signed for this sum"):
            game.cover(new, "h00")


class TestOneSum:
    """A deal is for one vector, one cohort and one request."""

    def test_a_label_that_was_covered_is_dealt_for_no_more(self, play):
        game = play()
        game.cover(game.deal("1.0"), "h00")
        with pytest.raises(PolicyRefused, match="covered a vector for a sum of this name already"):
            game.sessions["h00"].deal("1.0", game.names, game.settings)

    def test_hospitals_that_were_told_different_cohorts_refuse_each_others_packages(self, play):
        game = play(5)
        gathering = game.deal("1.0")
        package, _ = game.sessions["h01"].deal("1.0", game.names[:4], game.settings)
        gathering.packages["h01"] = package
        with pytest.raises(PolicyRefused, match="not signed for this sum"):
            game.cover(gathering, "h00")

    def test_answers_to_different_requests_are_opened_by_nobody(self, play):
        game = play(4)
        gathering = game.deal("1.0")
        for name in game.names:
            vector = game.vectors[name].copy()
            request = b"another model" if name < "h02" else b"the model"
            gathering.request = request
            gathering.add(name, vector, game.sessions[name].cover("1.0", gathering.packages, vector, request))
        for name in game.names:
            with pytest.raises(PolicyRefused, match="2 hospitals have signed the list of survivors, and 3 or more"):
                game.reveal(gathering, name)


class TestSurvivors:
    """What a coordinator may say of who survived, and what not."""

    @pytest.fixture
    def game(self, play):
        return play(5)

    @pytest.fixture
    def sent(self, game):
        gathering = game.deal()
        for name in game.names:
            game.send(gathering, name)
        return gathering

    def refused(self, match):
        return pytest.raises(PolicyRefused, match=match)

    def test_a_hospital_answers_once(self, game, sent):
        game.reveal(sent, "h00")
        with self.refused("not the next step"):
            game.reveal(sent, "h00")
        with self.refused("not the next step"):
            game.reveal(sent, "h00", ["h00", "h01", "h02", "h03"])

    def test_it_masks_one_vector_for_one_sum(self, game, sent):
        with self.refused("not the next step"):
            game.cover(sent, "h00")

    def test_it_reveals_nothing_before_it_has_sent(self, game):
        gathering = game.deal()
        with self.refused("not the next step"):
            game.reveal(gathering, "h00", game.names)

    def test_nor_of_a_sum_for_which_it_did_not_deal_last(self, game, sent):
        game.deal("2.0")
        with self.refused("not the next step"):
            game.reveal(sent, "h00")

    @pytest.mark.parametrize(
        "survivors",
        [["h01", "h02", "h03", "h04"], ["h00", "h01", "h02", "h09"], ["h00", "h01", "h02", "h02", "h03"]],
        ids=["without this hospital", "with one that was not there", "with one twice"],
    )
    def test_a_list_that_cannot_be_is_refused(self, game, sent, survivors):
        with self.refused("leaves this hospital out, or names one"):
            game.reveal(sent, "h00", survivors)

    def test_a_list_with_a_hospital_that_did_not_deal_is_refused(self, game):
        gathering = game.deal(without=["h04"])
        for name in game.names[:4]:
            game.send(gathering, name)
        with self.refused("names one that was not there"):
            game.reveal(gathering, "h00", game.names)

    @pytest.mark.parametrize(("count", "least", "needed"), [(3, 0, 4), (4, 5, 5)])
    def test_too_few_survivors_are_refused(self, game, sent, count, least, needed):
        with self.refused(f"{count} survivors, and {needed} or more are needed"):
            game.reveal(sent, "h00", game.names[:count], least=least)

    def test_a_refusal_changes_nothing(self, game, sent):
        with self.refused("names one"):
            game.reveal(sent, "h00", ["h00", "nobody"])
        revealed = {name: game.reveal(sent, name) for name in game.names}
        np.testing.assert_array_equal(sent.total(revealed), sum(game.vectors.values()))

    def test_it_deals_for_no_sum_with_strangers_or_too_few(self, game):
        session = game.sessions["h00"]
        for cohort in (["h00", "h01", "h09"], ["h01", "h02", "h03"], ["h00", "h00", "h01", "h02"]):
            with self.refused("has not agreed on keys"):
                session.deal("1.0", cohort, game.settings)
        with self.refused("2 hospitals in the sum, and 3 or more"):
            session.deal("1.0", ["h00", "h01"], game.settings)
        with self.refused("5 hospitals in the sum, and 6 or more"):
            session.deal("1.0", game.names, game.settings, least=6)

    def test_it_masks_for_no_fewer_than_must_survive(self, game):
        gathering = game.deal()
        for name in ("h03", "h04"):
            del gathering.packages[name]
        with self.refused("3 hospitals with packages, and 4 or more"):
            game.cover(gathering, "h00")

    @pytest.mark.parametrize("count", [3, 4, 5, 6, 7])
    def test_two_lists_never_open_both_secrets_of_a_hospital(self, play, count):
        """However the coordinator divides the hospitals: some are told that h00 survived, the others that it did not."""
        for told in range(2 ** (count - 1)):
            game = play(count)
            gathering = game.deal()
            for name in game.names:
                game.send(gathering, name)
            pairs = {"seed": 0, "key": 0}
            others = [name for place, name in enumerate(game.names[1:]) if not told >> place & 1]
            signed = game.agree(gathering, game.names[1:], others)
            for name in game.names[1:]:
                survivors = game.names[1:] if name in others else game.names
                try:
                    game.reveal(gathering, name, survivors, signed if name in others else None)
                except PolicyRefused:
                    continue
                pairs["key" if name in others else "seed"] += 1
            needed = needed_of(count, game.settings)
            # h00 itself can be had to give its share of the seed.
            assert pairs["seed"] + 1 < needed or pairs["key"] < needed

    def test_a_list_that_too_few_have_signed_is_revealed_nothing_for(self, game, sent):
        signed = dict(itertools.islice(sent.signatures.items(), 3))
        with self.refused("3 hospitals have signed the list of survivors, and 4 or more are needed"):
            game.reveal(sent, "h00", signatures=signed)
        game.reveal(sent, "h00", signatures=signed | {"h04": sent.signatures["h04"]})

    def test_signatures_of_another_list_another_sum_or_another_hospital_do_not_count(self, game, sent):
        four = game.names[:4]
        for signed in (
            sent.signatures,
            dict.fromkeys(four, sent.signatures["h00"]),
            {name: game.sessions["h00"].agree("1.0", four) for name in four},
            dict.fromkeys(four, bytes(keys.SIGNATURE)),
        ):
            with self.refused("hospitals have signed the list of survivors, and 4 or more are needed"):
                game.reveal(sent, "h00", four, signed)
        before, after = play_again(game, "2.0"), play_again(game, "3.0")
        with self.refused("0 hospitals have signed the list"):
            game.reveal(after, "h00", signatures=before.signatures)

    def test_who_signed_one_list_signs_and_reveals_for_no_other(self, game, sent):
        game.agree(sent, game.names[:4], ["h00"])
        for survivors in (game.names, ["h00", "h01", "h02", "h04"]):
            with self.refused("has signed another list of survivors"):
                game.agree(sent, survivors, ["h00"])
            with self.refused("has signed another list of survivors"):
                game.reveal(sent, "h00", survivors, sent.signatures)

    def test_the_coordinator_adds_no_vector_whose_list_is_not_signed(self, game):
        gathering = game.deal()
        vector = game.cover(gathering, "h00")
        for signature in (b"", bytes(keys.SIGNATURE), game.sessions["h00"].agree("1.0", game.names[:4])):
            with pytest.raises(UpdateRejected, match="has not signed the list of survivors"):
                gathering.add("h00", vector, signature)
        assert gathering.survivors == []

    @pytest.mark.fault(17, passes_when="whatever lists a coordinator shows whom: no sum over fewer than t is opened")
    def test_whatever_lists_a_lying_coordinator_shows_no_smaller_sum_is_opened(self, play):
        """Every choice of a list for each of three hospitals, which is had to sign it beside that of all; and many for six."""
        draw = np.random.default_rng(7)
        some = [tuple(lists(6)[place] for place in draw.integers(0, len(lists(6)), 6)) for _ in range(20)]
        for told in (*itertools.product(lists(3), repeat=3), *some, ATTACK):
            assert opened_by(play(len(told)), told) in (0, *range(needed_of(len(told), SecureConfig()), len(told) + 1))

    def test_the_attack_that_signatures_stop_opens_a_sum_without_them(self, play, monkeypatch):
        assert opened_by(play(6), ATTACK) == 0
        monkeypatch.setattr(protocol.Sum, "signed_by", lambda _this, _told, survivors, *_: survivors)
        assert opened_by(play(6), ATTACK) == 3 < needed_of(6, SecureConfig())

    def test_nothing_is_revealed_to_who_showed_different_lists_of_who_dealt(self, game):
        """Two are told that h04 did not deal, and all that it dropped out."""
        gathering, four = game.deal(), game.names[:4]
        signed = {}
        for name in four:
            told = {each: package for each, package in gathering.packages.items() if name < "h02" or each != "h04"}
            signed[name] = game.sessions[name].cover("1.0", told, game.vectors[name].copy())
            gathering.survivors.append(name)
        signed |= {name: game.agree(gathering, four, [name])[name] for name in four[:2]}
        for name in four:
            with self.refused("2 hospitals have signed the list of survivors, and 4 or more"):
                game.reveal(gathering, name, four, signed)

    def test_who_was_in_no_list_accuses_nobody(self, game):
        gathering = game.deal()
        game.send(gathering, *game.names[:4])
        gathering.signatures.update(game.agree(gathering))
        for name in game.names[:4]:
            game.reveal(gathering, name)
        total, ought = game.add_up("2.0")
        np.testing.assert_array_equal(total, ought)


def play_again(game, label):
    gathering = game.deal(label)
    game.send(gathering, *game.names)
    return gathering


def opened_by(game, told):
    """Return over how many hospitals a coordinator can open a sum that tells each another list of survivors, the smallest such; 0 for none."""
    gathering, signed = game.deal(), dict.fromkeys(told, ())
    game.send(gathering, *game.names)
    for name, survivors in zip(game.names, told, strict=True):
        if survivors != tuple(game.names):
            with contextlib.suppress(PolicyRefused):
                signed[survivors] = {**dict(signed[survivors]), **game.agree(gathering, survivors, [name])}
    signed[tuple(game.names)] = gathering.signatures
    seeds, opening = Counter(), Counter()
    for name, survivors in zip(game.names, told, strict=True):
        with contextlib.suppress(PolicyRefused):
            game.reveal(gathering, name, survivors, dict(signed[survivors]))
            seeds.update(survivors)
            opening.update(set(game.names) - set(survivors))
    needed = needed_of(len(game.names), game.settings)
    seeds, opening = ({name for name, given in shares.items() if given >= needed} for shares in (seeds, opening))
    if seeds & opening:
        return 1  # both secrets of a hospital: its vector lies open
    return len(seeds) if seeds | opening == set(game.names) else 0


ATTACK = tuple(
    tuple(f"h{place:02}" for place in range(6) if place not in dropped)
    for dropped in ((1, 2), (0, 2), (0, 1), (0, 1), (1, 2), (0, 2))
)
"""Of six hospitals each is told that two others of the first three dropped out: four give a share of each one's key, and the sum over the last three lies open."""


def lists(count):
    """Return every list of survivors that enough of so many hospitals are in."""
    names, needed = [f"h{number:02}" for number in range(count)], needed_of(count, SecureConfig())
    return [chosen for size in range(needed, count + 1) for chosen in itertools.combinations(names, size)]


def test_the_threshold_is_always_more_than_half():
    for count in range(1, 200):
        for threshold in (0.500001, 0.66, 0.9, 1.0):
            needed = needed_of(count, SecureConfig(threshold=threshold))
            assert count / 2 < needed <= count


def test_one_share_is_given_of_every_neighbour_and_none_of_others(play):
    game = play(12, settings=SecureConfig(neighbours=6, threshold=0.75))
    gathering = game.deal(without=["h05"])
    for name in game.names:
        if name != "h05":
            game.send(gathering, name)
    gathering.signatures.update(game.agree(gathering))
    for name in gathering.survivors:
        around = {name, *gathering.sum.neighbours(name)} - {"h05"}
        assert len(game.reveal(gathering, name)) == len(around)


def test_a_hospital_around_which_too_few_survive_refuses(play):
    """Far away there may be enough of them; but those that share masks with it are what hides it."""
    game = play(12, settings=SecureConfig(neighbours=4, threshold=0.75))
    gathering = game.deal()
    for name in game.names:
        game.send(gathering, name)
    gone = gathering.sum.neighbours("h00")[:2]
    with pytest.raises(PolicyRefused, match="3 survivors around it, and 4 or more are needed"):
        game.reveal(gathering, "h00", [name for name in game.names if name not in gone])


def test_a_run_of_two_plays_apart_shares_nothing(admitted):
    """The same hospitals in another run have other keys, and nothing of one fits the other."""
    one, other = Play(admitted[:3]), Play(admitted[:3])
    gathering = one.deal()
    other.deal()
    with pytest.raises(PolicyRefused, match="not signed for this sum"):
        other.cover(gathering, "h00")
