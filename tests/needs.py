"""What the tests need besides Python: programs of Debian's packages, and root's rights.

A test that lacks one is skipped, and the last lines of a run say which packages would run it.
With NO_SKIPS=1 in the environment it fails instead.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import ssl
import subprocess
from typing import NoReturn

import pytest

# On Debian, an ordinary user's path has no /usr/sbin.
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
PACKAGES = {  # by program
    "ab": "apache2-utils",
    "caddy": "caddy",
    "certutil": "libnss3-tools",
    "cfssl": "golang-cfssl",
    "cfssljson": "golang-cfssl",
    "chromium": "chromium",
    "curl": "curl",
    "ddsperf": "cyclonedds-tools",
    "faketime": "faketime",
    "g++": "g++",
    "gcc": "gcc",
    "gnutls-cli": "gnutls-bin",
    "gnutls-serv": "gnutls-bin",
    "certtool": "gnutls-bin",
    "haproxy": "haproxy",
    "ip": "iproute2",
    "java": "default-jdk-headless",
    "jq": "jq",
    "mosquitto": "mosquitto",
    "mosquitto_pub": "mosquitto-clients",
    "mosquitto_sub": "mosquitto-clients",
    "nginx": "nginx-light",
    "node": "nodejs",
    "openssl": "openssl",
    "php": "php-cli",
    "psql": "postgresql",
    "pkcs11-tool": "opensc",
    "rosmaster": "python3-rosmaster",
    "rrsync": "rsync",
    "rsync": "rsync",
    "selfserv": "libnss3-tools",
    "softhsm2-util": "softhsm2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "strace": "strace",
    "tstclnt": "libnss3-tools",
    "wget": "wget",
}


def skip(reason: str) -> NoReturn:
    """Skip the test that runs; fail it where nothing may be left out."""
    if os.environ.get("NO_SKIPS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def needs(*programs: str) -> None:
    """Skip the running test unless these programs are here. Unlisted ones always are."""
    missing = [
        name for name in programs if name in PACKAGES and not shutil.which(name, path=PATH)
    ]
    if missing:
        packages = sorted({PACKAGES[name] for name in missing})
        skip(f"without {', '.join(missing)}: apt-get install {' '.join(packages)}")


def needs_those_of(commands: str) -> None:
    """Skip the test that runs unless the programs that a shell block calls are here."""
    needs(*programs_of(commands))


def programs_of(commands: str) -> list[str]:
    """Return the listed programs that a shell block may call.

    Comments, variables and the NAME in `for NAME in` call nothing: `node` is such a word.
    """
    commands = re.sub(r"(?m)(^|\s)#.*$", "", commands)
    commands = re.sub(r"\bfor \w+ in\b", "", commands)
    words = re.findall(r"(?<![\w/.${-])[\w/.-]+(?![\w/.=-])", commands)
    return sorted({word.removeprefix("/usr/sbin/") for word in words} & PACKAGES.keys())


def needs_package(name: str) -> None:
    """Skip the running test unless one of Debian's packages without a program is installed."""
    if not shutil.which("dpkg-query") or name not in installed_packages():
        skip(f"without {name}: apt-get install {name}")


@functools.cache
def installed_packages() -> set[str]:
    """Return the names of the packages that dpkg has installed."""
    command = ["dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Package}\n"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {line.split()[1] for line in listed.splitlines() if line.startswith("installed ")}


def needs_root() -> None:
    """Skip the test that runs unless it runs as root: with NO_SKIPS=1, too."""
    if os.geteuid() != 0:
        pytest.skip("takes root")


def needs_mldsa() -> None:
    """Skip the test that runs unless ML-DSA keys can be used: with NO_SKIPS=1, too."""
    found = importlib.util.find_spec("cryptography.hazmat.primitives.asymmetric.mldsa")
    if found is None or ssl.OPENSSL_VERSION_INFO < (3, 5):
        pytest.skip("takes OpenSSL 3.5, and cryptography 47")


def packages_of(reasons: list[str]) -> list[str]:
    """Return the packages that reasons to skip a test name."""
    found: set[str] = set()
    for reason in reasons:
        found.update(reason.partition("apt-get install ")[2].split())
    return sorted(found)
