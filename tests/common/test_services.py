"""Units and container files: every line is one that systemd knows, whatever the folder is called, and no secret stands in them."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from common import services
from common.errors import DataError, UsageError
from common.services import Service

KNOWN = {
    "Unit": {"Description", "Wants", "After", "PartOf"},
    "Service": {
        "Type",
        "ExecStart",
        "User",
        "Group",
        "Restart",
        "RestartPreventExitStatus",
        "RestartSec",
        "KillMode",
        "TimeoutStopSec",
        "LoadCredential",
        "MemoryMax",
        "ReadWritePaths",
        "InaccessiblePaths",
        "ProtectHome",
        "RestrictAddressFamilies",
        "IPAddressDeny",
        "IPAddressAllow",
        "CapabilityBoundingSet",
        "AmbientCapabilities",
        "NoNewPrivileges",
        "ProtectSystem",
        "PrivateTmp",
        "PrivateDevices",
        "ProtectProc",
        "ProtectClock",
        "ProtectHostname",
        "ProtectKernelLogs",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "ProtectControlGroups",
        "RestrictNamespaces",
        "RestrictRealtime",
        "RestrictSUIDSGID",
        "LockPersonality",
        "RemoveIPC",
        "KeyringMode",
        "SystemCallArchitectures",
        "SystemCallFilter",
        "SystemCallErrorNumber",
        "UMask",
        "LimitNOFILE",
        "LimitCORE",
    },
    "Install": {"WantedBy"},
}
FOLDERS = [
    "/srv/site",
    "/srv/St Mary's site",
    '/srv/a "b"',
    "/srv/100%",
    "/srv/$HOME",
    "/srv/back\\slash",
    "/home/a/圣玛丽",
]
SYSTEMD = Path("/usr/lib/systemd/systemd")


def made(folder="/srv/site", **words):
    path = Path(folder)
    return Service(
        "fedward-hospital", "Fedward, hospital St Mary", ["hospital", "start", folder], "fedward", path, **words
    )


FULL = {
    "group": "fedward-stub",
    "memory_mb": 5120,
    "addresses": ["localhost", "192.0.2.1"],
    "low_port": True,
    "credential": "/etc/fedward/passphrase",
    "hidden": [Path("/srv/a b")],
    "after": "other.service",
}


def parsed(text):
    """Return the settings of each section; raise for a line that is none."""
    found, section = {}, None
    for line in text.splitlines():
        if re.fullmatch(r"\[\w+\]", line):
            section = found.setdefault(line[1:-1], [])
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, line
            section.append((key, value))
    return found


@pytest.mark.parametrize("words", [{}, FULL], ids=["least", "all"])
@pytest.mark.parametrize("folder", FOLDERS)
class TestUnit:
    def test_every_line_is_a_known_setting(self, folder, words):
        found = parsed(services.unit(made(folder, **words)))
        assert found.keys() == KNOWN.keys()
        for section, settings in found.items():
            assert {key for key, _ in settings} <= KNOWN[section]

    def test_the_folder_is_one_word_and_nothing_in_it_is_replaced(self, folder, words):
        found = dict(parsed(services.unit(made(folder, **words)))["Service"])
        plain = {name: found[name].replace("%%", "%") for name in ("ExecStart", "ReadWritePaths")}
        # Within double quotes, systemd and a shell read backslashes before these alike.
        assert shlex.split(plain["ExecStart"].replace("$$", "$"))[-3:] == ["hospital", "start", folder]
        assert shlex.split(plain["ReadWritePaths"]) == [folder]

    @pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not on this machine")
    def test_systemd_finds_nothing_wrong(self, folder, words, tmp_path):
        path = tmp_path / "fedward-hospital.service"
        path.write_text(services.unit(made(folder, **words)), encoding="utf-8")
        done = subprocess.run(["systemd-analyze", "verify", "--man=no", path], capture_output=True, text=True)
        said = [line for line in done.stderr.splitlines() if path.name in line or "fedward" in line]
        assert [line for line in said if "other.service" not in line] == []


@pytest.mark.skipif(not SYSTEMD.exists(), reason="systemd is not on this machine")
def test_the_settings_that_this_test_knows_are_systemds_own():
    dumped = subprocess.run([SYSTEMD, "--dump-configuration-items"], capture_output=True, text=True)
    if dumped.returncode:
        pytest.skip("this systemd does not list its settings")
    names, section = {}, ""
    for line in dumped.stdout.splitlines():
        if re.fullmatch(r"\[\w+\]", line):
            section = line[1:-1]
        else:
            names.setdefault(section, set()).add(line.partition("=")[0])
    for section, keys in KNOWN.items():
        assert keys - names.get(section, set()) <= ({"WantedBy"} if section == "Install" else set())


class TestContent:
    def test_the_least_rights(self):
        settings = dict(parsed(services.unit(made(memory_mb=5120)))["Service"])
        assert settings["NoNewPrivileges"] == settings["PrivateTmp"] == settings["ProtectHome"] == "yes"
        assert settings["ProtectSystem"] == "strict"
        assert settings["CapabilityBoundingSet"] == settings["AmbientCapabilities"] == ""
        assert settings["MemoryMax"] == "5120M"
        assert settings["LimitCORE"] == "0"

    def test_a_passphrase_is_a_credential_and_never_in_the_environment(self):
        text = services.unit(made(**FULL))
        assert "LoadCredential=passphrase:/etc/fedward/passphrase" in text
        assert "Environment=" not in text
        assert "FEDWARD_PASSPHRASE" not in text
        assert "LoadCredential" not in services.unit(made())

    @pytest.mark.parametrize(
        ("address", "reached"),
        [
            ("192.0.2.1:8443", ["localhost", "192.0.2.1"]),
            ("[2001:db8::1]:8443", ["localhost", "2001:db8::1"]),
            ("fedward.example.org:8443", None),
            ("", None),
        ],
    )
    def test_only_the_coordinator_is_reached_where_its_number_is_known(self, address, reached):
        assert services.addresses_of(address) == reached
        assert ("\nIPAddressDeny=any\n" in services.unit(made(addresses=reached))) == (reached is not None)

    @pytest.mark.parametrize("folder", ["/srv/a\nExecStart=/bin/sh", "/srv/\x1b[2J", "/srv/a\u2028b"])
    def test_a_folder_that_would_break_its_line_is_refused(self, folder):
        with pytest.raises(UsageError, match="rename the folder"):
            services.unit(made(folder))

    def test_a_container_file_names_no_registry_and_runs_as_nobody_in_particular(self):
        text = services.containerfile("hospital", "/site", ["start", "/site"], "--volume site:/site")
        instructions = [line for line in text.splitlines() if line and not line.startswith(("#", " "))]
        assert {line.split()[0] for line in instructions} <= {
            "ARG",
            "FROM",
            "COPY",
            "RUN",
            "ENV",
            "USER",
            "VOLUME",
            "ENTRYPOINT",
            "CMD",
        }
        assert [line for line in instructions if line.startswith("FROM")] == ["FROM ${BASE} AS build", "FROM ${BASE}"]
        assert instructions[0] == "ARG BASE"
        assert "USER 10001:10001" in instructions
        assert instructions[-1] == 'CMD ["start", "/site"]'
        assert not re.search(r"https?://|docker\.io|quay\.io|ghcr\.io", text)

    def test_they_are_written_or_returned(self, tmp_path):
        files = {"a.service": "one\n", "Containerfile": "two\n"}
        assert "# ---- a.service\none\n" in services.told(files, None)
        assert "a.service, Containerfile" in services.told(files, tmp_path / "new")
        assert (tmp_path / "new" / "Containerfile").read_text() == "two\n"
        (tmp_path / "file").write_text("")
        with pytest.raises(DataError, match="choose another folder"):
            services.told(files, tmp_path / "file")
