"""Certificates: a fingerprint is compared whole, and of a signing request only the public key counts, whatever else it asks for."""

import hashlib
import ipaddress
import ssl
from contextlib import suppress
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from common import certificates, keys
from common.certificates import Issuer
from common.errors import DataError, UsageError

digests = st.binary(min_size=32, max_size=32)
CN = x509.NameAttribute(NameOID.COMMON_NAME, "St. Mary")
PEM = serialization.Encoding.PEM


@pytest.fixture(scope="module")
def issuer():
    key = keys.generate("tls")
    return Issuer(certificates.load(certificates.make_authority("Heart Study", key), "authority"), key)


@pytest.fixture(scope="module")
def hospital():
    return keys.generate("tls")


@pytest.fixture(scope="module")
def csr(hospital):
    return certificates.load_request(certificates.signing_request("St. Mary", hospital))


def extension(certificate, kind):
    return certificate.extensions.get_extension_for_class(kind)


def hostile(key, *attributes):
    """Ask for everything that a hospital must not get."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([*attributes, CN]))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    names = x509.SubjectAlternativeName(
        [x509.DNSName("gateway.example.org"), x509.IPAddress(ipaddress.ip_address("10.0.0.1"))]
    )
    builder = builder.add_extension(names, critical=False)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]
    builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    usage = x509.KeyUsage(True, True, True, True, True, True, True, False, False)
    builder = builder.add_extension(usage, critical=True)
    builder = builder.add_extension(x509.OCSPNoCheck(), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(PEM)


class TestFingerprint:
    def test_it_is_the_sha256_of_the_der(self, issuer):
        pem = certificates.pem_of(issuer.certificate)
        digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode())).hexdigest()
        assert certificates.fingerprint(pem) == ":".join(digest[i : i + 2] for i in range(0, 64, 2))

    @given(digests, st.data())
    def test_case_blanks_and_colons_do_not_matter(self, digest, data):
        separators = data.draw(st.lists(st.sampled_from(["", ":", " ", ": ", "\t", "\n"]), min_size=33, max_size=33))
        upper = data.draw(st.lists(st.booleans(), min_size=32, max_size=32))
        pairs = [f"{byte:02X}" if up else f"{byte:02x}" for byte, up in zip(digest, upper, strict=True)]
        typed = separators[0] + "".join(pair + separator for pair, separator in zip(pairs, separators[1:], strict=True))
        assert certificates.same_fingerprint(typed, digest.hex(":"))

    @given(digests, st.integers(0, 63), st.sampled_from("0123456789abcdef"))
    def test_every_digit_matters(self, digest, at, other):
        typed = digest.hex()
        changed = typed[:at] + other + typed[at + 1 :]
        assert certificates.same_fingerprint(changed, digest.hex(":")) is (typed[at] == other)

    @given(digests, st.integers(0, 63))
    def test_a_part_of_it_is_never_enough(self, digest, size):
        typed = digest.hex()
        assert not certificates.same_fingerprint(typed[:size], typed)
        assert not certificates.same_fingerprint(typed[size + 1 :], typed)
        assert not certificates.same_fingerprint(typed[:size], typed[:size])
        assert not certificates.same_fingerprint(typed + "0", typed + "0")

    @given(st.text(), st.text())
    def test_other_text_is_no_fingerprint_and_no_error(self, typed, real):
        assert not certificates.same_fingerprint(typed, real)
        assert not certificates.same_fingerprint(typed, typed)

    def test_digits_of_other_scripts_are_none(self):
        assert not certificates.same_fingerprint("１" * 64, "1" * 64)
        assert not certificates.same_fingerprint("１" * 64, "１" * 64)


class TestAuthority:
    def test_it_signs_hospitals_and_no_other_authority(self, issuer):
        certificate = issuer.certificate
        constraints = extension(certificate, x509.BasicConstraints)
        usage = extension(certificate, x509.KeyUsage)
        assert constraints.critical
        assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)
        assert usage.critical
        assert usage.value.key_cert_sign
        assert not usage.value.digital_signature
        assert isinstance(certificate.public_key().curve, ec.SECP256R1)
        assert certificates.common_name(certificate) == "Heart Study"
        assert certificates.is_authority(certificate)

    def test_it_lasts_ten_years(self, issuer):
        left = certificates.expires_in(certificates.pem_of(issuer.certificate))
        assert timedelta(days=3651) < left <= timedelta(days=3653)

    def test_nothing_that_it_signs_outlasts_it(self, issuer, csr):
        pem = issuer.client(csr, "St. Mary", timedelta(days=36_500))
        assert certificates.load(pem, "").not_valid_after_utc == issuer.certificate.not_valid_after_utc


class TestHospitals:
    def test_it_gets_what_a_client_needs_and_no_more(self, issuer, csr, hospital):
        pem = issuer.client(csr, "St. Mary")
        certificate = certificates.load(pem, "")
        assert extension(certificate, x509.BasicConstraints).value == x509.BasicConstraints(ca=False, path_length=None)
        assert list(extension(certificate, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
        usage = extension(certificate, x509.KeyUsage).value
        assert usage.digital_signature
        assert not any((usage.key_cert_sign, usage.crl_sign, usage.key_agreement, usage.key_encipherment))
        assert certificate.subject == x509.Name([CN])
        assert certificates.tls_line(certificate) == keys.public_line(hospital)
        assert certificates.is_issued_by(certificate, issuer.certificate)
        assert timedelta(days=89) < certificates.expires_in(pem) <= timedelta(days=90)
        assert not certificates.is_authority(certificate)

    def test_a_hostile_request_gets_none_of_what_it_asks_for(self, issuer, csr, hospital):
        organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Heart Study")
        request = certificates.load_request(hostile(hospital, organisation))
        assert len(list(request.extensions)) == 5
        got, plain = (certificates.load(issuer.client(each, "St. Mary"), "") for each in (request, csr))
        assert got.subject == plain.subject
        assert {e.oid: e.value for e in got.extensions} == {e.oid: e.value for e in plain.extensions}
        assert not certificates.hosts_of(certificates.pem_of(got))

    def test_each_certificate_has_its_own_serial_number(self, issuer, csr):
        serials = {certificates.load(issuer.client(csr, "St. Mary"), "").serial_number for _ in range(20)}
        assert len(serials) == 20
        assert min(serials) > 2**64

    def test_a_clock_that_is_behind_by_less_than_an_hour_finds_it_valid(self, issuer, csr, monkeypatch):
        certificate = certificates.load(issuer.client(csr, "St. Mary"), "")
        now = certificates.now
        for minutes, valid in ((0, True), (-59, True), (-62, False), (89 * 1440, True), (90 * 1440 + 1, False)):
            monkeypatch.setattr(certificates, "now", lambda minutes=minutes: now() + timedelta(minutes=minutes))
            assert certificates.is_valid(certificate) is valid

    def test_an_expired_one_has_less_than_nothing_left(self, issuer, csr):
        pem = issuer.client(csr, "St. Mary", timedelta(minutes=-5))
        assert timedelta(minutes=-6) < certificates.expires_in(pem) < timedelta(minutes=-4)
        assert not certificates.is_valid(certificates.load(pem, ""))


class TestRequests:
    @pytest.mark.parametrize(
        "key",
        [
            ec.generate_private_key(ec.SECP384R1()),
            ec.generate_private_key(ec.SECP256K1()),
            rsa.generate_private_key(65537, 2048),
            ed25519.Ed25519PrivateKey.generate(),
        ],
        ids=["p384", "secp256k1", "rsa", "ed25519"],
    )
    def test_other_keys_than_ours_are_refused(self, key):
        algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([CN]))
        with pytest.raises(DataError, match="signing request: damaged, or of another kind"):
            certificates.load_request(builder.sign(key, algorithm).public_bytes(PEM))

    @given(st.data())
    @pytest.mark.fault(9, passes_when="an altered signing request is refused")
    def test_an_altered_byte_is_refused_or_changes_nothing_that_was_signed(self, csr, data):
        der = bytearray(csr.public_bytes(serialization.Encoding.DER))
        at = data.draw(st.integers(0, len(der) - 1))
        der[at] ^= data.draw(st.integers(1, 255))
        pem = ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "CERTIFICATE REQUEST")
        # The count of unused bits behind the signature says nothing, and may be read over.
        with suppress(DataError):
            assert certificates.load_request(pem.encode()).tbs_certrequest_bytes == csr.tbs_certrequest_bytes

    @given(st.binary(max_size=300))
    def test_other_bytes_are_one_error(self, data):
        for load in (certificates.load_request, certificates.fingerprint, certificates.expires_in):
            with pytest.raises(DataError):
                load(data)


class TestHosts:
    @pytest.mark.parametrize(
        "host",
        ["localhost", "fl.example.org", "xn--mller-kva.example", "my_gateway", "3f2a", "10.0.0.1", "::1", "a" * 63],
    )
    def test_names_and_addresses_stand_in_the_gateways_certificate(self, issuer, host):
        pem = issuer.server([host, "other.example.org"], keys.generate("tls").public_key())
        certificate = certificates.load(pem, "")
        names = extension(certificate, x509.SubjectAlternativeName).value
        found = [str(name) for name in names.get_values_for_type(x509.IPAddress)]
        assert [host] == (found or names.get_values_for_type(x509.DNSName)[:1])
        assert certificates.hosts_of(pem) == certificates.hosts(["other.example.org", host])
        assert list(extension(certificate, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
        assert not certificates.is_for_clients(certificate)

    @pytest.mark.parametrize(
        "host",
        ["", ".", "a..b", "*.example.org", "host:8443", "256.0.0.1", "1.2.3", "fe80::1%eth0", "bücher.example", "a b",
         "localhost\n", "-a.org", "a" * 64, "a." * 127 + "ab", "https://a.org", "a\0b"],
    )  # fmt: skip
    def test_anything_else_is_refused(self, host):
        with pytest.raises(UsageError, match="host: expected a DNS name"):
            certificates.hosts([host])
