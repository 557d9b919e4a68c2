"""Zenoh, which ROS 2 can talk over: its page, each refusal, and what is not checked.

A site is a folder with the page's files, and with keys for the router, the talker and the
listener. An intruder is one of these three with other keys, or with a changed file.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

import certifi
import pages
import pytest
from certificates import certificate, decrypt, judge
from configurations import configure
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from programs import Program, check_row, free_port, run_block, running, shell
from running import PHRASES, ROOT, Result, generate, poll
from test_robots import prepare, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.zenoh]

VERSION = (
    "python -c 'from importlib.metadata import version; print(version(\"eclipse-zenoh\"))'"
)
ZENOH = Program("Zenoh", "rustls", VERSION, True, True, True)
PATH = "tests/recipes/ros2-zenoh.md"
PAGE = pages.PAGES[PATH]
FILES = ROOT / "tests/recipes/ros2-zenoh"
# What each shell block of the page is known by, in the page's order.
MAKE_KEYS = "grep made"
ROUTER, LISTENER, TALKER = (
    f"zenoh_node.py {role}" for role in ("router", "listener", "talker")
)
COMMANDS = (MAKE_KEYS, ROUTER, LISTENER, TALKER)
RECIPES = {"Zenoh": COMMANDS}
# The page's table of refusals: the peer, the side that refuses it, and what that side prints.
REFUSALS = re.findall(r"^\| (an? .+) \| the (router|node) \| `(.*)` \|$", PAGE, re.MULTILINE)
ENVIRONMENT = {**PHRASES, "NO_COLOR": "1"}
# What else the tests need of the hierarchy, next to the page's nodes.
MORE = """
    camera: *client
    thief: *client
    robber: *server
    elsewhere:
      <<: *server
      extensions: {<<: *server-extensions, subjectAltName: "DNS:elsewhere"}
    both:
      <<: *server
      extensions: {<<: *server-extensions, extendedKeyUsage: "serverAuth, clientAuth"}
    old: {<<: *client, validity: {notBefore: -1d, notAfter: 1d}}
    old-router: {<<: *server, validity: {notBefore: -1d, notAfter: 1d}}
"""
IN_TWO_DAYS = "faketime '2 days' "


def make_keys(folder: Path, more: str = "", organization: str = "SROS Example") -> Path:
    """Follow the page in a folder as far as the keys, with further nodes."""
    prepare(folder)
    shutil.copytree(FILES, folder / "tests/recipes/ros2-zenoh")
    configuration = configure(folder)
    text = configuration.read_text().replace("SROS Example", organization)
    configuration.write_text(text + pages.block(PATH, "router:", "yaml") + more)
    run_block(folder, pages.block(PATH, MAKE_KEYS))
    return folder / "keys"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The keys of the page's nodes, and of others."""
    return make_keys(tmp_path_factory.mktemp("own"), MORE)


@pytest.fixture(scope="module")
def foreign(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The keys of the page's nodes, by CAs of other names. These nodes trust our CA."""
    return infiltrate(make_keys(tmp_path_factory.mktemp("foreign"), "", "Other Example"), own)


@pytest.fixture(scope="module")
def alien(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The keys of the page's nodes, by CAs of the same names. These nodes trust our CA."""
    return infiltrate(make_keys(tmp_path_factory.mktemp("alien")), own)


def infiltrate(keys: Path, own: Path) -> Path:
    """Have other nodes trust our CA, so that only we can refuse them."""
    for node in ("router", "talker", "listener"):
        shutil.copy(own / node / "ca.pem", keys / node)
    return keys


@dataclass
class Site:
    """A folder with the page's files, for one port."""

    folder: Path
    port: int

    def change(self, name: str, old: str, new: str) -> None:
        """Change a file, in which the old text must stand."""
        path = self.folder / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def give(self, role: str, keys: Path) -> None:
        """Give a role the keys of some node."""
        shutil.rmtree(self.folder / "keys" / role, ignore_errors=True)
        shutil.copytree(keys, self.folder / "keys" / role)

    def run(self, marker: str, ready: str, prefix: str = "") -> AbstractContextManager[Path]:
        """Run the router or the listener by the page's command, until a text is printed."""
        return self.keep(prefix + pages.block(PATH, marker), ready)

    @contextmanager
    def keep(self, command: str, ready: str) -> Iterator[Path]:
        """Run a command until a text is printed, and on."""
        with running(self.folder, command, 0, ready=lambda: True, env=ENVIRONMENT) as log:
            wait_for(log, ready)
            yield log

    def say(self, text: str = "hola", prefix: str = "") -> Result:
        """Run the talker by the page's command."""
        command = pages.block(PATH, TALKER).replace("hola", text)
        command = command.replace(".venv", f"{prefix}.venv")
        return shell(self.folder, command, ENVIRONMENT)


def place(folder: Path, keys: Path, port: int) -> Site:
    """Make a site with the keys of three nodes."""
    shutil.copytree(FILES, folder)
    (folder / ".venv").symlink_to(sys.prefix)
    site = Site(folder, port)
    for role in ("router", "talker", "listener"):
        site.give(role, keys / role)
        site.change(f"{role}.json5", "8443", str(port))
    return site


@pytest.fixture
def site(tmp_path: Path, own: Path) -> Site:
    """A site with the keys that belong there."""
    return place(tmp_path / "site", own, free_port())


@pytest.fixture
def intrusion(tmp_path: Path, own: Path, site: Site) -> Site:
    """Another site at the same port, from which an intruder is made."""
    return place(tmp_path / "intrusion", own, site.port)


def heard(log: Path, text: str) -> bool:
    """Return whether a listener has printed a text that it heard."""
    return f"heard: [{text}]\n" in log.read_text()


def wait_to_hear(log: Path, text: str) -> None:
    """Wait until a listener hears a text."""
    wait_for(log, f"heard: [{text}]\n")


# --- The page -------------------------------------------------------------------------------


def test_each_block_of_the_page_is_one_of_its_files_or_is_run_here() -> None:
    found = pages.blocks(PAGE)
    commands = [text for kind, text in found if kind == "sh"]
    for text, marker in zip(commands, COMMANDS, strict=True):
        assert marker in text and text == pages.block(PATH, marker)
    shown = [text for kind, text in found if kind in ("json5", "python")]
    talker = (FILES / "talker.json5").read_text()
    shown.append(talker.replace("talker", "listener"))
    assert sorted(shown) == sorted(path.read_text() for path in FILES.iterdir())


def test_the_page_goes_as_it_is_told(tmp_path: Path) -> None:
    def dated(text: str) -> str:
        """A transcript without dates, and without the count of a long run."""
        return re.sub(r"\d{4}-\d\d-\d\d|^\[ *\d+/\d+\] ", "", text, flags=re.MULTILINE)

    prepare(tmp_path)
    shutil.copytree(FILES, tmp_path / "tests/recipes/ros2-zenoh")
    configuration = configure(tmp_path)
    assert generate(tmp_path).returncode == 0
    entries = pages.block(PATH, "router:", "yaml")
    configuration.write_text(configuration.read_text() + entries)
    printed = run_block(tmp_path, pages.block(PATH, MAKE_KEYS))
    assert dated(printed) == dated(pages.transcript(PATH, MAKE_KEYS))

    site = Site(tmp_path, free_port())
    for name in ("router", "talker", "listener"):
        site.change(f"{name}.json5", "8443", str(site.port))
    with site.run(ROUTER, "routing"), site.run(LISTENER, "listening") as listener:
        assert site.say().stdout == pages.transcript(PATH, TALKER)
        wait_to_hear(listener, "hola")
        assert listener.read_text() == pages.block(PATH, "heard: [hola]", "text")


def test_the_row_of_zenoh_says_what_is_tested_here() -> None:
    check_row(ZENOH)


# --- Who is refused -------------------------------------------------------------------------


@dataclass(frozen=True)
class Intruder:
    """How an intruder differs from an honest peer."""

    keys: str = ""  # whose keys it has, as OWNER/NODE
    changes: dict[str, str] = field(default_factory=dict)  # what it changes in its file
    clock: str = ""  # what the command of the other side starts with
    command: str = ""  # what it runs instead of the page's program


OPENSSL = (
    "-tls1_2 -cert keys/{0}/cert.pem -cert_chain keys/{0}/fullchain.pem -key keys/{0}/key.pem"
    " -CAfile keys/{0}/ca.pem -pass env:SROS_PASSPHRASE"
)
OLD_NODE = f"openssl s_client -connect localhost:PORT {OPENSSL.format('talker')}"
OLD_ROUTER = f"openssl s_server -rev -accept 127.0.0.1:PORT {OPENSSL.format('router')}"

NODES = {
    "a node of another CA": Intruder("foreign/talker"),
    "a node of another CA with the same names": Intruder("alien/talker"),
    "a node without a certificate": Intruder(
        changes={"enable_mtls: true": "enable_mtls: false"}
    ),
    "a node with `serverAuth` only": Intruder("own/router"),
    "a node with TLS 1.2": Intruder(command=OLD_NODE),
    "a node without TLS": Intruder(changes={"tls/": "tcp/", '["tls"]': '["tcp"]'}),
    "an expired node": Intruder("own/old", clock=IN_TWO_DAYS),
}
ROUTERS = {
    "a router of another CA": Intruder("foreign/router"),
    "a router of another CA with the same names": Intruder("alien/router"),
    "a router with `clientAuth` only": Intruder("own/talker"),
    "a router of another name": Intruder("own/elsewhere"),
    "a router with TLS 1.2": Intruder(command=OLD_ROUTER),
    "an expired router": Intruder("own/old-router", clock=IN_TWO_DAYS),
}


def make_intruder(
    intrusion: Site, role: str, intruder: Intruder, request: pytest.FixtureRequest
) -> None:
    """Change the keys and the file of one role as an intruder has them."""
    if intruder.keys:
        owner, node = intruder.keys.split("/")
        keys: Path = request.getfixturevalue(owner)
        intrusion.give(role, keys / node)
    for old, new in intruder.changes.items():
        intrusion.change(f"{role}.json5", old, new)


def test_the_page_names_each_of_these_intruders() -> None:
    assert [peer for peer, _, _ in REFUSALS] == [*NODES, *ROUTERS]
    sides = ["router"] * len(NODES) + ["node"] * len(ROUTERS)
    assert [side for _, side, _ in REFUSALS] == sides


@pytest.mark.parametrize("peer", NODES)
def test_the_router_refuses_a_node_and_serves_the_honest_one(
    site: Site, intrusion: Site, request: pytest.FixtureRequest, peer: str
) -> None:
    intruder = NODES[peer]
    make_intruder(intrusion, "talker", intruder, request)
    with ExitStack() as stack:
        router = stack.enter_context(site.run(ROUTER, "routing", intruder.clock))
        listener = stack.enter_context(site.run(LISTENER, "listening"))
        if intruder.command:
            command = intruder.command.replace("PORT", str(site.port))
            refused = shell(intrusion.folder, command, ENVIRONMENT)
        else:
            refused = intrusion.say("intrusion")
            assert "zenoh_node.py: error: Unable to connect" in refused.stderr
        assert refused.returncode == 1, refused.stdout
        wait_for(router, next(line for name, _, line in REFUSALS if name == peer))
        assert site.say().returncode == 0
        wait_to_hear(listener, "hola")
        assert not heard(listener, "intrusion")


@pytest.mark.parametrize("peer", ROUTERS)
def test_a_node_refuses_a_router_and_uses_the_honest_one(
    site: Site, intrusion: Site, request: pytest.FixtureRequest, peer: str
) -> None:
    intruder = ROUTERS[peer]
    make_intruder(intrusion, "router", intruder, request)
    command = intruder.command.replace("PORT", str(site.port))
    impostor = intrusion.run(ROUTER, "routing")
    if command:
        impostor = intrusion.keep(command, "ACCEPT")
    with impostor:
        refused = site.say("secret", intruder.clock)
    assert next(line for name, _, line in REFUSALS if name == peer) in refused.stdout
    assert refused.returncode == 1 and "said" not in refused.stdout
    with site.run(ROUTER, "routing"), site.run(LISTENER, "listening") as listener:
        assert site.say("hola", intruder.clock).returncode == 0
        wait_to_hear(listener, "hola")


# --- What each node may do ------------------------------------------------------------------


@pytest.mark.parametrize("node", ["talker", "listener", "camera"])
def test_a_node_does_what_the_rules_allow_its_certificate_and_no_more(
    site: Site, intrusion: Site, own: Path, node: str
) -> None:
    for role in ("talker", "listener"):
        intrusion.give(role, own / node)
    with (
        site.run(ROUTER, "routing"),
        site.run(LISTENER, "listening") as listener,
        intrusion.run(LISTENER, "listening") as other,
    ):
        assert intrusion.say("from the node").returncode == 0
        for text in ("hola", "adios"):
            assert site.say(text).returncode == 0
            wait_to_hear(listener, text)
        if node == "listener":
            wait_to_hear(other, "hola")
        assert heard(other, "hola") == (node == "listener")
        assert heard(listener, "from the node") == (node == "talker")


# Announces a node of any name as ROS 2 does, or prints who is announced.
GRAPH = """
import signal, sys, zenoh
with zenoh.open(zenoh.Config.from_file(sys.argv[1])) as session:
    if sys.argv[2] == "announce":
        token = session.liveliness().declare_token("@ros2_lv/0/somebody")
        print("announced", flush=True)
        signal.pause()
    for reply in session.liveliness().get("@ros2_lv/0/**"):
        print(reply.ok.key_expr)
"""


def test_the_graph_is_shown_to_nodes_with_a_rule_and_keys_can_be_named_in_the_files(
    site: Site, own: Path
) -> None:
    (site.folder / "graph.py").write_text(GRAPH)
    for role in ("talker", "listener"):
        decrypt(site.folder / "keys" / role)
        line = "enable_mtls: true,"
        named = f'connect_private_key: "keys/{role}/key.pem", {line}'
        site.change(f"{role}.json5", line, named)
    with site.run(ROUTER, "routing"):
        announce = ".venv/bin/python graph.py talker.json5 announce"
        with site.keep(announce, "announced"):
            ask = ".venv/bin/python graph.py listener.json5 ask"
            assert run_block(site.folder, ask) == "@ros2_lv/0/somebody\n"
            site.give("listener", own / "camera")
            decrypt(site.folder / "keys/listener")
            assert run_block(site.folder, ask) == ""


def as_pem(key: serialization.PrivateFormat | object) -> bytes:
    """Return a key as PEM, not encrypted."""
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def test_the_router_lets_in_everyone_without_the_line_for_mutual_tls(
    site: Site, intrusion: Site
) -> None:
    intrusion.change("talker.json5", "enable_mtls: true", "enable_mtls: false")
    with site.run(ROUTER, "routing"):
        assert intrusion.say().returncode == 1
    site.change("router.json5", "enable_mtls: true,", "")
    with site.run(ROUTER, "routing"):
        assert intrusion.say().returncode == 0


# --- What Zenoh does not check --------------------------------------------------------------


@pytest.mark.parametrize(("role", "node"), [("talker", "thief"), ("router", "robber")])
def test_a_revoked_peer_gets_in_though_its_certificate_is_on_the_list(
    site: Site, own: Path, tmp_path: Path, role: str, node: str
) -> None:
    keys = shutil.copytree(own.parent, tmp_path / "revoked", symlinks=True) / "keys"
    assert generate(keys.parent, "--revoke", node).returncode == 0
    assert "certificate revoked" in judge(keys / node).stderr
    assert judge(keys / role).returncode == 0
    site.give(role, keys / node)
    for other in ("router", "talker"):
        if other != role:
            site.give(other, keys / other)
    with site.run(ROUTER, "routing"):
        assert site.say().returncode == 0


def test_a_node_is_locked_out_by_removing_its_subject_and_its_policy(site: Site) -> None:
    path = site.folder / "router.json5"
    whole = path.read_text()
    text = re.sub(r'\{ id: "talker", .*\n', "", whole)
    text = re.sub(r'\{\s+subjects: \["talker"\],\s+rules: .*\s+\},', "", text)
    assert '"talker"' in whole and '"talker"' not in text
    for content, allowed in ((text, False), (whole, True)):
        path.write_text(content)
        with site.run(ROUTER, "routing"), site.run(LISTENER, "listening") as listener:
            assert site.say().returncode == 0
            if allowed:
                wait_to_hear(listener, "hola")
        assert heard(listener, "hola") == allowed


def forge(folder: Path, issuer: x509.Name) -> Path:
    """Make a certificate that names an issuer, but is signed with a key of our own."""
    folder.mkdir()
    key, signer = (
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
    )
    now = datetime.now(timezone.utc)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    purposes = x509.ExtendedKeyUsage(
        [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    )
    forged = (
        x509.CertificateBuilder(issuer, x509.Name([]), key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=True)
        .add_extension(purposes, critical=False)
        .sign(signer, hashes.SHA384())
    )
    for name in ("cert.pem", "fullchain.pem"):
        (folder / name).write_bytes(forged.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(as_pem(key))
    return folder


def web_root() -> x509.Name:
    """Return the name of a CA that browsers trust, and whose key is for P-384."""
    text = Path(certifi.where()).read_text().partition("ISRG Root X2")[2]
    begin = text.index("-----BEGIN")
    end = text.index("-----END")
    pem = f"{text[begin:end]}-----END CERTIFICATE-----\n"
    return x509.load_pem_x509_certificate(pem.encode()).subject


def test_a_node_knows_the_public_web_cas_and_the_router_does_not(
    site: Site, intrusion: Site, own: Path, tmp_path: Path
) -> None:
    # With a CA that is trusted, the signature is wrong. With another, the issuer is unknown.
    unknown = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "No Such Root")])
    for name, issuer, line in (
        ("web", web_root(), "invalid peer certificate: BadSignature"),
        ("none", unknown, "invalid peer certificate: UnknownIssuer"),
    ):
        forged = forge(tmp_path / name, issuer)
        shutil.copy(own / "router/ca.pem", forged)
        command = f"openssl s_server -rev -accept 127.0.0.1:{site.port} -tls1_3"
        with intrusion.keep(
            f"{command} -cert {forged}/cert.pem -key {forged}/key.pem", "ACCEPT"
        ):
            assert line in site.say().stdout
        with site.run(ROUTER, "routing") as router:
            command = f"openssl s_client -connect localhost:{site.port} -ign_eof"
            node = f"{command} -cert {forged}/cert.pem -key {forged}/key.pem"
            assert shell(intrusion.folder, node, PHRASES).returncode == 1
            wait_for(router, "invalid peer certificate: UnknownIssuer")
            assert site.say().returncode == 0


def test_the_name_of_the_router_is_not_checked_where_that_is_turned_off(
    site: Site, own: Path
) -> None:
    site.give("router", own / "elsewhere")
    with site.run(ROUTER, "routing"):
        assert "certificate not valid for name" in site.say().stdout
        site.change(
            "talker.json5", "verify_name_on_connect: true", "verify_name_on_connect: false"
        )
        assert site.say().returncode == 0


def test_a_peer_lets_in_everyone_over_tcp_unless_it_listens_nowhere(
    site: Site, intrusion: Site
) -> None:
    site.change("listener.json5", 'mode: "client"', 'mode: "peer"')
    told = "RUST_LOG=zenoh=info "
    with site.run(ROUTER, "routing"):
        # With protocols alone, it does not start.
        refused = shell(site.folder, pages.block(PATH, LISTENER), ENVIRONMENT)
        assert refused.returncode == 1 and "Unsupported protocol: tcp" in refused.stdout
        # With no place to listen at, it hears the talker through the router.
        site.change("listener.json5", "connect: {", "listen: { endpoints: [] },\n  connect: {")
        with site.run(LISTENER, "listening", told) as listener:
            assert site.say().returncode == 0
            wait_to_hear(listener, "hola")
            assert "can be reached at" not in listener.read_text()
        # By default, a stranger without a certificate gets past the router and its rules.
        site.change("listener.json5", "listen: { endpoints: [] },", "")
        site.change("listener.json5", 'protocols: ["tls"],', "")
        with site.run(LISTENER, "listening", told) as listener:
            reached = re.findall(r"reached at: (tcp/[\d.]+:\d+)", listener.read_text())
            intrusion.change("talker.json5", f"tls/localhost:{site.port}", reached[0])
            intrusion.change("talker.json5", 'protocols: ["tls"],', "")
            intrusion.change("talker.json5", "enable_mtls: true", "enable_mtls: false")
            assert intrusion.say("intrusion").returncode == 0
            wait_to_hear(listener, "intrusion")


def test_peers_that_listen_find_each_other_and_talk_past_the_rules(
    site: Site, own: Path
) -> None:
    # In mode client, the rules keep a node of another name silent: see the test of the camera.
    site.change("router.json5", "gossip: { enabled: false }", "gossip: { enabled: true }")
    for role in ("talker", "listener"):
        node, name = site.folder / "keys" / role, f"{role}.json5"
        site.give(role, own / "both")
        decrypt(shutil.copytree(node, site.folder / "plain", dirs_exist_ok=True))
        site.change(name, "gossip: { enabled: false }", "gossip: { enabled: true }")
        site.change(name, 'mode: "client",', 'mode: "peer",\n  listen: { endpoints: [ANY] },')
        site.change(name, "ANY", '"tls/localhost:0"')
        pair = f'listen_certificate: "keys/{role}/fullchain.pem", listen_private_key: PLAIN,'
        site.change(name, "enable_mtls", f"{pair} enable_mtls")
        site.change(name, "PLAIN", '"plain/key.pem"')
    with site.run(ROUTER, "routing"), site.run(LISTENER, "listening") as listener:

        def passes() -> bool:
            """Say something, and return whether some of it was heard."""
            assert site.say().returncode == 0
            return heard(listener, "hola")

        poll(passes, listener.read_text)


@pytest.mark.parametrize("closes", [True, False])
def test_a_link_ends_with_the_certificate_where_that_is_turned_on(
    site: Site, own: Path, tmp_path: Path, closes: bool
) -> None:
    keys = tmp_path / "short"
    shutil.copytree(own.parent, keys, symlinks=True)
    ends = (datetime.now(timezone.utc) + timedelta(seconds=12)).replace(microsecond=0)
    validity = f"{{notBefore: -1d, notAfter: {ends:%Y-%m-%dT%H:%M:%SZ}}}"
    with (keys / "sros_config.yml").open("a") as file:
        file.write(f"    brief: {{<<: *client, validity: {validity}}}\n")
    assert generate(keys).returncode == 0
    site.give("listener", keys / "keys/brief")
    assert certificate(site.folder / "keys/listener/cert.pem").not_valid_after_utc == ends
    site.change(
        "router.json5", 'cert_common_names: ["listener"]', 'cert_common_names: ["brief"]'
    )
    if not closes:
        for name in ("router.json5", "listener.json5"):
            site.change(name, "on_expiration: true", "on_expiration: false")
    with site.run(ROUTER, "routing") as router, site.run(LISTENER, "listening") as listener:
        assert site.say("before").returncode == 0
        wait_to_hear(listener, "before")
        poll(
            lambda: datetime.now(timezone.utc) > ends + timedelta(seconds=2), router.read_text
        )
        assert site.say("after").returncode == 0
        if closes:
            wait_for(router, "certificate expired")
        else:
            wait_to_hear(listener, "after")
        assert heard(listener, "after") == (not closes)


# --- Keys -----------------------------------------------------------------------------------

ACCEPTED = ("ec:prime256v1", "ec:secp384r1", "rsa:2048", "rsa:4096", "ed25519")
# What Zenoh prints with a key that it can't use: the decrypted key, in base64. It begins so.
LEAK = "connect_private_key_base64=LS0tLS1CRUdJTiBQUklWQVRFIEtFWS"
NOT_ACCEPTED = ("ec:secp521r1", "ed448", "ml-dsa-65")


@pytest.fixture(scope="module")
def kinds(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of nodes with keys of each type, by the names of the types."""
    folder = tmp_path_factory.mktemp("kinds") / "site"
    shutil.copytree(own.parent, folder, symlinks=True)
    with (folder / "sros_config.yml").open("a") as file:
        for kind in (*ACCEPTED, *NOT_ACCEPTED):
            digest = ""
            if kind.startswith(("ed", "ml")):
                digest = ", digest: ~"
            file.write(f"    {plain(kind)}: {{<<: *client, key: '{kind}'{digest}}}\n")
    assert generate(folder).returncode == 0
    return folder / "keys"


def plain(kind: str) -> str:
    """Return the name of a node with a key of some type."""
    return kind.replace(":", "-")


@pytest.mark.parametrize("kind", [*ACCEPTED, *NOT_ACCEPTED])
def test_keys_are_of_the_types_that_the_page_names_and_others_end_up_in_the_log(
    site: Site, kinds: Path, kind: str
) -> None:
    site.give("talker", kinds / plain(kind))
    with site.run(ROUTER, "routing"):
        result = site.say()
    if kind in ACCEPTED:
        assert result.returncode == 0 and "private_key" not in result.stdout
    else:
        assert result.returncode == 1 and LEAK in result.stdout


def test_the_decrypted_key_is_printed_with_a_certificate_of_another_key(
    site: Site, own: Path
) -> None:
    shutil.copy(own / "camera/fullchain.pem", site.folder / "keys/talker")
    with site.run(ROUTER, "routing"):
        assert LEAK in site.say().stdout
        site.give("talker", own / "talker")
        assert "private_key" not in site.say().stdout
