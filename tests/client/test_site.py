"""A hospital's site: keys are made there and never leave it, and it joins only whom it was told of on the telephone."""

import base64
import json
import os
import socket
import ssl
import stat
import threading
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from client import site as sites
from common import certificates, joining, keys
from common.certificates import Issuer
from common.errors import DataError, FedwardError, UsageError
from server import provision

PASSPHRASE = "vier Worte am Fenster"
GIVEN = ("certificate.pem", "authority.pem", "federation.json")


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(keys, "COST", {"memory_kib": 64, "iterations": 1, "lanes": 1})


@pytest.fixture
def federation(tmp_path):
    return provision.create(tmp_path / "federation", "Heart Study", ["localhost"])


@pytest.fixture(params=[None, PASSPHRASE], ids=["unsealed", "sealed"])
def site(request, tmp_path):
    return sites.create(tmp_path / "site", "St. Mary", "heart", request.param)


@pytest.fixture
def plain(tmp_path):
    return sites.create(tmp_path / "site", "St. Mary", "heart")


def request_of(site):
    return json.loads((site.folder / "request.json").read_bytes())


def issuer_of(federation):
    key = keys.load_private(keys.read(federation.folder / "ca" / "key.pem"), "tls", "")
    return Issuer(certificates.load(federation.authority, ""), key)


def files_of(site):
    return {path.name: path.read_bytes() for path in site.folder.iterdir() if path.is_file()}


def private_forms(site):
    """Return everything by which one could know a private key of this site: files, encodings, and the bare numbers, in every way to write them."""
    forms = {site.node_key(), site.vault_key()}
    for key in (site.tls_key(), site.audit_key(), serialization.load_ssh_private_key(site.node_key(), None)):
        for encoding in (serialization.Encoding.PEM, serialization.Encoding.DER):
            form = serialization.PrivateFormat.PKCS8
            forms.add(key.private_bytes(encoding, form, serialization.NoEncryption()))
        if isinstance(key, ed25519.Ed25519PrivateKey):
            forms.add(key.private_bytes_raw())
        else:
            number = key.private_numbers().private_value
            forms |= {number.to_bytes((key.key_size + 7) // 8, "big"), str(number).encode(), f"{number:x}".encode()}
            form = serialization.PrivateFormat.TraditionalOpenSSL
            forms.add(key.private_bytes(serialization.Encoding.DER, form, serialization.NoEncryption()))
    written = {text for form in forms for text in (form, form.hex().encode(), form.hex().upper().encode())}
    # Inside a longer text the same bytes have three spellings in base64, one for each remainder of their place by 3.
    for form in forms:
        for lead in range(3):
            text = base64.b64encode(bytes(lead) + form)[4:-4]
            written |= {text, text.replace(b"+", b"-").replace(b"/", b"_")}
    return written


class TestFolder:
    def test_it_is_opened_as_it_was_made(self, site):
        again = sites.open_site(site.folder, site.passphrase)
        assert again == site
        assert (again.name, again.task, again.federation) == ("St. Mary", "heart", None)
        assert (again.node_key(), again.vault_key()) == (site.node_key(), site.vault_key())
        assert keys.public_line(again.tls_key()) == keys.public_line(site.tls_key())
        assert (
            keys.public_line(again.audit_key()) == keys.public_line(site.audit_key()) == request_of(site)["audit_key"]
        )
        assert keys.public_line(keys.load_private(site.node_key(), "node", "")) == request_of(site)["node_key"]
        assert len(site.vault_key()) == 32

    def test_only_its_owner_may_read_any_of_it(self, site, federation):
        site.join(federation.admit(request_of(site)), federation.fingerprint)
        for path in [site.folder, *site.folder.rglob("*")]:
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
        assert sorted(path.name for path in (site.folder / "keys").iterdir()) == [
            "audit.key",
            "node.key",
            "tls.key",
            "vault.key",
        ]

    def test_no_private_key_is_anywhere_outside_its_folder(self, site, federation):
        admitted = federation.admit(request_of(site))
        site.join(admitted, federation.fingerprint)
        site.renewed(federation.renew("St. Mary", site.csr()))
        site.tls_context()
        outside = [path for path in site.folder.rglob("*") if path.is_file() and path.parent.name != "keys"]
        assert {path.name for path in outside} == {"request.json", *GIVEN}
        outside += [path for path in federation.folder.rglob("*") if path.is_file()]
        bytes_outside = b"\n".join(path.read_bytes() for path in outside) + json.dumps(admitted).encode() + site.csr()
        forms = private_forms(site)
        assert len(forms) > 60
        for form in forms:
            assert form not in bytes_outside
        if site.passphrase:
            kept = b"\n".join(path.read_bytes() for path in (site.folder / "keys").iterdir())
            assert not any(form in kept for form in forms)
        else:
            assert site.node_key() in (site.folder / "keys" / "node.key").read_bytes()

    def test_the_search_for_private_keys_would_find_one(self, plain):
        forms = private_forms(plain)
        for name in ("tls", "node", "audit", "vault"):
            content = (plain.folder / "keys" / f"{name}.key").read_bytes()
            assert any(form in content for form in forms), name
            if b"BEGIN" in content:
                body = b"".join(content.splitlines()[1:-1])
                assert any(form in base64.b64decode(body) for form in forms), name
            for lead in range(3):
                assert any(form in base64.b64encode(bytes(lead) + content) for form in forms), name

    def test_every_site_has_keys_of_its_own(self, tmp_path):
        one, other = (sites.create(tmp_path / name, "St. Mary", "heart") for name in ("one", "other"))
        assert not private_forms(one) & private_forms(other)
        assert all(request_of(one)[part] != request_of(other)[part] for part in ("csr", "node_key", "audit_key"))

    def test_a_folder_in_use_is_refused_and_untouched(self, plain):
        before = {path: path.read_bytes() for path in plain.folder.rglob("*") if path.is_file()}
        with pytest.raises(UsageError, match="exists and is not empty"):
            sites.create(plain.folder, "St. Mary", "heart")
        assert before == {path: path.read_bytes() for path in plain.folder.rglob("*") if path.is_file()}

    @pytest.mark.parametrize(
        ("name", "task", "passphrase"),
        [("", "heart", None), ("a/b", "heart", None), ("a", "../x", None), ("a", "b", "")],
    )
    def test_nothing_is_left_of_one_that_was_typed_wrongly(self, tmp_path, name, task, passphrase):
        with pytest.raises(UsageError):
            sites.create(tmp_path / "site", name, task, passphrase)
        assert not (tmp_path / "site").exists()

    def test_any_other_folder_is_no_site(self, tmp_path):
        for folder in (tmp_path, tmp_path / "absent"):
            with pytest.raises(UsageError, match="no site here .*make one with: fedward hospital init"):
                sites.open_site(folder)

    @pytest.mark.parametrize("content", ["", "{}", "[]", '{"name": "St. Mary"}'])
    def test_a_damaged_request_is_one_error(self, plain, content):
        (plain.folder / "request.json").write_text(content)
        with pytest.raises(DataError, match=r"request.json"):
            sites.open_site(plain.folder)

    @pytest.mark.parametrize("name", ["tls", "node", "audit", "vault"])
    @pytest.mark.parametrize("content", [b"", b"damaged", b"-----BEGIN PRIVATE KEY-----\n"])
    @pytest.mark.fault(4, passes_when="a damaged key is named")
    def test_a_damaged_key_is_named(self, plain, name, content):
        path = plain.folder / "keys" / f"{name}.key"
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"{name}.key: "):
            getattr(plain, f"{name}_key")()
        path.unlink()
        with pytest.raises(DataError, match=f"{name}.key: cannot be read"):
            getattr(plain, f"{name}_key")()


class TestPassphrase:
    def test_a_wrong_one_is_one_clear_error_at_once(self, tmp_path):
        sites.create(tmp_path / "site", "St. Mary", "heart", PASSPHRASE)
        with pytest.raises(UsageError, match="wrong passphrase"):
            sites.open_site(tmp_path / "site", "another")

    def test_without_one_a_sealed_site_opens_and_its_keys_do_not(self, tmp_path):
        sites.create(tmp_path / "site", "St. Mary", "heart", PASSPHRASE)
        site = sites.open_site(tmp_path / "site")
        assert site.name == "St. Mary"
        for key in (site.tls_key, site.node_key, site.audit_key, site.vault_key, site.csr):
            with pytest.raises(UsageError, match="sealed by a passphrase, and none was given"):
                key()

    def test_it_is_not_shown_when_a_site_is_printed(self, site):
        assert PASSPHRASE not in repr(site)

    def test_one_for_a_site_without_is_refused(self, plain):
        with pytest.raises(UsageError, match="not sealed by any"):
            sites.open_site(plain.folder, PASSPHRASE)

    def test_a_key_put_in_the_place_of_the_sealed_one_is_noticed(self, tmp_path):
        site = sites.create(tmp_path / "site", "St. Mary", "heart", PASSPHRASE)
        other = sites.create(tmp_path / "other", "St. Mary", "heart", PASSPHRASE)
        (site.folder / "keys" / "tls.key").write_bytes((other.folder / "keys" / "tls.key").read_bytes())
        with pytest.raises(DataError, match="is not for the key in this folder"):
            sites.open_site(site.folder, PASSPHRASE)


class TestJoining:
    def test_what_was_admitted_is_joined(self, site, federation):
        admitted = json.loads(json.dumps(federation.admit(request_of(site))))
        site.join(admitted, federation.fingerprint.upper().replace(":", " "))
        joined = sites.open_site(site.folder, site.passphrase)
        assert joined.federation["federation"] == "Heart Study"
        assert joined.federation["address"] == "localhost:8443"
        assert joined.federation["fingerprint"] == federation.fingerprint
        assert joined.certificate.read_text() == admitted["certificate"]
        assert joined.authority.read_bytes() == federation.authority
        assert federation.member_of(ssl.PEM_cert_to_DER_cert(joined.certificate.read_text())).name == "St. Mary"

    @pytest.mark.parametrize("typed", ["", "3f:9a", "ab" * 32, "not a fingerprint"])
    def test_another_fingerprint_is_refused_and_the_real_one_not_told(self, plain, federation, typed):
        admitted = federation.admit(request_of(plain))
        for fingerprint in (typed, federation.fingerprint[:-1], federation.fingerprint + ":00"):
            with pytest.raises(FedwardError, match="does not have the fingerprint") as caught:
                plain.join(admitted, fingerprint)
            if fingerprint is typed:
                assert federation.fingerprint not in str(caught.value)
        assert set(files_of(plain)) == {"request.json"}
        assert plain.federation is None

    def test_an_authority_in_the_middle_is_refused_whatever_it_says_of_itself(self, plain, federation, tmp_path):
        middle = provision.create(tmp_path / "middle", "Heart Study", ["localhost"])
        forged = {**middle.admit(request_of(plain)), "fingerprint": federation.fingerprint}
        with pytest.raises(FedwardError, match="does not have the fingerprint"):
            plain.join(forged, federation.fingerprint)
        with pytest.raises(FedwardError, match="not signed by the federation's authority"):
            plain.join({**forged, "authority": federation.authority.decode()}, federation.fingerprint)

    def test_a_second_authority_behind_the_first_is_never_trusted(self, plain, federation, tmp_path):
        middle = provision.create(tmp_path / "middle", "Heart Study", ["localhost"])
        admitted = federation.admit(request_of(plain))
        both = admitted["authority"] + middle.authority.decode()
        plain.join({**admitted, "authority": both}, federation.fingerprint)
        assert plain.authority.read_bytes() == federation.authority
        assert len(plain.tls_context().get_ca_certs()) == 1
        plain.renewed(federation.renew("St. Mary", plain.csr()) + middle.authority)
        assert plain.certificate.read_bytes().count(b"BEGIN") == 1

    def test_a_certificate_is_no_authority(self, plain, federation):
        admitted = federation.admit(request_of(plain))
        certificate = admitted["certificate"]
        with pytest.raises(FedwardError, match="not that of federation"):
            plain.join({**admitted, "authority": certificate}, certificates.fingerprint(certificate.encode()))

    @pytest.mark.parametrize("part", ["federation", "authority", "certificate"])
    def test_every_part_is_needed(self, plain, federation, part):
        admitted = federation.admit(request_of(plain))
        for value in (None, 5, "damaged", "", "\ud800"):
            with pytest.raises(FedwardError, match=r"admitted"):
                plain.join({**admitted, part: value}, federation.fingerprint)
        with pytest.raises(DataError, match=f"'{part}' is missing"):
            plain.join({key: value for key, value in admitted.items() if key != part}, federation.fingerprint)
        assert set(files_of(plain)) == {"request.json"}

    def test_an_address_that_is_none_is_refused_and_none_is_fine(self, plain, federation):
        admitted = federation.admit(request_of(plain))
        with pytest.raises(UsageError, match="admitted: address"):
            plain.join({**admitted, "address": "https://localhost"}, federation.fingerprint)
        plain.join({key: value for key, value in admitted.items() if key != "address"}, federation.fingerprint)
        assert plain.federation["address"] is None

    def test_what_was_admitted_for_another_key_or_name_is_refused(self, plain, federation, tmp_path):
        twin = sites.create(tmp_path / "twin", "Lakeside", "heart")
        with pytest.raises(FedwardError, match="not for the key in"):
            plain.join(federation.admit(request_of(twin)), federation.fingerprint)
        csr = certificates.load_request(plain.csr())
        renamed = issuer_of(federation).client(csr, "Lakeside")
        admitted = federation.admit(request_of(plain))
        with pytest.raises(FedwardError, match="not one for hospital 'St. Mary'"):
            plain.join({**admitted, "certificate": renamed.decode()}, federation.fingerprint)
        server = issuer_of(federation).server(["localhost"], csr.public_key())
        with pytest.raises(FedwardError, match="not one for hospital"):
            plain.join({**admitted, "certificate": server.decode()}, federation.fingerprint)

    def test_one_out_of_its_time_is_refused_with_both_times(self, plain, federation):
        expired = issuer_of(federation).client(
            certificates.load_request(plain.csr()), "St. Mary", timedelta(minutes=-1)
        )
        admitted = {**federation.admit(request_of(plain)), "certificate": expired.decode()}
        with pytest.raises(FedwardError, match=r"valid from .* to .* UTC and it is .*set this computer's clock"):
            plain.join(admitted, federation.fingerprint)

    def test_joining_again_renews_and_another_federation_is_refused(self, plain, federation, tmp_path):
        plain.join(federation.admit(request_of(plain)), federation.fingerprint)
        before = plain.certificate.read_bytes()
        plain.join(federation.admit(request_of(plain)), federation.fingerprint)
        assert plain.certificate.read_bytes() != before
        other = provision.create(tmp_path / "other", "Lung Study")
        files = files_of(plain)
        with pytest.raises(FedwardError, match="has joined federation 'Heart Study' already"):
            plain.join(other.admit(request_of(plain)), other.fingerprint)
        assert files_of(plain) == files

    @pytest.mark.parametrize("at", range(1, 4))
    def test_a_full_disk_leaves_it_as_it_was(self, plain, federation, monkeypatch, at):
        admitted, before, calls, create = federation.admit(request_of(plain)), files_of(plain), [], keys._create

        def fill(path, content):
            calls.append(path)
            if len(calls) == at:
                path.write_bytes(content[:10])
                raise OSError(28, "No space left on device")
            create(path, content)

        monkeypatch.setattr(keys, "_create", fill)
        with pytest.raises(DataError, match="No space left on device"):
            plain.join(admitted, federation.fingerprint)
        assert files_of(plain) == before
        plain.join(admitted, federation.fingerprint)
        assert set(files_of(plain)) == {"request.json", *GIVEN}

    @pytest.mark.parametrize("at", [1, 2, 3])
    @pytest.mark.parametrize("before", ["nothing", "this one", "another one that it left"])
    def test_a_crash_between_any_two_names_is_mended_by_joining_again(
        self, plain, federation, monkeypatch, tmp_path, at, before
    ):
        """Whatever is there after the crash: the hospital has joined none, or this one and can show its certificate."""
        if before == "this one":
            plain.join(federation.admit(request_of(plain)), federation.fingerprint)
        elif before == "another one that it left":
            other = provision.create(tmp_path / "other", "Lung Study", ["localhost"])
            plain.join(other.admit(request_of(plain)), other.fingerprint)
            (plain.folder / "federation.json").unlink()
        admitted, names, replace = federation.admit(request_of(plain)), [], os.replace

        def crash(part, path):
            names.append(path)
            if len(names) == at:
                raise KeyboardInterrupt
            replace(part, path)

        monkeypatch.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            plain.join(admitted, federation.fingerprint)
        assert names[-1].name == ("authority.pem", "certificate.pem", "federation.json")[at - 1]
        monkeypatch.setattr(os, "replace", replace)
        again = sites.open_site(plain.folder)
        if again.federation:
            assert again.federation["fingerprint"] == federation.fingerprint
            again.tls_context()
        again.join(admitted, federation.fingerprint)
        assert again.federation["federation"] == "Heart Study"
        assert again.certificate.read_text() == admitted["certificate"]
        again.tls_context()
        assert set(files_of(again)) == {"request.json", *GIVEN}

    def test_a_request_from_a_changed_folder_admits_nobody(self, plain, federation):
        for part, value in (("name", "Lakeside"), ("task", "notes"), ("fedward", "9")):
            with pytest.raises(DataError, match="altered after it was signed"):
                federation.admit({**request_of(plain), part: value})


class TestRenewal:
    def test_a_renewed_certificate_takes_the_place_of_the_present_one(self, site, federation):
        site.join(federation.admit(request_of(site)), federation.fingerprint)
        before = files_of(site)
        pem = federation.renew("St. Mary", site.csr())
        site.renewed(pem)
        assert files_of(site) == {**before, "certificate.pem": pem}
        assert pem != before["certificate.pem"]

    def test_any_other_is_refused_and_the_present_one_stays(self, plain, federation, tmp_path):
        plain.join(federation.admit(request_of(plain)), federation.fingerprint)
        before = files_of(plain)
        other = provision.create(tmp_path / "other", "Heart Study")
        lake = sites.create(tmp_path / "lake", "Lakeside", "heart")
        request = certificates.load_request(plain.csr())
        refused = [
            b"damaged",
            other.admit(request_of(plain))["certificate"].encode(),
            federation.admit(request_of(lake))["certificate"].encode(),
            issuer_of(federation).client(request, "St. Mary", timedelta(minutes=-1)),
            federation.authority,
            federation.gateway_certificate.read_bytes(),
        ]
        for pem in refused:
            with pytest.raises(FedwardError):
                plain.renewed(pem)
        assert files_of(plain) == before

    def test_without_having_joined_there_is_nothing_to_renew(self, plain, federation):
        admitted = federation.admit(request_of(plain))
        with pytest.raises(FedwardError, match="has not joined yet: fedward hospital join"):
            plain.renewed(admitted["certificate"].encode())
        with pytest.raises(FedwardError, match="has not joined yet"):
            plain.tls_context()


class TestHandshake:
    def test_a_joined_site_reaches_its_gateway_and_no_other(self, site, federation, tmp_path):
        site.join(federation.admit(request_of(site)), federation.fingerprint)
        assert federation.member_of(speak(federation, site)).name == "St. Mary"
        middle = provision.create(tmp_path / "middle", "Heart Study", ["localhost"])
        with pytest.raises(ssl.SSLCertVerificationError):
            speak(middle, site)

    @pytest.mark.fault(4, passes_when="damaged certificates and the federation's file are named")
    def test_damaged_files_are_named(self, plain, federation):
        plain.join(federation.admit(request_of(plain)), federation.fingerprint)
        good = plain.certificate.read_bytes()
        for content in (b"damaged", federation.authority):
            plain.certificate.write_bytes(content)
            with pytest.raises(DataError, match="certificate is damaged, or not for this key"):
                plain.tls_context()
        plain.certificate.write_bytes(good)
        plain.authority.write_bytes(b"damaged")
        with pytest.raises(DataError, match="authority.pem: damaged"):
            plain.tls_context()
        (plain.folder / "federation.json").write_text("{}")
        with pytest.raises(DataError, match="federation.json"):
            plain.federation  # noqa: B018


def speak(federation, site):
    """Connect a site to a TLS server of a federation; return the certificate that the server saw, DER."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(federation.gateway_certificate, federation.gateway_key)
    context.load_verify_locations(cadata=federation.authority.decode())
    context.verify_mode = ssl.CERT_REQUIRED
    seen = []

    def accept():
        raw, _ = listener.accept()
        try:
            with context.wrap_socket(raw, server_side=True) as peer:
                seen.append(peer.getpeercert(binary_form=True))
                peer.sendall(b"welcome")
        except OSError:
            raw.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=10) as raw,
                site.tls_context().wrap_socket(raw, server_hostname="localhost") as peer,
            ):
                assert peer.version() == "TLSv1.3"
                assert peer.recv(100) == b"welcome"
        finally:
            thread.join(10)
    return seen[0]


def test_the_request_names_its_parts_and_nothing_else(plain):
    assert set(request_of(plain)) == {"fedward", "name", "task", "csr", "node_key", "audit_key", "signature"}
    assert joining.check_request(request_of(plain)).tls_key == keys.public_line(plain.tls_key())
