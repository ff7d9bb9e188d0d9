"""Identifiers in words: column names and free text, in English and Chinese, by the 18 classes of the Safe Harbor rule.

The classes are those of 45 CFR 164.514(b)(2)(i): names; places smaller than a state; dates, and ages over 89; telephone and fax numbers; e-mail; social
security, medical record, health plan, account and licence numbers; vehicles; devices; web and network addresses; biometrics; photographs; any
other unique number. Chinese identity numbers follow GB 11643-1999 (18 digits, the last a checksum) and its predecessor of 15.

What rules can't find: a name without title or label, a place without street or postcode. A person has to read a sample before texts are used.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date

_SURNAMES = "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹彭曾肖田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈姚卢姜崔钟谭陆汪范金石廖贾夏韦付方白邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔汤"
_HAN = "\u4e00-\u9fff"
_WORD = r"[A-Z][\w'’-]+"
# Three digits or more, and no dose or measurement.
_CODE = (
    r"(?P<it>(?!\d+(?:\.\d+)?\s?(?i:mg|mcg|ug|kg|g|ml|dl|l|units?|iu|mmhg|bpm|years?|cm|mm)\b)"
    r"(?=(?:[A-Za-z./-]{0,6}\d){3})[A-Za-z0-9](?:[A-Za-z0-9/-]|\.(?=[A-Za-z0-9]))*)"
)
_NUMBER = r"(?:\s*(?:number|no\b\.?|nr\b\.?|id\b|code|#|号码|编号|号))"
_COLON = r"\s*(?:is\s|为|是|[:：#=])"
_MONTH = r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)"
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_DIALLED = r"(?P<it>\+?\(?\d[\d \t().-]{4,18}\d)"
_PLATE = r"(?P<it>(?=[A-Z0-9 -]*\d)[A-Z0-9]{1,4}[ -]?[A-Z0-9]{2,5}(?![A-Za-z0-9]))"


def _labelled(words: str, value: str = _CODE, *, says: bool = False) -> str:
    """Return the pattern of a value behind one of the words that announce it; with ``says``, a 'number' or a colon must stand between."""
    between = rf"(?:{_NUMBER}+(?:{_COLON})?|{_COLON})" if says else rf"\.?{_NUMBER}*(?:{_COLON})?"
    return rf"(?<![A-Za-z])(?i:{words})(?i:{between})\s*{value}"


# In this order, since a pattern finds only what those before it left: the more telling a form is, the earlier.
_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("EMAIL", r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]++@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+"),
        ("URL", r"(?i:\b(?:https?|ftp)://|\bwww\.)[^\s<>\"'，。；）)]+"),
        ("IP", r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.]*\d)"),
        ("IP", r"(?<![\w:])(?:[0-9A-Fa-f]{1,4}:){3,7}(?::?[0-9A-Fa-f]{1,4}){1,5}(?![\w:])"),
        ("PHOTO", r"(?i)(?<![\w.-])[\w.-]{1,100}\.(?:jpe?g|png|gif|bmp|tiff?|heic|dcm)\b"),
        ("FAX", _labelled("fax|facsimile|传真", _DIALLED)),
        ("SSN", _labelled(r"ssn|social security", r"(?P<it>\d{3}[- ]?\d{2}[- ]?\d{4}(?!\d))")),
        ("SSN", r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])"),
        ("MRN", _labelled(r"mrn|medical record|病历号|病案号|住院号|门诊号|就诊卡号|登记号")),
        ("MRN", _labelled(r"hospital|chart|patient|病历|病案|住院|门诊|患者|就诊卡|登记", says=True)),
        (
            "PLAN",
            _labelled(
                r"health plan|insurance|beneficiary|member|policy|medicare|medicaid|医保卡?|社保卡?|保险单?", says=True
            ),
        ),
        ("ACCOUNT", _labelled(r"account|acct|iban|bank card|银行卡|银行账|账|帐")),
        ("LICENCE", _labelled(r"licen[cs]e|certificate|passport|npi|dea|护照|执照|驾驶证|军官证|证书|许可证")),
        ("LICENCE", r"(?<![A-Za-z0-9])[EGP]\d{8}(?![A-Za-z0-9])"),
        ("VEHICLE", _labelled(r"licen[cs]e plate|plate|vin|车牌", _PLATE)),
        ("VEHICLE", _labelled(r"plate|vehicle|vin|registration|车牌", says=True)),
        (
            "VEHICLE",
            r"[京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼][A-Z][·•\s]?[A-Z0-9]{5,6}(?![A-Za-z0-9])",
        ),
        ("VEHICLE", r"(?<![A-Za-z0-9])(?=[A-Z]*\d)(?=\d*[A-Z])[A-HJ-NPR-Z0-9]{11}\d{6}(?![A-Za-z0-9])"),
        ("DEVICE", _labelled(r"serial|s/n|device|imei|udi|pacemaker|implant|设备|序列|器械", says=True)),
        ("DEVICE", r"\(01\)\d{14}(?:\(\d{2}\)[A-Za-z0-9]{1,20})*"),
        (
            "BIOMETRIC",
            _labelled(r"finger ?print|voice ?print|retina(?:l scan)?|iris(?: scan)?|biometric|指纹|声纹|虹膜"),
        ),
        ("DATE", r"(?<!\d)(?:1[89]|20)\d{2}\s?[-/.年]\s?\d{1,2}(?:\s?[-/.月]\s?\d{1,2}(?!\d)日?号?|月)"),
        ("DATE", r"(?<![\d./-])\d{1,2}([./-])\d{1,2}\1(?:(?:1[89]|20)\d{2}|\d{2})(?![\d/-])"),
        ("DATE", rf"(?i)(?<![A-Za-z0-9]){_DAY}(?:\s+of)?[\s-]+{_MONTH}\b\.?(?:,?[\s-]+\d{{2,4}}(?!\d))?"),
        ("DATE", rf"(?i)(?<![A-Za-z]){_MONTH}\b\.?\s+{_DAY}(?![\d.%])(?:,?\s+(?:1[89]|20)\d{{2}}(?!\d))?"),
        ("DATE", rf"(?i)(?<![A-Za-z]){_MONTH}\b\.?,?\s+(?:of\s+)?(?:1[89]|20)\d{{2}}(?!\d)"),
        ("DATE", r"(?<!\d)\d{1,2}月\d{1,2}[日号]"),
        ("DATE", r"(?i)\b(?:on|since|until|dated?)\s*:?\s+(?P<it>\d{1,2}/\d{1,2})(?![\d/])"),
        ("DATE", r"(?<!\d)(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?!\d)"),
        ("AGE", r"(?i)(?<!\d)(?:9\d|1[0-2]\d)(?=[\s-]*(?:years?|yrs?|y/?o\b|yo\b))"),
        ("AGE", r"(?i)\b(?:aged?|age of)\s*:?\s*(?P<it>9\d|1[0-2]\d)(?!\d)"),
        ("AGE", r"(?<!\d)(?:9\d|1[0-2]\d)(?=\s?周?岁)"),
        ("PHONE", _labelled(r"tel(?:ephone)?|phone|pager|电话|手机|联系方式", _DIALLED)),
        ("PHONE", _labelled(r"mobile|cell|call", _DIALLED, says=True)),
        ("PHONE", r"(?<!\d)(?:\+?86[-\s]?)?1[3-9]\d[-\s]?\d{4}[-\s]?\d{4}(?!\d)"),
        ("PHONE", r"(?<!\d)(?:\(0\d{2,3}\)|0\d{2,3})[-\s]?[2-9]\d{6,7}(?:[-转]\d{1,6})?(?!\d)"),
        ("PHONE", r"(?<!\d)[48]00-?\d{3}-?\d{4}(?!\d)"),
        ("PHONE", r"(?<!\d)(?:\+?1[-.\s]?)?(?:\(\d{3}\)\s?|\d{3}[-.\s])\d{3}[-.\s]\d{4}(?!\d)"),
        ("PHONE", r"\+(?=(?:[ ()-]{0,2}\d){8})\d{1,3}(?:[ -]?\(?\d{1,5}\)?){2,5}"),
        (
            "ADDRESS",
            rf"(?<![\w:])\d{{1,6}}\s+(?:[NSEW]\.?\s+)?(?:{_WORD}\s+){{1,4}}(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Place|Pl|Way|Square|Sq|Terrace|Highway|Hwy)\b\.?(?:,?\s+(?:Apt|Suite|Unit)\.?\s*\w+)?",
        ),
        ("ADDRESS", r"(?i)\bp\.?\s?o\.?\s+box\s+\d+"),
        ("ADDRESS", r"\b[A-Z]{2}\s+\d{5}(?:-\d{4})?(?!\d)"),
        ("ADDRESS", r"(?<![\d-])\d{5}-\d{4}(?![\d-])"),
        (
            "ADDRESS",
            _labelled(
                r"zip(?: code)?|post(?:al )?code|邮编|邮政编码", r"(?P<it>[A-Za-z0-9]{2,5}[ -]?\d[A-Za-z0-9]{1,4})"
            ),
        ),
        ("ADDRESS", rf"(?:住址|地址|家住|现住|户籍地?|籍贯|出生地)\s*[:：]?\s*(?P<it>[{_HAN}A-Za-z0-9#-]{{2,40}})"),
        (
            "ADDRESS",
            rf"[{_HAN}]{{2,8}}(?:省|自治区|市|县|区)[{_HAN}A-Za-z0-9]{{0,20}}?(?:路|街|道|巷|弄|村|镇|乡|小区|号楼)[{_HAN}]{{0,6}}(?:\d+[号弄室栋幢单元楼层-]*)*",
        ),
        (
            "NAME",
            rf"(?<![A-Za-z])(?:M(?:r|rs|s|iss|x|ister)|MR|MRS|MS|MISS|Dr|DR|Doctor|Prof|Professor|Sir|Madam|Nurse|Rev)\b\.?\s+(?P<it>{_WORD}(?:[ \t]+(?:[A-Z]\.[ \t]+)?{_WORD}){{0,2}})",
        ),
        (
            "NAME",
            rf"(?<![A-Za-z])(?i:patient(?:'s)? name|patient|name|surname|attending|physician|surgeon|signed(?: by)?|dictated by|contact|next of kin|wife|husband|mother|father|son|daughter)\s*[:：]\s*(?P<it>{_WORD}(?:,?[ \t]+(?:[A-Z]\.[ \t]+)?{_WORD}){{0,3}})",
        ),
        (
            "NAME",
            rf"(?:姓名|患者|病人|联系人|家属|监护人|医师|医生|签名|签字)\s*[:：]\s*(?P<it>[{_HAN}]{{2,4}}(?:·[{_HAN}]{{1,6}})?)",
        ),
        (
            "NAME",
            rf"(?P<it>[{_SURNAMES}][{_HAN}]{{0,2}}?)(?=(?:副?主任|主治|住院)?(?:医生|大夫|医师|护士|护师)|主任|教授|先生|女士|小姐|阿姨)",
        ),
        ("NAME", rf"(?:患者|病人|患儿)\s?(?P<it>[{_SURNAMES}][{_HAN}]{{1,2}})(?=[,，、\s]{{0,2}}[男女])"),
        (
            "ID",
            _labelled(
                r"case|study|sample|specimen|accession|order|visit|encounter|barcode|病例|标本|样本|条码|检查|流水|\bid"
            ),
        ),
        ("ID", r"(?<![\d.])\d{8,}(?![\d.]*\d)"),
    )
)
_CN_18 = re.compile(r"(?<![0-9A-Za-z])\d{17}[0-9Xx](?![0-9A-Za-z])")
_CN_15 = re.compile(r"(?<![0-9A-Za-z])\d{15}(?![0-9A-Za-z])")
_WIDE = {0xFEE0 + code: code for code in range(0x21, 0x7F) if chr(code).isalnum() or chr(code) in "@.-+/_"}
"""Full-width letters, digits and the signs that stand in addresses and dates, by code point: what they are in ASCII."""

# Class by the words in a column's name. A more telling class first: 'date of birth' of the contact person is still a date.
_NAMES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("CN-ID", r"身份证|证件号|id card|identity|national id|citizen"),
        ("EMAIL", r"e ?mail|邮箱|电子邮件"),
        ("FAX", r"\bfax|传真"),
        ("PHONE", r"phone|mobile|\btel\b|\bcell\b|pager|电话|手机|联系方式"),
        ("SSN", r"\bssn\b|social security"),
        (
            "MRN",
            r"\bmrn\b|medical record|\b(patient|pat|hospital|chart|case|subject|person) ?(id|no|nr|num|number|code)\b|\bpid\b|病历号|病案号|住院号|门诊号|就诊号|就诊卡|患者编号|病人编号|患者id|登记号",
        ),
        ("PLAN", r"insurance|beneficiary|medicare|medicaid|health plan|policy (no|number)|医保|社保|保险"),
        ("ACCOUNT", r"account|\biban\b|\bacct\b|银行|账号|账户|帐号"),
        ("LICENCE", r"licen[cs]e|certificate|passport|护照|执照|驾驶证|军官证"),
        ("VEHICLE", r"\bplate\b|\bvin\b|vehicle|车牌|车架"),
        ("DEVICE", r"\bserial\b|\bdevice (id|no|number)\b|\bimei\b|\budi\b|序列号|设备号|设备编号"),
        ("URL", r"\burl\b|website|web site|homepage|网址|网站"),
        ("IP", r"\bip\b|\bip ?(address|addr)\b"),
        ("BIOMETRIC", r"finger ?print|voice ?print|biometric|指纹|声纹|虹膜"),
        ("PHOTO", r"\bphoto|\bface\b|portrait|照片|头像"),
        (
            "DATE",
            r"\bdate\b|\bdob\b|birth ?(day|date)|\bbirth\b|\btime ?stamp\b|admitted|discharged|日期|出生年|生日|时间",
        ),
        (
            "ADDRESS",
            r"address|street|\bzip\b|postal|post ?code|\bcity\b|\bcounty\b|\btown\b|住址|地址|邮编|户籍|籍贯|出生地|城市|街道",
        ),
        (
            "NAME",
            r"\bname\b|(first|last|full|sur|fore|maiden|family|given|patient)name|next of kin|姓名|名字|联系人|家属|监护人|医师|医生",
        ),
    )
)
TELLING = 0.5
"""Share of a column's filled cells that, being identifiers of one class, make the column one."""


def scrub(text: str) -> tuple[str, Counter[str]]:
    """Put a mark such as ``[DATE]`` in the place of every identifier found; return the text and how many of each class there were.

    Full-width digits and letters become ASCII; nothing else changes.

    >>> scrub("Seen by Dr. Miller on 2020-01-31, tel. 020 8765 4321.")[0]
    'Seen by Dr. [NAME] on [DATE], tel. [PHONE].'
    """
    found: Counter[str] = Counter()
    text = text.translate(_WIDE)
    # Identity numbers by their checksum, before any pattern takes them for another long number.
    for pattern, valid in ((_CN_18, is_identity_number), (_CN_15, is_old_identity_number)):
        text = _replace(text, "CN-ID", pattern, found, valid)
    for name, pattern in _PATTERNS:
        text = _replace(text, name, pattern, found)
    return text, found


def is_identity_number(number: str) -> bool:
    """Return whether 18 characters are a Chinese identity number: a real date of birth and a right checksum (GB 11643-1999, ISO 7064 MOD 11-2).

    >>> is_identity_number("11010519491231002X"), is_identity_number("110105194912310021")
    (True, False)
    """
    if not re.fullmatch(r"[1-9]\d{16}[\dXx]", number, re.ASCII):
        return False
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(number[:17]))
    return number[17].upper() == "10X98765432"[total % 11] and _is_day(number[6:14])


def is_old_identity_number(number: str) -> bool:
    """Return whether 15 digits are a Chinese identity number of the old form: a region, then a real date of birth in the years 1900 to 1999."""
    return bool(re.fullmatch(r"[1-9]\d{14}", number, re.ASCII)) and _is_day("19" + number[6:12])


def class_of_name(name: str) -> str:
    """Return the class of identifier that a column's name announces, "" for none.

    >>> class_of_name("Date_of_Birth"), class_of_name("PatientName"), class_of_name("患者姓名"), class_of_name("chol")
    ('DATE', 'NAME', 'NAME', '')
    """
    # PatientName, patient_name and PATIENT-NAME are one name.
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    plain = " ".join(re.split(r"[\W_]+", words.casefold())).strip()
    return next((kind for kind, pattern in _NAMES if pattern.search(plain)), "")


def class_of_cells(cells: Sequence[str]) -> str:
    """Return the class of identifier that most filled cells wholly are, "" for none. Judged by the first 200 filled."""
    filled = [cell.strip() for cell in cells if cell.strip()][:200]
    counts = Counter(kind for cell in filled if (kind := _class_of_cell(cell)))
    kind, count = counts.most_common(1)[0] if counts else ("", 0)
    return kind if count > TELLING * len(filled) else ""


def _class_of_cell(cell: str) -> str:
    if len(cell) > 200:
        return ""
    clean, found = scrub(cell)
    whole = re.fullmatch(r"\[([A-Z-]+)\](?:[\sT]*\d{1,2}:\d{2}(?::\d{2})?(?:\.\d+)?)?", clean)
    return whole.group(1) if whole and len(found) == 1 else ""


def _replace(
    text: str, name: str, pattern: re.Pattern[str], found: Counter[str], valid: Callable[[str], bool] | None = None
) -> str:
    def mark(match: re.Match[str]) -> str:
        if valid and not valid(match.group()):
            return match.group()
        found[name] += 1
        group = "it" if "it" in pattern.groupindex else 0
        begin, end = match.start(group) - match.start(), match.end(group) - match.start()
        return f"{match.group()[:begin]}[{name}]{match.group()[end:]}"

    return pattern.sub(mark, text)


def _is_day(digits: str) -> bool:
    try:
        date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return False
    return True
