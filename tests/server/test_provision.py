"""The federation's folder: who is admitted is seen at once, and nobody can take another's place."""

import multiprocessing
import os
import socket
import ssl
import stat
import threading
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from common import certificates, joining, keys
from common.certificates import Issuer
from common.errors import ConfigError, DataError, FedwardError, UsageError
from server import provision
from server.members import alike

HOSTS = ("localhost", "127.0.0.1")


class Hospital:
    """What a hospital holds: keys, and a request over them."""

    def __init__(self, name="St. Mary", task="heart", tls=None, node=None, audit=None):
        self.name = name
        self.tls = tls or keys.generate("tls")
        self.node, self.audit = node or keys.generate("node"), audit or keys.generate("audit")
        self.request = joining.make_request(
            name, task, self.tls, keys.public_line(self.node), keys.public_line(self.audit)
        )
        self.csr = certificates.signing_request(name, self.tls)


@pytest.fixture
def federation(tmp_path):
    return provision.create(tmp_path / "federation", "Heart Study", HOSTS)


@pytest.fixture(scope="module")
def mary():
    return Hospital()


def der(pem):
    return ssl.PEM_cert_to_DER_cert(pem if isinstance(pem, str) else pem.decode())


def later(monkeypatch, delta):
    now = certificates.now
    monkeypatch.setattr(certificates, "now", lambda: now() + delta)


class TestFolder:
    def test_it_is_opened_as_it_was_made(self, federation):
        again = provision.open_federation(federation.folder)
        assert again == federation
        assert (again.name, again.address, again.hosts) == ("Heart Study", "localhost:8443", HOSTS)
        assert again.fingerprint == certificates.fingerprint(
            (federation.folder / "ca" / "certificate.pem").read_bytes()
        )
        assert again.token() == federation.token()

    def test_only_its_owner_may_read_any_of_it(self, tmp_path, mary):
        before = os.umask(0)
        try:
            provision.create(tmp_path / "federation", "Heart Study").admit(mary.request)
        finally:
            os.umask(before)
        for path in [tmp_path / "federation", *(tmp_path / "federation").rglob("*")]:
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path

    def test_private_keys_are_in_their_two_files_only(self, federation, mary):
        federation.admit(mary.request)
        holders = [path for path in federation.folder.rglob("*") if path.is_file() and b"PRIVATE" in path.read_bytes()]
        assert sorted(path.relative_to(federation.folder).as_posix() for path in holders) == [
            "ca/key.pem",
            "gateway/key.pem",
        ]

    def test_tokens_are_256_bits_and_differ(self, federation, tmp_path):
        other = provision.create(tmp_path / "other", "Heart Study")
        assert len(bytes.fromhex(federation.token())) == 32
        assert other.token() != federation.token()
        assert other.fingerprint != federation.fingerprint
        (federation.folder / "token").write_text("short\n")
        with pytest.raises(DataError, match="expected 64 hexadecimal digits"):
            federation.token()
        (federation.folder / "token").chmod(0o644)
        with pytest.raises(DataError, match="chmod 600"):
            federation.token()

    def test_a_folder_in_use_is_refused_and_untouched(self, federation):
        before = {path: path.read_bytes() for path in federation.folder.rglob("*") if path.is_file()}
        with pytest.raises(UsageError, match="exists and is not empty"):
            provision.create(federation.folder, "Another", HOSTS)
        assert before == {path: path.read_bytes() for path in federation.folder.rglob("*") if path.is_file()}

    @pytest.mark.parametrize(("name", "hosts"), [("", HOSTS), ("a/b", HOSTS), ("good", ["*.org"]), ("good", ["a:80"])])
    def test_nothing_is_left_of_one_that_was_typed_wrongly(self, tmp_path, name, hosts):
        with pytest.raises(UsageError):
            provision.create(tmp_path / "federation", name, hosts)
        assert not (tmp_path / "federation").exists()

    def test_any_other_folder_is_no_federation(self, tmp_path):
        for folder in (tmp_path, tmp_path / "absent"):
            with pytest.raises(UsageError, match=r"no federation here .*make one with: fedward server init"):
                provision.open_federation(folder)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("name = ", "not valid TOML"),
            ("adress = 'a:1'", "unknown setting 'adress'; did you mean 'address'"),
            ("name = 'Heart Study'\naddress = 'a'", 'address: expected "host:port"'),
            ("name = 'Heart Study'\nhosts = 'a'", "hosts: expected a list"),
            ("name = 'Heart Study'\nhosts = ['a:1']", "host: expected a DNS name"),
            ("name = 'Lung Study'", "the authority was made for 'Heart Study'"),
            ("name = 5", "name: expected a name"),
            ("", "name: expected a name"),
        ],
    )
    def test_a_wrong_setting_is_named(self, federation, text, message):
        (federation.folder / "federation.toml").write_text(text)
        with pytest.raises(UsageError, match=message):
            provision.open_federation(federation.folder)

    @pytest.mark.fault(4, passes_when="the federation's damaged files are named")
    def test_damaged_files_are_named(self, federation):
        (federation.folder / "ca" / "certificate.pem").write_text("damaged")
        with pytest.raises(DataError, match="certificate.pem: damaged"):
            provision.open_federation(federation.folder)
        (federation.folder / "federation.toml").write_bytes(b"\xff")
        with pytest.raises(ConfigError):
            provision.open_federation(federation.folder)

    @pytest.mark.parametrize("hosts", [(), ("::1",), ("fl.example.org", "10.1.2.3")])
    def test_settings_can_be_read_whatever_the_name_and_hosts(self, tmp_path, hosts):
        federation = provision.create(tmp_path / "federation", "心脏 研究", hosts)
        assert federation.name == "心脏 研究"
        assert federation.hosts == (hosts or provision.LOOPBACK)
        assert federation.address == {(): None, ("::1",): "[::1]:8443"}.get(hosts, "fl.example.org:8443")


class TestAdmission:
    def test_an_admitted_hospital_gets_what_it_needs(self, federation, mary):
        admitted = federation.admit(mary.request)
        assert set(admitted) == {"fedward", "federation", "address", "name", "certificate", "authority"}
        assert (admitted["federation"], admitted["address"]) == ("Heart Study", "localhost:8443")
        assert federation.fingerprint == certificates.fingerprint(admitted["authority"].encode())
        member = federation.member_of(der(admitted["certificate"]))
        assert member == federation.members()[0]
        assert (member.name, member.task, member.node_key) == ("St. Mary", "heart", keys.public_line(mary.node))

    def test_every_process_sees_it_at_once(self, federation, mary):
        other = provision.open_federation(federation.folder)
        assert other.members() == []
        certificate = der(federation.admit(mary.request)["certificate"])
        assert other.member_of(certificate).name == "St. Mary"
        federation.revoke("St. Mary")
        assert other.member_of(certificate) is None
        assert other.members()[0].revoked

    def test_a_change_within_one_tick_of_the_clock_is_seen(self, federation, mary):
        """A file replaced by one of the same size and time is another file."""
        certificate = der(federation.admit(mary.request)["certificate"])
        path = federation.folder / "members" / "St. Mary.json"
        for number in range(50):
            assert federation.member_of(certificate)
            before, text = path.stat(), path.read_text()
            keys.replace({path: text.replace('"revoked": null', '"revoked": "no"').encode()})
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            assert path.stat().st_mtime_ns == before.st_mtime_ns
            assert federation.member_of(certificate) is None, number
            keys.replace({path: text.encode()})
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def test_a_known_certificate_costs_no_reading(self, federation, mary, monkeypatch):
        certificate = der(federation.admit(mary.request)["certificate"])
        assert federation.member_of(certificate)
        monkeypatch.setattr(joining, "read_document", None)
        monkeypatch.setattr(certificates, "is_issued_by", None)
        assert federation.member_of(bytes(bytearray(certificate))).name == "St. Mary"

    def test_a_name_is_taken_by_its_first_key(self, federation, mary):
        federation.admit(mary.request)
        before = federation.members()
        with pytest.raises(FedwardError, match="name 'St. Mary' is taken by another key"):
            federation.admit(Hospital().request)
        with pytest.raises(FedwardError, match="taken by another key"):
            federation.admit(Hospital(tls=mary.tls, node=mary.node).request)
        assert federation.members() == before

    @pytest.mark.parametrize("name", ["st. mary", "ST.  MARY", "Ｓｔ. Mary", "St. Mary "])
    def test_a_name_that_looks_the_same_is_refused(self, federation, mary, name):
        federation.admit(mary.request)
        assert alike(name) == alike("St. Mary")
        with pytest.raises(FedwardError, match="looks like that of hospital 'St. Mary'"):
            federation.admit(Hospital(name).request)

    @pytest.mark.parametrize("kind", ["tls", "node", "audit"])
    def test_no_hospital_can_bring_anothers_key(self, federation, mary, kind):
        federation.admit(mary.request)
        with pytest.raises(FedwardError, match="a key of this request belongs to hospital 'St. Mary'"):
            federation.admit(Hospital("Lakeside", **{kind: getattr(mary, kind)}).request)

    def test_the_same_request_again_is_a_renewal(self, federation, mary, monkeypatch):
        first = federation.admit(mary.request)
        admitted = federation.members()[0].admitted
        later(monkeypatch, timedelta(days=2))
        second = federation.admit(mary.request)
        assert first["certificate"] != second["certificate"]
        (member,) = federation.members()
        assert member.admitted == admitted
        assert len(member.serials) == 2
        for answer in (first, second):
            assert federation.member_of(der(answer["certificate"])) == member

    def test_many_hospitals_are_listed_by_name(self, federation):
        for name in ("c", "a", "北京协和医院", "b.json"):
            federation.admit(Hospital(name).request)
        assert [member.name for member in federation.members()] == ["a", "b.json", "c", "北京协和医院"]

    def test_a_damaged_request_admits_nobody(self, federation, mary):
        for request in ({}, {**mary.request, "task": "notes"}, {**mary.request, "csr": "x"}):
            with pytest.raises(DataError):
                federation.admit(request)
        assert federation.members() == []

    def test_without_its_authoritys_key_nobody_is_admitted(self, federation, mary):
        (federation.folder / "ca" / "key.pem").unlink()
        with pytest.raises(DataError, match="key.pem: cannot be read"):
            federation.admit(mary.request)
        assert federation.members() == []

    @pytest.mark.parametrize("content", ["", "{}", "[]", '{"name": "St. Mary"}', None])
    @pytest.mark.fault(4, passes_when="a damaged list of members is named, and lets nobody in")
    def test_a_damaged_members_file_is_named_and_lets_nobody_in(self, federation, mary, content):
        certificate = der(federation.admit(mary.request)["certificate"])
        path = federation.folder / "members" / "St. Mary.json"
        path.write_text(path.read_text().replace("St. Mary", "Lakeside") if content is None else content)
        assert federation.member_of(certificate) is None
        with pytest.raises(DataError, match="St. Mary.json: "):
            federation.members()


class TestRenewal:
    def test_it_is_over_the_same_key(self, federation, mary):
        federation.admit(mary.request)
        pem = federation.renew("St. Mary", mary.csr)
        assert federation.member_of(der(pem)).name == "St. Mary"
        assert certificates.tls_line(certificates.load(pem, "")) == keys.public_line(mary.tls)
        with pytest.raises(FedwardError, match="renews over the same key only"):
            federation.renew("St. Mary", certificates.signing_request("St. Mary", keys.generate("tls")))
        with pytest.raises(FedwardError, match="not for the key and name"):
            federation.renew("St. Mary", certificates.signing_request("Lakeside", mary.tls))
        with pytest.raises(FedwardError, match="no hospital 'Lakeside' is admitted"):
            federation.renew("Lakeside", certificates.signing_request("Lakeside", mary.tls))
        with pytest.raises(DataError, match="signing request: damaged"):
            federation.renew("St. Mary", b"damaged")

    @pytest.mark.parametrize("name", ["../federation", "a/b", "", "\0", "a" * 300, "院" * 64])
    def test_a_name_is_no_path(self, federation, mary, name):
        with pytest.raises(FedwardError):
            federation.renew(name, mary.csr)
        with pytest.raises(FedwardError):
            federation.revoke(name)

    def test_only_the_newest_few_count(self, federation, mary):
        first = der(federation.admit(mary.request)["certificate"])
        newer = [der(federation.renew("St. Mary", mary.csr)) for _ in range(provision.SERIALS)]
        assert federation.member_of(first) is None
        assert all(federation.member_of(certificate) for certificate in newer)
        assert len(federation.members()[0].serials) == provision.SERIALS

    def test_the_certificate_in_use_counts_however_many_answers_are_lost(self, federation, mary):
        shown = der(federation.admit(mary.request)["certificate"])
        given = [der(federation.renew("St. Mary", mary.csr, shown)) for _ in range(3 * provision.SERIALS)]
        assert federation.member_of(shown)
        counting = [federation.member_of(each) is not None for each in given]
        assert counting == [False] * (2 * provision.SERIALS + 1) + [True] * (provision.SERIALS - 1)
        assert len(federation.members()[0].serials) == provision.SERIALS

    def test_a_revoked_hospital_cannot(self, federation, mary):
        federation.admit(mary.request)
        federation.revoke("St. Mary")
        with pytest.raises(FedwardError, match="'St. Mary' was revoked at 20"):
            federation.renew("St. Mary", mary.csr)

    def test_renewals_at_the_same_moment_lose_nothing(self, federation, mary):
        """Four processes' worth of reading, changing and writing one file, and a revocation among them that has to last."""
        federation.admit(mary.request)
        with multiprocessing.get_context("spawn").Pool(3) as pool:
            counts = pool.starmap(renew_often, [(federation.folder, mary.csr)] * 2)
            assert counts == [3, 3]
            assert len(federation.members()[0].serials) == 7
            slow = pool.apply_async(renew_often, (federation.folder, mary.csr, 500))
            federation.revoke("St. Mary")
            assert slow.get(60) < 500
        assert federation.members()[0].revoked


def renew_often(folder, csr, times=3):
    """Renew so often, or until it is refused; return how often it went well."""
    federation = provision.open_federation(folder)
    for done in range(times):
        try:
            federation.renew("St. Mary", csr)
        except FedwardError:
            return done
    return times


class TestRevocation:
    @pytest.mark.fault(16, passes_when="a revocation holds for all of a hospital's certificates at once")
    def test_it_holds_for_all_certificates_at_once_and_only_for_that_hospital(self, federation, mary):
        lake = Hospital("Lakeside")
        given = [federation.admit(mary.request)["certificate"], federation.renew("St. Mary", mary.csr)]
        other = der(federation.admit(lake.request)["certificate"])
        revoked = federation.revoke("St. Mary")
        assert all(federation.member_of(der(pem)) is None for pem in given)
        assert federation.member_of(other).name == "Lakeside"
        assert federation.revoke("St. Mary") == revoked

    def test_an_unknown_name_is_refused_with_the_nearest(self, federation, mary):
        federation.admit(mary.request)
        with pytest.raises(UsageError, match="no hospital 'St. Marie' is admitted; did you mean 'St. Mary'"):
            federation.revoke("St. Marie")

    @pytest.mark.parametrize("kind", ["tls", "node", "audit"])
    @pytest.mark.parametrize("name", ["St. Mary", "Lakeside"])
    @pytest.mark.fault(16, passes_when="revoked keys never come back")
    def test_its_keys_never_come_back_under_any_name(self, federation, mary, kind, name):
        federation.admit(mary.request)
        federation.revoke("St. Mary")
        with pytest.raises(FedwardError, match="was revoked with hospital 'St. Mary'"):
            federation.admit(Hospital(name, **{kind: getattr(mary, kind)}).request)

    def test_it_comes_back_under_new_keys_and_the_old_certificates_do_not(self, federation, mary):
        old = der(federation.admit(mary.request)["certificate"])
        federation.revoke("St. Mary")
        new = Hospital()
        certificate = der(federation.admit(new.request)["certificate"])
        assert federation.member_of(certificate).revoked is None
        assert federation.member_of(old) is None
        federation.revoke("St. Mary")
        for again in (mary, new):
            with pytest.raises(FedwardError, match="was revoked"):
                federation.admit(again.request)


class TestStrangers:
    def test_bytes_that_are_no_certificate_are_nobody(self, federation):
        for data in (b"", b"0", bytes(100), os.urandom(500)):
            assert federation.member_of(data) is None

    def test_another_authority_of_the_same_name_makes_no_member(self, federation, tmp_path, mary):
        other = provision.create(tmp_path / "other", "Heart Study", HOSTS)
        federation.admit(mary.request)
        assert federation.member_of(der(other.admit(mary.request)["certificate"])) is None

    def test_a_certificate_of_ours_that_was_never_listed_makes_no_member(self, federation, mary):
        federation.admit(mary.request)
        unlisted = authority_of(federation).client(certificates.load_request(mary.csr), "St. Mary")
        assert federation.member_of(der(unlisted)) is None
        assert federation.member_of(der(federation.gateway_certificate.read_bytes())) is None
        assert federation.member_of(der(federation.authority)) is None

    def test_a_hospital_cannot_sign_for_another(self, federation, mary):
        """Its own certificate is no authority, and what it signs is nobody's."""
        federation.admit(mary.request)
        issuer = Issuer(authority_of(federation).certificate, mary.tls)
        forged = issuer.client(certificates.load_request(mary.csr), "St. Mary")
        assert federation.member_of(der(forged)) is None

    @pytest.mark.parametrize(("days", "valid"), [(-1, False), (0, True), (89, True), (91, False)])
    def test_it_counts_in_its_time_only(self, federation, mary, monkeypatch, days, valid):
        certificate = der(federation.admit(mary.request)["certificate"])
        later(monkeypatch, timedelta(days=days))
        assert bool(federation.member_of(certificate)) is valid

    @pytest.mark.fault(9, passes_when="no altered byte of a certificate makes a member")
    def test_no_altered_byte_of_what_was_signed_or_of_the_signature_makes_a_member(self, federation, mary):
        pem = federation.admit(mary.request)["certificate"]
        certificate, loaded = der(pem), certificates.load(pem.encode(), "")
        for part in (loaded.tbs_certificate_bytes, loaded.signature):
            begin = certificate.index(part)
            for at in range(begin, begin + len(part)):
                altered = bytearray(certificate)
                altered[at] ^= 0x01
                assert federation.member_of(bytes(altered)) is None, at


class TestGateway:
    def test_its_certificate_is_made_anew_in_time_and_for_other_hosts(self, federation, monkeypatch):
        before = federation.gateway_certificate.read_bytes()
        assert not federation.refresh_gateway()
        assert federation.gateway_certificate.read_bytes() == before
        settings = federation.folder / "federation.toml"
        settings.write_text(settings.read_text().replace('"127.0.0.1"', '"10.0.0.7"'))
        moved = provision.open_federation(federation.folder)
        assert moved.refresh_gateway()
        assert not moved.refresh_gateway()
        pem = federation.gateway_certificate.read_bytes()
        assert certificates.hosts_of(pem) == certificates.hosts(["localhost", "10.0.0.7"])
        assert certificates.tls_line(certificates.load(pem, "")) == certificates.tls_line(certificates.load(before, ""))
        later(monkeypatch, timedelta(days=340))
        assert moved.refresh_gateway()
        federation.gateway_certificate.unlink()
        assert moved.refresh_gateway()


def authority_of(federation):
    key = keys.load_private(keys.read(federation.folder / "ca" / "key.pem"), "tls", "")
    return Issuer(certificates.load(federation.authority, ""), key)


def serve(context):
    """Accept one connection after another; give each peer its own certificate back, or b"" for one that was refused."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept():
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(raw, server_side=True) as peer:
                    peer.sendall(peer.getpeercert(binary_form=True))
            except OSError:
                raw.close()

    thread = threading.Thread(target=accept)
    thread.start()
    return listener, thread


@pytest.fixture
def gateway(federation):
    """Return a way to connect to a real TLS server that shows the gateway's certificate and wants a hospital's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(federation.gateway_certificate, federation.gateway_key)
    context.load_verify_locations(cadata=federation.authority.decode())
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    listener, thread = serve(context)

    def connect(pem, key, host="localhost"):
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.verify_flags |= ssl.VERIFY_X509_STRICT
        client.load_verify_locations(cadata=federation.authority.decode())
        if pem:
            keys.load_chain(client, pem, key)
        with (
            socket.create_connection(listener.getsockname(), timeout=10) as raw,
            client.wrap_socket(raw, server_hostname=host) as peer,
        ):
            return peer.recv(65536)

    yield connect
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(10)


class TestHandshake:
    def test_an_admitted_hospital_gets_through_and_is_known(self, federation, gateway, mary):
        pem = federation.admit(mary.request)["certificate"].encode()
        for host in HOSTS:
            seen = gateway(pem, mary.tls, host)
            assert seen == der(pem)
            assert federation.member_of(seen).name == "St. Mary"

    @pytest.mark.fault(
        16, passes_when="no handshake without a certificate, with an expired one, or with one of another authority"
    )
    def test_one_without_expired_or_of_another_authority_does_not(self, federation, gateway, mary, tmp_path):
        other = provision.create(tmp_path / "other", "Heart Study", HOSTS).admit(mary.request)["certificate"].encode()
        request = certificates.load_request(mary.csr)
        expired = authority_of(federation).client(request, "St. Mary", timedelta(minutes=-1))
        for pem in (None, expired, other):
            # With TLS 1.3 the refusal comes after the client believes to be through: as an alert, or a connection that ends.
            try:
                assert gateway(pem, mary.tls) == b""
            except (ssl.SSLError, ConnectionError) as refusal:
                assert "ertificate" in str(refusal) or "unknown ca" in str(refusal) or "reset" in str(refusal)

    def test_a_hospital_cannot_pose_as_the_gateway(self, federation, mary):
        pem = federation.admit(mary.request)["certificate"].encode()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        keys.load_chain(context, pem, mary.tls)
        listener, thread = serve(context)
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.load_verify_locations(cadata=federation.authority.decode())
        with (
            socket.create_connection(listener.getsockname(), timeout=10) as raw,
            pytest.raises(
                ssl.SSLCertVerificationError, match="unsuitable certificate purpose|unsupported certificate purpose"
            ),
        ):
            client.wrap_socket(raw)
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)

    def test_the_gateways_certificate_is_for_its_hosts_only(self, federation, gateway, mary):
        pem = federation.admit(mary.request)["certificate"].encode()
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            gateway(pem, mary.tls, "example.org")


def test_what_a_hostile_signing_request_asks_for_does_not_reach_its_certificate(federation, mary):
    builder = x509.CertificateSigningRequestBuilder()
    builder = builder.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "St. Mary")]))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=9), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    csr = builder.sign(mary.tls, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    federation.admit(mary.request)
    certificate = certificates.load(federation.renew("St. Mary", csr), "")
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not certificates.hosts_of(certificates.pem_of(certificate))
