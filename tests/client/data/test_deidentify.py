"""De-identification: each class of identifier is found, in English and in Chinese, and measurements are left as they are."""

import hashlib
import hmac
from datetime import date

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data import deidentify, split
from client.data.deidentify import days_from_first
from client.data.reading import read
from client.data.schema import mapping_of
from client.data.text import class_of_cells, class_of_name, is_identity_number, is_old_identity_number, scrub
from common.errors import DataError, UsageError
from common.tasks.heart import Heart
from common.tasks.notes import Notes
from common.tasks.task import rows_of

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
NOTES, HEART = Notes().build(), Heart().build()

EXAMPLES = [
    ("NAME", "Seen by Dr. Rivermouth today", "Rivermouth"),
    ("NAME", "Mrs Anna B. Rivermouth-Stone was admitted", "Anna B. Rivermouth-Stone"),
    ("NAME", "Patient: Anna Rivermouth", "Anna Rivermouth"),
    ("NAME", "Patient name: RIVERMOUTH, ANNA", "RIVERMOUTH, ANNA"),
    ("NAME", "姓名：张小明，男", "张小明"),
    ("NAME", "患者李雷，男，45岁", "李雷"),
    ("NAME", "由王医生接诊", "王"),
    ("NAME", "陈建国副主任医师查房", "陈建国"),
    ("ADDRESS", "lives at 12 Old Oak Street, Apt 4", "12 Old Oak Street"),
    ("ADDRESS", "Springfield, MA 02115", "02115"),
    ("ADDRESS", "zip code: 90210", "90210"),
    ("ADDRESS", "P.O. Box 991", "P.O. Box 991"),
    ("ADDRESS", "住址：北京市朝阳区建国路88号", "北京市朝阳区建国路88号"),
    ("ADDRESS", "邮编：100022", "100022"),
    ("DATE", "admitted 2020-01-31 with fever", "2020-01-31"),
    ("DATE", "admitted 1/31/20 with fever", "1/31/20"),
    ("DATE", "admitted 31.01.2020.", "31.01.2020"),
    ("DATE", "on January 31, 2020 he", "January 31, 2020"),
    ("DATE", "on 31 Jan 2020 he", "31 Jan 2020"),
    ("DATE", "the 3rd of March she", "3rd of March"),
    ("DATE", "since March 2019", "March 2019"),
    ("DATE", "seen on 5/12 again", "5/12"),
    ("DATE", "born 19671204", "19671204"),
    ("DATE", "于2020年1月31日入院", "2020年1月31日"),
    ("DATE", "1月31日复查", "1月31日"),
    ("AGE", "a 92-year-old woman", "92"),
    ("AGE", "aged 101", "101"),
    ("AGE", "女，95岁", "95"),
    ("PHONE", "call (212) 555-0142 now", "(212) 555-0142"),
    ("PHONE", "212-555-0142", "212-555-0142"),
    ("PHONE", "Tel. 020 7946 0991", "020 7946 0991"),
    ("PHONE", "+49 30 901820", "+49 30 901820"),
    ("PHONE", "手机13812345678", "13812345678"),
    ("PHONE", "电话１３８１２３４５６７８", "13812345678"),
    ("PHONE", "+86 138-1234-5678", "138-1234-5678"),
    ("PHONE", "010-65551234", "010-65551234"),
    ("FAX", "Fax: 212-555-0143", "212-555-0143"),
    ("FAX", "传真：010-65551235", "010-65551235"),
    ("EMAIL", "write to anna.r+x@mail.example.org.", "anna.r+x@mail.example.org"),
    ("SSN", "SSN 078-05-1120", "078-05-1120"),
    ("SSN", "social security number: 078051120", "078051120"),
    ("MRN", "MRN: 48-2291", "48-2291"),
    ("MRN", "medical record no. A12345", "A12345"),
    ("MRN", "住院号：ZY0012345", "ZY0012345"),
    ("MRN", "病历号 884422", "884422"),
    ("PLAN", "Medicare number 1EG4-TE5-MK73", "1EG4-TE5-MK73"),
    ("PLAN", "医保卡号：YB99887766", "YB99887766"),
    ("ACCOUNT", "account no. 99-88-77", "99-88-77"),
    ("ACCOUNT", "银行卡号：6222020200112233445", "6222020200112233445"),
    ("LICENCE", "license number D1234567", "D1234567"),
    ("LICENCE", "passport: X998877", "X998877"),
    ("LICENCE", "护照E12345678", "E12345678"),
    ("VEHICLE", "plate ABC 1234", "ABC 1234"),
    ("VEHICLE", "VIN 1HGCM82633A004352", "1HGCM82633A004352"),
    ("VEHICLE", "车辆京A12345撞", "京A12345"),
    ("DEVICE", "pacemaker serial no. SN-99812", "SN-99812"),
    ("DEVICE", "(01)00844588003288(17)141120", "00844588003288"),
    ("DEVICE", "设备编号：XK20099", "XK20099"),
    ("URL", "see https://hospital.example.org/p?id=7 .", "hospital.example.org/p?id=7"),
    ("URL", "www.example.org/anna", "www.example.org/anna"),
    ("IP", "from 192.168.17.4 at", "192.168.17.4"),
    ("IP", "from 2001:db8:85a3:0:0:8a2e:370:7334 at", "2001:db8:85a3"),
    ("BIOMETRIC", "fingerprint id 7733-A", "7733-A"),
    ("PHOTO", "see anna_face.jpg for the wound", "anna_face.jpg"),
    ("ID", "specimen no. 20-1187", "20-1187"),
    ("ID", "reference 99120045 given", "99120045"),
    ("ID", "标本编号：B20887", "B20887"),
    ("CN-ID", "身份证号：11010519491231002X", "11010519491231002X"),
    ("CN-ID", "身份证11010519491231002X末", "11010519491231002X"),
    ("CN-ID", "old number 110105491231002 here", "110105491231002"),
]
HARMLESS = [
    "BP 120/80 mmHg, HR 72, SpO2 98% on room air, T 36.6 C, ratio 1/2.",
    "WBC 12.5 x10^9/L, platelets 250000, Hb 13.5 g/dL, glucose 5.6 mmol/L.",
    "A 45-year-old woman with type 2 diabetes for 10 years, 2/6 systolic murmur.",
    "Give metoprolol 25 mg twice daily for 14 days; order 500 mg aspirin.",
    "Patient denies chest pain; no medical record of allergies; hospital course 12 days.",
    "white cell count 12 000 and cell 4 500 seen; the case was discussed, visit in 6 weeks",
    "患者高血压10年，2型糖尿病，血压160/95mmHg，血糖7.8mmol/L，45岁。",
    "头晕三天，服用阿司匹林100mg，每日1次，无发热。",
]


around = st.text(alphabet=st.characters(codec="utf-8"), max_size=50)


class TestFreeText:
    @pytest.mark.parametrize(("kind", "content", "secret"), EXAMPLES)
    def test_each_class_is_marked(self, kind, content, secret):
        clean, found = scrub(content)
        assert secret not in clean
        assert f"[{kind}]" in clean
        assert found[kind] >= 1

    @pytest.mark.parametrize("content", HARMLESS)
    def test_measurements_stay(self, content):
        assert scrub(content) == (content, {})

    @pytest.mark.parametrize(("kind", "content", "secret"), EXAMPLES)
    @pytest.mark.parametrize("around", [("", ""), ("无发热。", "。复查"), ("no fever;\n", ";\nreview")])
    def test_an_identifier_is_found_wherever_it_stands(self, kind, content, secret, around):
        assert secret not in scrub(around[0] + content + around[1])[0]

    @given(around, around, st.sampled_from(["13812345678", "11010519491231002X", "anna@example.org", "2020-01-31"]))
    def test_a_telling_form_is_found_in_any_text(self, before, after, secret):
        clean, found = scrub(f"{before} {secret} {after}")
        assert secret not in clean
        assert found.total() >= 1

    @pytest.mark.parametrize("piece", ["a", "1", "1 ", "-1", "a.", "A ", "张", "市", "1.", "(1", "0:", "Mr ", "路1号"])
    def test_no_text_takes_long(self, piece):
        import time

        begin = time.monotonic()
        scrub(piece * (20_000 // len(piece)))
        assert time.monotonic() - begin < 5


def checksum(digits):
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return "10X98765432"[sum(weight * int(digit) for weight, digit in zip(weights, digits, strict=True)) % 11]


births = st.dates(date(1900, 1, 1), date(2026, 1, 1))
regions = st.integers(110000, 659999)
serials = st.integers(0, 999)


class TestChineseIdentityNumbers:
    @given(regions, births, serials)
    def test_the_checksum_is_that_of_the_standard(self, region, birth, serial):
        """The oracle are the weights that the standard prints."""
        digits = f"{region}{birth:%Y%m%d}{serial:03}"
        right = checksum(digits)
        assert is_identity_number(digits + right)
        assert is_identity_number(digits + right.lower())
        for last in "0123456789X":
            assert is_identity_number(digits + last) == (last == right)
        assert scrub(f"号{digits}{right}，")[0] == "号[CN-ID]，"

    @given(regions, births, serials, st.integers(0, 16), st.integers(1, 9))
    def test_any_one_digit_changed_is_noticed_but_never_let_through(self, region, birth, serial, place, change):
        digits = f"{region}{birth:%Y%m%d}{serial:03}"
        number = digits + checksum(digits)
        other = number[:place] + str((int(number[place]) + change) % 10) + number[place + 1 :]
        assert not is_identity_number(other)
        assert other[:17] not in scrub(f"no {other} end")[0]

    @given(regions, st.dates(date(1900, 1, 1), date(1999, 12, 31)), serials)
    def test_old_numbers_have_a_real_date(self, region, birth, serial):
        assert is_old_identity_number(f"{region}{birth:%y%m%d}{serial:03}")
        assert not is_old_identity_number(f"{region}{birth:%y}1331{serial:03}")


class TestColumns:
    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("PatientName", "NAME"),
            ("last_name", "NAME"),
            ("患者姓名", "NAME"),
            ("DOB", "DATE"),
            ("出生日期", "DATE"),
            ("admission-date", "DATE"),
            ("MRN", "MRN"),
            ("patient_id", "MRN"),
            ("住院号", "MRN"),
            ("身份证号码", "CN-ID"),
            ("Telephone", "PHONE"),
            ("联系电话", "PHONE"),
            ("E-Mail", "EMAIL"),
            ("home address", "ADDRESS"),
            ("ZIP", "ADDRESS"),
            ("SSN", "SSN"),
            ("医保卡号", "PLAN"),
            ("fax", "FAX"),
            ("车牌", "VEHICLE"),
            ("ip_address", "IP"),
            ("photo", "PHOTO"),
            *((column.name, "") for column in HEART.columns),
            ("血压", ""),
            ("hospital", ""),
            ("ward", ""),
            ("device used", ""),
        ],
    )
    def test_names_of_columns(self, name, kind):
        assert class_of_name(name) == kind

    @pytest.mark.parametrize(
        ("cells", "kind"),
        [
            (["13812345678", "", "13912345678"], "PHONE"),
            (["11010519491231002X"] * 3, "CN-ID"),
            (["2020-01-31 10:20:30", "2020-02-01"], "DATE"),
            (["a@b.org", "c@d.org", "x"], "EMAIL"),
            (["120", "80", "95.5"], ""),
            (["1", "0"], ""),
            ([], ""),
            (["", ""], ""),
            (["fine", "seen on 2020-01-31 by a nurse"], ""),
        ],
    )
    def test_content_of_columns(self, cells, kind):
        assert class_of_cells(cells) == kind


@pytest.fixture
def notes(tmp_path):
    def import_notes(text, **table):
        path = tmp_path / "notes.csv"
        path.write_text(text)
        return read(path, NOTES, mapping_of(table, NOTES))

    return import_notes


class TestImport:
    def test_texts_are_masked_and_counted_by_class_and_column(self, notes):
        imported = notes(
            'nr,text,label,name\n1,"Dr. Rivermouth, 2020-01-31",0,Anna\n2,on 2020-02-01 and 2020-02-02,1,Anna\n',
            patient="nr",
        )
        clean = deidentify.deidentify(imported, NOTES, KEY)
        assert clean.records["text"].tolist() == ["Dr. [NAME], [DATE]", "on [DATE] and [DATE]"]
        assert dict(clean.found.masked) == {("NAME", "text"): 1, ("DATE", "text"): 3}
        assert dict(clean.found.left_out) == {("NAME", "name"): 2}
        said = clean.found.text()
        assert "masked in texts: DATE in column 'text': 3" in said
        assert "patient numbers replaced by a keyed hash: 2" in said
        assert not any(word in said + repr(clean) for word in ("Rivermouth", "2020", "Anna"))
        # What was imported is not changed.
        assert "Rivermouth" in imported.records["text"][0]

    def test_the_hash_is_hmac_of_the_number_and_needs_the_key(self, notes):
        imported = notes("nr,text,label\n 007 ,a,0\n007,b,1\n8,c,1\n", patient="nr")
        ours = deidentify.deidentify(imported, NOTES, KEY)
        assert ours.patients[0] == ours.patients[1] != ours.patients[2]
        assert ours.patients[0] == hmac.new(KEY, b"fedward patient\x00007", hashlib.sha256).digest()
        theirs = deidentify.deidentify(imported, NOTES, OTHER)
        assert not set(ours.patients) & set(theirs.patients)

    def test_ages_from_90_on_are_one(self, tmp_path):
        path = tmp_path / "heart.csv"
        names = [column.name for column in HEART.columns]
        cells = {"sex": "1", "cp": "1", "fbs": "0", "restecg": "0", "exang": "0", "slope": "1", "thal": "3"}
        usual = {"trestbps": "120", "chol": "200", "thalach": "150", "oldpeak": "1", "ca": "0"} | cells
        rows = [
            ",".join((usual | {"age": age})[name] for name in names) + ",0" for age in ("89", "90", "91", "99.5", "")
        ]
        path.write_text(",".join([*names, "num"]) + "\n" + "\n".join(rows))
        clean = deidentify.deidentify(read(path, HEART, mapping_of({}, HEART)), HEART, KEY)
        np.testing.assert_array_equal(clean.records["age"], [89, 90, 90, 90, np.nan])
        assert dict(clean.found.capped) == {"age": 2}
        assert clean.records["thalach"].tolist() == [150.0] * 5

    @given(
        st.lists(st.tuples(st.integers(0, 3), st.integers(600_000, 740_000)), min_size=1, max_size=20),
        st.integers(-5000, 5000),
    )
    def test_intervals_say_nothing_of_the_calendar(self, visits, shift):
        patients = np.array([str(patient) for patient, _ in visits], object)
        days = np.array([[float(day)] for _, day in visits])
        intervals = days_from_first(days, patients)
        np.testing.assert_array_equal(days_from_first(days + shift, patients), intervals)
        for patient in set(patients):
            assert intervals[patients == patient].min() == 0


class TestSplit:
    def clean(self, patients, notes):
        rows = "".join(f"{patient},text {row},0\n" for row, patient in enumerate(patients))
        return deidentify.deidentify(notes("nr,text,label\n" + rows, patient="nr"), NOTES, KEY)

    def parts_of(self, parts):
        """Return the part of every text."""
        return {text: part for part, records in parts.records.items() for text in records["text"]}

    def test_no_patient_stands_on_two_sides_and_no_row_is_lost(self, notes):
        draw = np.random.default_rng(1)
        patients = draw.integers(0, 60, 300).tolist()
        parts = split.split(self.clean(patients, notes), NOTES, KEY, validation=0.2, test=0.3)
        side = self.parts_of(parts)
        assert len(side) == 300
        for patient in set(patients):
            assert len({side[f"text {row}"] for row, other in enumerate(patients) if other == patient}) == 1
        counts = parts.counts()
        assert sum(count["patients"] for count in counts.values()) == len(set(patients))
        assert [rows_of(parts.records[part]) for part in split.PARTS] == [counts[part]["rows"] for part in split.PARTS]

    def test_rows_that_are_added_move_nobody(self, notes):
        draw = np.random.default_rng(2)
        early = draw.integers(0, 50, 100).tolist()
        before = self.parts_of(split.split(self.clean(early, notes), NOTES, KEY, 0.1, 0.2))
        after = self.parts_of(
            split.split(self.clean(early + draw.integers(0, 90, 100).tolist(), notes), NOTES, KEY, 0.1, 0.2)
        )
        assert {text: after[text] for text in before} == before

    def test_shares_are_met_on_average_and_follow_from_the_key(self, notes):
        clean = self.clean(range(2000), notes)
        parts = split.split(clean, NOTES, KEY, validation=0.1, test=0.2)
        assert parts.counts()["test"]["rows"] == pytest.approx(400, abs=80)
        assert parts.counts()["validation"]["rows"] == pytest.approx(200, abs=60)
        assert self.parts_of(parts) != self.parts_of(split.split(clean, NOTES, OTHER, validation=0.1, test=0.2))

    def test_a_text_that_comes_twice_is_one_whoever_s_it_is(self, notes):
        clean = deidentify.deidentify(notes("nr,text,label\n1,a,0\n2,a,1\n3,b,1\n", patient="nr"), NOTES, KEY)
        parts = split.split(clean, NOTES, KEY, test=0.0)
        assert parts.duplicates == 1
        assert parts.records["train"]["text"].tolist() == ["a", "b"]
        assert parts.records["train"]["label"].tolist() == [0, 1]
        assert parts.patients["train"].tolist() == [0, 1]

    def test_equal_measurements_of_two_patients_are_two_rows(self, tmp_path):
        path = tmp_path / "heart.csv"
        names = [column.name for column in HEART.columns]
        path.write_text(
            ",".join([*names, "num", "nr"]) + "\n" + "".join(",".join(["?"] * 13) + f",0,{nr}\n" for nr in (1, 2, 2))
        )
        for table, duplicates in (({"patient": "nr"}, 1), ({}, 2)):
            clean = deidentify.deidentify(read(path, HEART, mapping_of(table, HEART)), HEART, KEY)
            assert split.split(clean, HEART, KEY, test=0.0).duplicates == duplicates

    @pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (-0.1, 0.2), (0.0, 1.0)])
    def test_shares_must_leave_something_to_train_on(self, notes, validation, test):
        with pytest.raises(UsageError, match="shares of validation and test"):
            split.split(self.clean([1], notes), NOTES, KEY, validation, test)

    def test_no_patient_to_train_on_is_refused(self, notes):
        with pytest.raises(DataError, match="no patient is left for training"):
            split.split(self.clean([1], notes), NOTES, KEY, test=0.999999)

    def test_the_parts_make_a_hospital(self, notes):
        parts = split.split(self.clean(range(20), notes), NOTES, KEY)
        hospital = parts.hospital("east")
        assert hospital.name == "east"
        assert hospital.train is parts.records["train"]
        assert hospital.test is parts.records["test"]
