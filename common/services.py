"""What has either side run as a service: hardened units for systemd, and a file for a rootless container."""

import ipaddress
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import DataError, UsageError

HARDENED = (
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "ProtectProc=invisible",
    "ProtectClock=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectControlGroups=yes",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "RemoveIPC=yes",
    "KeyringMode=private",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "SystemCallErrorNumber=EPERM",
    "UMask=0077",
    "LimitNOFILE=65536",
    "# A dump of the memory would be a copy of the patients, and of the keys.",
    "LimitCORE=0",
)
"""Not among them: MemoryDenyWriteExecute, since TensorFlow compiles while it runs."""
HOMES = ("/home", "/root", "/run/user")
IMAGE_USER = "10001:10001"


@dataclass(frozen=True)
class Service:
    """One unit. ``words`` follow ``fedward``; ``writable`` is the folder that it works in, ``addresses`` those it may reach (None for any), ``credential`` the file of a passphrase."""

    name: str
    about: str
    words: Sequence[str]
    user: str
    writable: Path
    group: str = ""
    memory_mb: int | None = None
    addresses: Sequence[str] | None = None
    families: str = "AF_UNIX AF_INET AF_INET6"
    low_port: bool = False
    credential: str = ""
    hidden: Sequence[Path] = ()
    after: str = ""


def unit(service: Service) -> str:
    """Write a unit for systemd."""
    capability = "CAP_NET_BIND_SERVICE" if service.low_port else ""
    command = [*_command(), *service.words]
    paths = [command[0], str(service.writable)]
    at_home = any(Path(path).is_relative_to(home) for path in paths for home in HOMES)
    lines = [
        "[Unit]",
        f"Description={_plain(service.about)}",
        "Wants=network-online.target",
        f"After=network-online.target time-sync.target{f' {service.after}' if service.after else ''}",
        *([f"PartOf={service.after}"] if service.after else []),
        "",
        "[Service]",
        "Type=exec",
        f"ExecStart={' '.join(_quoted(word).replace('$', '$$') for word in command)}",
        f"User={service.user}",
        *([f"Group={service.group}"] if service.group else []),
        "Restart=on-failure",
        "# Used wrongly: it would be again.",
        "RestartPreventExitStatus=2",
        "RestartSec=10",
        "# The programs are stopped in their order by the one that started them.",
        "KillMode=mixed",
        "TimeoutStopSec=60",
        *([f"LoadCredential=passphrase:{service.credential}"] if service.credential else []),
        *([f"MemoryMax={service.memory_mb}M"] if service.memory_mb else []),
        f"ReadWritePaths={_quoted(str(service.writable))}",
        *(f"InaccessiblePaths={_quoted(f'-{path}')}" for path in service.hidden),
        f"ProtectHome={'read-only' if at_home else 'yes'}",
        f"RestrictAddressFamilies={service.families}",
        *_reachable(service.addresses),
        f"CapabilityBoundingSet={capability}",
        f"AmbientCapabilities={capability}",
        *HARDENED,
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return "\n".join(lines) + "\n"


def containerfile(role: str, inside: str, start: Sequence[str], run: str) -> str:
    """Write a file from which an image is built that runs as nobody in particular; ``run`` are the options of its kind."""
    return f"""\
# The wheels, where there is a registry:   pip wheel --wheel-dir wheels fedward
# The image, without one:                  podman build --build-arg BASE=IMAGE --tag fedward-{role} --file Containerfile.{role} .
#   IMAGE is one that you trust, with Python 3.11 or later as python3.
# It runs with all rights dropped, on nothing but its volume; a secret named passphrase opens sealed keys (--secret passphrase):
#   podman run --read-only --tmpfs /tmp --cap-drop all --security-opt no-new-privileges --userns keep-id:uid={IMAGE_USER.replace(":", ",gid=")} {run} fedward-{role}
ARG BASE
FROM ${{BASE}} AS build
COPY wheels /wheels
RUN python3 -m venv /opt/fedward \\
 && /opt/fedward/bin/pip install --no-cache-dir --no-index --find-links /wheels fedward \\
 && /opt/fedward/bin/pip uninstall --yes pip setuptools

FROM ${{BASE}}
RUN python3 -m pip uninstall --yes pip setuptools wheel || true
COPY --from=build /opt/fedward /opt/fedward
ENV HOME=/tmp CREDENTIALS_DIRECTORY=/run/secrets
USER {IMAGE_USER}
VOLUME ["{inside}"]
ENTRYPOINT ["/opt/fedward/bin/fedward", "{role}"]
CMD {json.dumps(list(start))}
"""


def addresses_of(address: str) -> list[str] | None:
    """Return what of the network is needed to reach ``host:port``; None where the host is a name, whose numbers are not known here."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ["localhost", str(ipaddress.ip_address(host))]
    except ValueError:
        return None


def told(files: Mapping[str, str], folder: Path | None) -> str:
    """Write the files into a folder and say where, or return them all.

    Raises
    ------
    DataError
        When they cannot be written.
    """
    if folder is None:
        return "\n".join(f"# ---- {name}\n{text}" for name, text in files.items())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from None
    return f"Written into {folder}: {', '.join(files)}."


def _command() -> list[str]:
    beside = Path(sys.executable).with_name("fedward")
    return [str(beside)] if beside.exists() else [sys.executable, "-P", "-m", "fedward"]


def _reachable(addresses: Sequence[str] | None) -> list[str]:
    if addresses is None:
        return [
            "# Where the numbers of those whom it talks to are known, and name servers among them:",
            "#IPAddressDeny=any",
            "#IPAddressAllow=localhost 192.0.2.1",
        ]
    return ["IPAddressDeny=any", f"IPAddressAllow={' '.join(addresses)}"]


def _plain(text: str) -> str:
    """Return a text in which systemd replaces nothing.

    Raises
    ------
    UsageError
        When it would break its line.
    """
    if not text.isprintable():
        raise UsageError(f"{text!r}: no unit can be written with this; rename the folder")
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    """Quote a word of a line of several, as systemd reads it.

    >>> print(_quoted('/srv/St Mary/100%'))
    "/srv/St Mary/100%%"
    """
    return '"' + _plain(word).replace("\\", "\\\\").replace('"', '\\"') + '"'
