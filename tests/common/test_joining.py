"""The request of a hospital: all of its parts were signed together, and whatever else comes is one clear error."""

import base64
import json
import re

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given
from hypothesis import strategies as st

from common import certificates, joining, keys
from common.errors import DataError, FedwardError, UsageError

PARTS = ("name", "task", "csr", "node_key", "audit_key", "signature")
json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def lines():
    return [keys.public_line(keys.generate(kind)) for kind in ("node", "audit")]


@pytest.fixture(scope="module")
def key():
    return keys.generate("tls")


@pytest.fixture(scope="module")
def request_document(key):
    return joining.make_request("St. Mary", "heart", key, *lines())


def signed(key, document):
    """Sign a document as a hospital would that changed its own code."""
    fields = {name: value for name, value in document.items() if name != "signature"}
    signature = key.sign(joining._canonical(fields), ec.ECDSA(hashes.SHA256()))
    return {**fields, "signature": base64.b64encode(signature).decode()}


class TestRequest:
    def test_what_was_made_is_read_after_a_walk_through_json(self, key, request_document):
        checked = joining.check_request(json.loads(json.dumps(request_document, indent=4)))
        assert (checked.name, checked.task) == ("St. Mary", "heart")
        assert checked.tls_key == keys.public_line(key)
        assert (checked.node_key, checked.audit_key) == (request_document["node_key"], request_document["audit_key"])

    @pytest.mark.parametrize("part", PARTS)
    def test_no_part_can_be_missing_or_no_text(self, request_document, part):
        for value in (None, 5, [], {"a": 1}):
            with pytest.raises(DataError, match=f"request: '{part}' is missing or no text"):
                joining.check_request({**request_document, part: value})
        with pytest.raises(DataError, match=f"'{part}' is missing"):
            joining.check_request({name: value for name, value in request_document.items() if name != part})

    @pytest.mark.parametrize("part", ["fedward", *PARTS])
    def test_no_part_can_be_taken_from_another_request(self, request_document, part):
        other = joining.make_request("Lakeside", "notes", keys.generate("tls"), *lines()) | {"fedward": "9.9"}
        with pytest.raises(FedwardError):
            joining.check_request({**request_document, part: other[part]})

    def test_nothing_can_be_added(self, request_document):
        with pytest.raises(DataError, match="altered after it was signed"):
            joining.check_request({**request_document, "role": "operator"})

    @given(st.sampled_from(PARTS), st.data())
    @pytest.mark.fault(9, passes_when="no letter of a request to join can be altered")
    def test_no_letter_can_be_altered(self, request_document, part, data):
        text = request_document[part]
        at = data.draw(st.integers(0, len(text) - 1))
        letter = data.draw(st.characters().filter(lambda letter: letter != text[at]))
        changed = {**request_document, part: text[:at] + letter + text[at + 1 :]}
        with pytest.raises(FedwardError):
            joining.check_request(changed)

    @given(st.binary(max_size=80))
    def test_bytes_have_one_spelling(self, data):
        """Base64 has unused bits at its end; were they ignored, an altered signature could pass."""
        assert keys.from_text(keys.to_text(data)) == data
        assert keys.from_text("QQ==") == b"A"
        for other in ("QR==", "Qf==", "QQ=", "QQ", "QQ==\n", "Q Q==", "é"):
            with pytest.raises(ValueError, match="base64|padd|Only base64|ASCII|bytes"):
                keys.from_text(other)

    def test_the_same_key_cannot_ask_under_a_name_that_its_signing_request_does_not_have(self, key, request_document):
        with pytest.raises(DataError, match="its signing request is for another name"):
            joining.check_request(signed(key, {**request_document, "name": "Lakeside"}))

    @pytest.mark.parametrize(
        ("part", "value"),
        [("node_key", "ssh-rsa AAAA"), ("audit_key", ""), ("task", "../heart"), ("task", ""), ("csr", "-----BEGIN")],
    )
    def test_a_signature_does_not_make_nonsense_good(self, key, request_document, part, value):
        with pytest.raises(FedwardError):
            joining.check_request(signed(key, {**request_document, part: value}))

    def test_keys_cannot_stand_in_each_others_place(self, key, request_document):
        node, audit = request_document["node_key"], request_document["audit_key"]
        with pytest.raises(DataError, match="node_key"):
            joining.check_request(signed(key, {**request_document, "node_key": audit}))
        with pytest.raises(DataError, match="audit_key"):
            joining.check_request(signed(key, {**request_document, "audit_key": node}))

    @given(json_values)
    def test_any_other_json_is_one_error(self, document):
        with pytest.raises(DataError):
            joining.check_request(document)


class TestNames:
    @given(st.from_regex(joining.NAME, fullmatch=True))
    @example("北京协和医院")
    @example("a" * 64)
    def test_a_name_that_the_rounds_accept_is_accepted_and_fits_into_a_certificate(self, name):
        if len(name.encode()) > joining.NAME_BYTES:
            with pytest.raises(UsageError):
                joining.check_name("name", name)
        else:
            assert joining.check_name("name", name) == name
            request = certificates.load_request(certificates.signing_request(name, KEY))
            assert certificates.common_name(request) == name

    @given(st.text())
    @example("")
    @example("../x")
    @example("a\n")
    @example("a/b")
    @example(".hidden")
    @example(" a")
    @example("a" * 65)
    @example("院" * 22)
    @example("\ud800")
    def test_any_other_is_refused_in_one_line(self, name):
        good = re.fullmatch(r"\w[\w .-]{0,63}", name) and len(name.encode()) <= 64
        if not good:
            with pytest.raises(UsageError, match="expected a name of 1 to 64 letters") as caught:
                joining.check_name("name", name)
            assert "\n" not in str(caught.value)


KEY = keys.generate("tls")


class TestAddresses:
    @pytest.mark.parametrize("address", [None, "a.example.org:8443", "127.0.0.1:1", "[::1]:65535", "my_host:80"])
    def test_good_ones(self, address):
        assert joining.check_address("address", address) == address

    @pytest.mark.parametrize(
        "address",
        ["", "a", "a:", ":1", "a:0", "a:65536", "::1:80", "http://a:80", "a:80/x", "a:80\n", 5, "a b:1", "a:²"],
    )
    def test_bad_ones(self, address):
        with pytest.raises(UsageError, match='address: expected "host:port"'):
            joining.check_address("address", address)


class TestDocuments:
    @given(
        st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.integers() | st.booleans(), max_size=5)
    )
    def test_what_was_written_is_read(self, tmp_path_factory, document):
        path = tmp_path_factory.mktemp("document") / "document.json"
        path.write_bytes(joining.document_bytes(document))
        assert joining.read_document(path) == document

    @pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 60_000, b" " * 70_000 + b"{}", b"1" * 5_000])
    @pytest.mark.fault(4, passes_when="damaged requests and admissions are one error")
    def test_damaged_ones_are_one_error(self, tmp_path, content):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(DataError, match=r"a.json: expected a JSON object of at most 65536 bytes"):
            joining.read_document(tmp_path / "a.json")

    def test_absent_ones_are_one_error(self, tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            joining.read_document(tmp_path / "a.json")
