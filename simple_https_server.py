#!/usr/bin/env python3
"""Answer lines over mutual TLS: the server verifies its clients, and they verify the server.

`hola` and HTTP requests are answered with `hello`; other lines are echoed.

The script reads as a connection goes:

    main            loads the keys folder, listens, and waits for signals
    make_context    reads the PEM files, and sets how clients are verified
    listen          opens a socket for each address of the host
    accept_clients  accepts clients, and hands each one to a thread, which serves it:
    shake_hands     verifies the client, and proves to the client who the server is
    answer_lines    answers line by line, until the client closes
    close_politely  closes so that the client can still read the last answer

Two more threads help: reload_keys loads the folder again on SIGHUP, and Log prints the lines.

The words used throughout:

    folder          the PEM files of one side, made by simple_key_generation.py
    chain           a certificate, its issuer's certificate, and so on (fullchain.pem)
    anchor          a self-signed certificate that we trust (ca.pem); a chain must end in one
    list            a CA's list of the certificates that it has revoked (crl.pem)
    alert           TLS's error message, such as for a refused peer; it hints at the reason
    close_notify    TLS's message at the end of a stream; without it, the stream was cut short
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    # A signal that comes during the imports waits for main.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])

import argparse
import errno
import getpass
import os
import re
import resource
import socket
import ssl
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Full, Queue, SimpleQueue
from threading import Event, Lock, Thread, active_count
from types import FrameType
from typing import Any, TextIO

MAX_LINE = 65536  # bytes, with the newline
MAX_SHOWN = 1000  # characters of a line that are printed
MAX_UNPRINTED = 10000  # lines that wait to be printed
PATIENCE = 1  # seconds that a further line waits for its turn, before it is lost
MAX_CONNECTIONS = 2000  # clients served at once; further ones wait in the system's queue
MIN_THREADS = 8  # kept, even while there are fewer clients
TIMEOUT = 5  # seconds for the first byte, for the handshake, and for the client to close
IDLE_TIMEOUT = 60  # seconds for a line to arrive, and for the client to take its answer
PAUSE = 0.5  # seconds before another try to accept, and for last answers at the end
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)

# Errors of an address that this machine does not have, or that lacks its zone (%eth0).
ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL)

# The request line of HTTP/1 (RFC 9112, section 3), and malformed ones (answered with 400).
HTTP_REQUEST = re.compile(rb"[A-Z-]+ \S+ HTTP/1\.[0-9]")
HTTP_LOOKALIKE = re.compile(rb"(?i)\s*\S+\s+([/*?[]|[^\s:]+:(//|[0-9])).*HTTP/[0-9.]+\s*")

# A few blank lines, and the line after them. To look past all, at each one, would be slow.
AFTER_BLANKS = re.compile(rb"[\r\n]{0,16}([^\n]*)")

HTTP_HEADER = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n"
HTTP_ERROR = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

# OpenSSL's words for a key that does not match the first certificate of the chain.
MISMATCHES = ("key values mismatch", "key type mismatch", "no certificate assigned")

# The OIDs of ML-DSA-44, 65 and 87, as DER encodes them (RFC 9881, section 2).
ML_DSA = re.compile(rb"\x06\x09\x60\x86\x48\x01\x65\x03\x04\x03[\x11-\x13]")
PEM_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----")

# What openssl.cnf sets for TLS 1.3, and Python can't (before 3.15). Case does not matter.
OPENSSL_SETTING = re.compile(r"(?im)^\s*(?:\w+\.)?(Ciphersuites|\w*SignatureAlgorithms)\s*=")


# --- 1. The main path ------------------------------------------------------------------------


def main(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM. Return the exit status."""
    prepare_process()
    try:
        # While the server starts, these signals end it. A SIGHUP waits until it has started.
        signal.signal(signal.SIGTERM, stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGTERM])

        check_openssl(options.keys / "fullchain.pem")
        pass_phrase = read_pass_phrase(options.keys / "key.pem")
        context = make_context(options.keys, pass_phrase)
        if not checks_lists(context):
            warn(f"{options.keys}/crl.pem is missing: revoked peers are let in")
        listeners = listen(options.host, options.port)

        # All threads inherit this mask, so signals are left to wait_for_end.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        shared = Shared(context, options.verbose)
        reload_wanted = Event()
        start_thread(reload_keys, reload_wanted, shared, options.keys, pass_phrase)
        crew = Crew(shared)
        for listener in listeners:
            start_thread(accept_clients, listener, crew)
    except (OSError, ValueError, RuntimeError) as error:
        complain(f"cannot serve {options.host} port {options.port}", error)
        return 1

    port = listeners[0].getsockname()[1]
    shared.log.put(f"listening on {options.host} port {port}", sys.stderr)
    status = wait_for_end(reload_wanted)
    shared.log.finish()
    return status


def parse_arguments() -> argparse.Namespace:
    """Return the options of the command line. Exit with status 2 if one is wrong."""
    parser = argparse.ArgumentParser(
        description="Answer lines over mutual TLS: `hola` and HTTP requests with `hello`, "
        "and echo other lines."
    )
    parser.add_argument(
        "--host",
        default="localhost",
        help="name or address to listen on (%(default)s); `::`: every address of this machine",
    )
    parser.add_argument(
        "--port", default=8443, type=int, help="TCP port (%(default)s); 0: any"
    )
    parser.add_argument(
        "-k", "--keys", default="keys/server", type=Path, help="PEM files (%(default)s)"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show sessions and peers")
    options = parser.parse_args()
    if options.port not in range(65536):
        parser.error(f"argument --port: {options.port} is not in 0..65535")
    return options


def prepare_process() -> None:
    """Adjust limits and streams, where permitted."""
    # Each client takes a descriptor. The usual limit of 1,024 is too low.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    # If an output does not block, lines are lost while its reader is slow.
    for stream in (sys.stdout, sys.stderr):
        # Python has no stream if it was closed when the script started.
        if stream is not None:
            os.set_blocking(stream.fileno(), True)


def stop(_signal: int, _frame: FrameType | None) -> None:
    """End the script quietly. This handles SIGTERM while the server starts."""
    sys.exit(0)


def start_thread(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function in a thread that ends with the process. Raises RuntimeError."""
    Thread(target=function, args=arguments, daemon=True).start()


class Shared:
    """What all threads share. A reload replaces the context, for the clients after it."""

    def __init__(self, context: ssl.SSLContext, verbose: bool) -> None:
        self.context = context
        self.verbose = verbose
        self.log = Log()


def reload_keys(wanted: Event, shared: Shared, folder: Path, pass_phrase: bytes) -> None:
    """Load the folder whenever it is wanted. If that fails, the old keys stay in force.

    This has a thread of its own. If the folder hangs, such as on a dead network drive, the
    main thread can still end the server.
    """
    while wanted.wait():
        wanted.clear()
        try:
            context = make_context(folder, pass_phrase)
            if checks_lists(shared.context) and not checks_lists(context):
                # It may have been lost. Without it, revoked clients would be let in.
                raise ValueError(f"{folder}/crl.pem is gone; to do without it, restart")
            shared.context = context
            if shared.verbose:
                shared.log.put("reloaded", sys.stderr)
        except (OSError, ValueError) as error:
            complain("cannot reload, the old keys stay in force", error)


def wait_for_end(reload_wanted: Event) -> int:
    """Wait for SIGINT or SIGTERM. Return the exit status. SIGHUP wakes reload_keys."""
    signals = [signal.SIGHUP, signal.SIGTERM]
    # A shell's background job ignores Ctrl-C, and still does.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signals.append(signal.SIGINT)

    received = signal.sigwait(signals)
    while received == signal.SIGHUP:
        reload_wanted.set()
        received = signal.sigwait(signals)

    # Give the threads a moment to answer. A second signal cuts it short.
    signal.sigtimedwait(signals, PAUSE)
    if received == signal.SIGTERM:
        return 0
    return 130


# --- 2. The keys folder ----------------------------------------------------------------------


def check_openssl(chain: Path) -> None:
    """Check that OpenSSL knows the algorithms of a chain. Raises OSError or ValueError."""
    if ssl.OPENSSL_VERSION_INFO < (3, 5) and uses_ml_dsa(chain):
        found = f"this Python's ssl has {ssl.OPENSSL_VERSION}"
        raise ValueError(f"{chain}: ML-DSA takes OpenSSL 3.5, {found}")


def uses_ml_dsa(chain: Path) -> bool:
    """Tell whether a certificate in a chain has an ML-DSA key or signature."""
    for certificate in PEM_CERTIFICATE.findall(chain.read_text(errors="replace")):
        # If it is damaged, OpenSSL will say so.
        with suppress(ValueError):
            if ML_DSA.search(ssl.PEM_cert_to_DER_cert(certificate)):
                return True
    return False


def read_pass_phrase(key: Path) -> bytes:
    """Return a key's pass phrase: from the environment, or typed at the terminal.

    A key that is not encrypted has an empty one. Raises OSError or ValueError.
    """
    if b"SROS_PASSPHRASE" in os.environb:
        return os.environb[b"SROS_PASSPHRASE"]
    if b"ENCRYPTED" not in key.read_bytes():
        return b""

    try:
        # Without a terminal, getpass would read standard input.
        os.close(os.open("/dev/tty", os.O_RDWR))
        return os.fsencode(getpass.getpass("Enter PEM pass phrase:"))
    except UnicodeError:
        # This error's message would reveal part of the input.
        raise ValueError(f"{key}: the pass phrase is not text in this locale") from None
    except EOFError:
        raise ValueError(f"{key}: no pass phrase was typed") from None
    except OSError:
        problem = "SROS_PASSPHRASE is not set, and there is no terminal to ask at"
        raise ValueError(f"{key}: {problem}") from None


def make_context(folder: Path, pass_phrase: bytes) -> ssl.SSLContext:
    """Return TLS settings from the PEM files in a folder.

    Raises OSError or ValueError, with the name of the file, if that can't be done.
    """
    context = new_context()

    # A client that resumes a session with a ticket does not show its certificate again.
    context.num_tickets = 0

    # Clients must show a certificate. It may have any name: all clients of our CA are let in.
    context.verify_mode = ssl.CERT_REQUIRED
    context.check_hostname = False

    # Verify chains with OpenSSL's additional checks of RFC 5280, and up to an anchor. Python
    # 3.13's create_default_context also sets VERIFY_X509_PARTIAL_CHAIN. It stays off here,
    # because with it a chain could end in any certificate that is loaded below.
    context.verify_flags = ssl.VERIFY_X509_STRICT

    load_anchors(context, folder)
    load_lists(context, folder / "crl.pem")
    load_identity(context, folder, pass_phrase)
    return context


def new_context() -> ssl.SSLContext:
    """Return settings for TLS 1.3, whatever openssl.cnf says. Raises ValueError."""
    file = openssl_cnf()
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    except ssl.SSLError as error:
        raise ValueError(f"{file}: {describe_error(error)}") from error

    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.options &= ~ssl.OP_NO_TLSv1_3

    # Refuse weak keys and digests. A higher level stays.
    if context.security_level < 2:
        context.set_ciphers("DEFAULT:@SECLEVEL=2")

    # Debian 12's Python sets this option. With it, a stream that was cut short looks complete.
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)

    # Before OpenSSL 3.5, the default groups include ffdhe8192, with which each ClientHello
    # costs 0.2 seconds of CPU. Every compliant TLS 1.3 peer supports prime256v1 (RFC 8446,
    # section 9.1).
    if ssl.OPENSSL_VERSION_INFO < (3, 5):
        if context.security_level > 3:
            raise ValueError(f"{file}: a SECLEVEL above 3 excludes the group prime256v1")
        context.set_ecdh_curve("prime256v1")

    check_openssl_cnf(context)
    return context


def openssl_cnf() -> Path:
    """Return OpenSSL's configuration file (openssl-env(7))."""
    usual = Path(ssl.get_default_verify_paths().openssl_capath).with_name("openssl.cnf")
    return Path(os.environ.get("OPENSSL_CONF", usual))


def check_openssl_cnf(context: ssl.SSLContext) -> None:
    """Check openssl.cnf for settings that Python can't override. Raises ValueError.

    Settings in files that openssl.cnf includes are not found.
    """
    file = openssl_cnf()
    protocols = [cipher["protocol"] for cipher in context.get_ciphers()]
    if "TLSv1.3" not in protocols:
        raise ValueError(f"{file}: Ciphersuites leaves no cipher for TLS 1.3")

    # These settings may exclude what our own key needs, or the peer.
    with suppress(OSError):
        for setting in OPENSSL_SETTING.findall(file.read_text(errors="replace")):
            warn(f"{file}: {setting} applies, as Python can't override it")


def load_pem(context: ssl.SSLContext, file: Path) -> None:
    """Load certificates and lists from a file. Raises ValueError that names the file."""
    try:
        context.load_verify_locations(file)
    except OSError as error:
        words = describe_error(error).replace("PEM lib", "the file is damaged")
        raise ValueError(f"{file}: {words}") from error
    # A file that has only lists can be loaded, too.
    if context.cert_store_stats()["x509"] == 0:
        raise ValueError(f"{file}: has no certificate")


def load_anchors(context: ssl.SSLContext, folder: Path) -> None:
    """Load the anchors, and our own issuers for peers that don't send theirs.

    Some programs, such as Chromium, send only their own certificate. If our CA has issued it,
    our issuers are theirs, too. These CAs become intermediates and not anchors, because they
    are not self-signed: a chain through them must still end in an anchor.

    Raises ValueError if a file can't be loaded.
    """
    load_pem(context, folder / "ca.pem")
    anchors = [anchor["subject"] for anchor in context.get_ca_certs()]

    # In the standard library, only a context parses certificates. It lists only CAs.
    chain = folder / "fullchain.pem"
    reader = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    load_pem(reader, chain)
    fields: Any = reader.get_ca_certs()
    encodings = reader.get_ca_certs(binary_form=True)

    for certificate, encoding in zip(fields, encodings, strict=True):
        # A self-signed certificate would become an anchor.
        self_signed = certificate["subject"] == certificate["issuer"]
        # A cross-certificate has an anchor's name. Through it, a chain would go on to a higher
        # CA, which is no anchor here, and fail.
        replaces_anchor = certificate["subject"] in anchors
        if self_signed or replaces_anchor:
            continue

        # OpenSSL would prefer an expired one to a renewed one that the peer sends.
        begin = ssl.cert_time_to_seconds(certificate["notBefore"])
        end = ssl.cert_time_to_seconds(certificate["notAfter"])
        if not begin <= time.time() <= end:
            warn(f"{chain}: our own CA's certificate has expired, or is not valid yet")
            continue
        # Before 3.12, Python raises here what OpenSSL could not read in openssl.cnf.
        with suppress(ssl.SSLError):
            context.load_verify_locations(cadata=encoding)


def load_lists(context: ssl.SSLContext, lists: Path) -> None:
    """Load the revocation lists, if the folder has any. Raises ValueError."""
    # A dangling symlink is an error, not a missing list.
    if not os.path.lexists(lists):
        return

    before = context.cert_store_stats()["x509"]
    load_pem(context, lists)
    found = context.cert_store_stats()
    if found["x509"] != before:
        raise ValueError(f"{lists}: has a certificate, which we would trust; take it out")
    if found["crl"] == 0:
        raise ValueError(f"{lists}: has no revocation list")

    # Check the whole chain, because a CA may be revoked, too.
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN


def checks_lists(context: ssl.SSLContext) -> bool:
    """Tell whether a context has revocation lists."""
    return ssl.VERIFY_CRL_CHECK_CHAIN in context.verify_flags


def load_identity(context: ssl.SSLContext, folder: Path, pass_phrase: bytes) -> None:
    """Load our own key and chain. Raises ValueError that names the file."""
    key = folder / "key.pem"
    chain = folder / "fullchain.pem"
    try:
        # A pass phrase is always given, or OpenSSL itself would ask for it.
        context.load_cert_chain(chain, key, password=pass_phrase)
    except (OSError, ValueError) as error:
        words = describe_error(error)
        if words == "PEM lib":
            words = "the pass phrase is wrong, or the file is damaged"
            if b"SROS_PASSPHRASE" in os.environb:
                words = "SROS_PASSPHRASE is wrong, or the file is damaged"
        elif words in MISMATCHES:
            words = f"does not match the first certificate in {chain}"
        elif words.startswith(("ee key", "ca key", "ca md")):
            # OpenSSL finds a certificate too weak.
            key = chain
        raise ValueError(f"{key}: {words}") from error


# --- 3. Listening and accepting --------------------------------------------------------------


def listen(host: str, port: int) -> list[socket.socket]:
    """Return sockets that listen on the addresses of a host, all on one port. Raises OSError.

    Addresses that this machine can't listen on are left out, if there is another one.
    """
    listeners: list[socket.socket] = []
    errors: list[OSError] = []
    for address, family in find_addresses(host).items():
        try:
            listeners.append(open_listener(family, address, port))
        except OSError as error:
            errors.append(error)
        else:
            # If the port was 0, the system has chosen one.
            port = listeners[-1].getsockname()[1]

    for problem in errors:
        if not listeners or problem.errno not in ABSENT:
            close_all(listeners)
            raise problem
    return listeners


def find_addresses(host: str) -> dict[Any, int]:
    """Return the addresses of a host, with the family of each. Raises OSError."""
    names = [host]
    # `localhost` is this machine, by IPv4 and IPv6 (RFC 6761, section 6.3).
    if host.lower().removesuffix(".") == "localhost":
        names = ["127.0.0.1", "::1"]

    addresses: dict[Any, int] = {}
    for name in names:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        for family, _, _, _, address in found:
            addresses[address] = family
    return addresses


def open_listener(family: int, address: Any, port: int) -> socket.socket:
    """Return a socket that listens on an address. Raises OSError."""
    # create_server sets SO_REUSEADDR, so that a server can be restarted at once.
    return socket.create_server(
        # An IPv6 address is followed by its flow label and its zone.
        (address[0], port, *address[2:]),
        family=family,
        backlog=MAX_CONNECTIONS,
        # `::` stands for all addresses, those of IPv4, too.
        dualstack_ipv6=address[0] == "::",
    )


def close_all(listeners: list[socket.socket]) -> None:
    """Close sockets."""
    for listener in listeners:
        listener.close()


def accept_clients(listener: socket.socket, crew: Crew) -> None:
    """Accept clients for ever, and hand each one to a thread of the crew."""
    while True:
        try:
            accept_client(listener, crew)
        except (OSError, RuntimeError) as error:
            # The system has no more descriptors or threads for us until other clients leave.
            crew.shared.log.put_error("cannot accept", error)
            time.sleep(PAUSE)
        while active_count() > MAX_CONNECTIONS:
            time.sleep(PAUSE)


def accept_client(listener: socket.socket, crew: Crew) -> None:
    """Accept one client. Raises OSError or RuntimeError if there are too many."""
    raw, address = listener.accept()
    try:
        crew.hand_over(raw, address)
    except RuntimeError:
        raw.close()
        raise


class Crew:
    """The threads that serve clients, each of them one client at a time.

    Up to MIN_THREADS threads wait for the next client. That costs less than a new thread for
    each client. If all are busy, a new thread joins them.
    """

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.clients: SimpleQueue[tuple[socket.socket, Any]] = SimpleQueue()
        self.lock = Lock()  # guards the two numbers
        self.threads = 0
        self.busy = 0  # threads that serve a client, or are about to
        for _ in range(MIN_THREADS):
            self.add_thread()

    def add_thread(self) -> None:
        """Add a thread. Raises RuntimeError if there are too many."""
        start_thread(self.work)
        self.threads += 1

    def hand_over(self, raw: socket.socket, address: Any) -> None:
        """Have a thread serve a client. Raises RuntimeError if there are too many."""
        with self.lock:
            if self.busy == self.threads:
                self.add_thread()
            self.busy += 1
        self.clients.put((raw, address))

    def work(self) -> None:
        """Serve one client after the other. This is what each thread does."""
        while True:
            raw, address = self.clients.get()
            serve(raw, address, self.shared)
            with self.lock:
                self.busy -= 1
                if self.threads > MIN_THREADS:
                    self.threads -= 1
                    return


# --- 4. One client ---------------------------------------------------------------------------


def serve(raw: socket.socket, address: Any, shared: Shared) -> None:
    """Serve one client, from the first byte to the end of its connection."""
    peer = f"{address[0]} port {address[1]}"
    try:
        wait_for_hello(raw)
        connection = wrap(raw, shared.context)
    except OSError as error:
        raw.close()
        shared.log.put_error(f"{peer}: before a ClientHello", error)
        return

    # Outside of the inner block, an error means that the client has gone.
    with suppress(OSError), connection:
        try:
            shake_hands(connection)
            if shared.verbose:
                shared.log.put(f"{peer}: {describe_session(connection)}", sys.stderr)
            shared.log.put("accepted", sys.stdout)
            answer_lines(connection, shared.log)
            shared.log.put("closed", sys.stdout)
        except (OSError, ValueError) as error:
            shared.log.put_error(peer, error)
        close_politely(connection)


def wait_for_hello(raw: socket.socket) -> None:
    """Wait for the client's first byte. Raises OSError if there is none.

    A client that sends none is no TLS client: a load balancer's check, or a port scanner.
    """
    raw.settimeout(TIMEOUT)
    if not raw.recv(1, socket.MSG_PEEK):
        raise ConnectionError("the client left")


def wrap(raw: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Return a connection for TLS. Nothing is sent yet, and nothing is verified."""
    return context.wrap_socket(
        raw,
        server_side=True,
        do_handshake_on_connect=False,
        # A stream that is cut short must raise an error.
        suppress_ragged_eofs=False,
    )


def shake_hands(connection: ssl.SSLSocket) -> None:
    """Verify the client, and prove to the client who we are. Raises OSError if that fails.

    do_handshake makes OpenSSL check, with the settings from make_context, that

    - the client has the private key of its certificate;
    - a chain leads from this certificate to an anchor;
    - the certificate may be used by clients: if it has a keyUsage or an extendedKeyUsage,
      they allow it (clientAuth);
    - each certificate in the chain has a valid signature, is within its validity period, and
      keeps to the limits that the CAs above it set (such as pathlen and nameConstraints);
    - if the folder has a crl.pem: it has a list of each CA in the chain, the list has not
      expired, and no certificate is on it.

    If one of these fails, OpenSSL sends an alert, which hints at the reason. Our own error
    line gives it exactly.
    """
    connection.settimeout(TIMEOUT)
    connection.do_handshake()

    # Send each answer at once, not when the client has acknowledged the one before.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    # Acknowledge at once, too: a client without TCP_NODELAY may hold back its first line.
    if hasattr(socket, "TCP_QUICKACK"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def describe_session(connection: ssl.SSLSocket) -> str:
    """Return the session's cipher and the client's names."""
    cipher: Any = connection.cipher()
    certificate: Any = connection.getpeercert()
    names = [*certificate.get("subjectAltName", ())]
    for attributes in certificate["subject"]:
        names.extend(attributes)
    words = ", ".join(f"{kind}={name}" for kind, name in names)
    return f"{connection.version()}, {cipher[0]}, {words}"


def answer_lines(connection: ssl.SSLSocket, log: Log) -> None:
    """Answer one line after the other until the client's close_notify. Raises OSError."""
    unread = b""
    while True:
        line, unread = read_line(connection, unread)
        if not line:
            return

        # LF or CR LF ends a line.
        text = line.removesuffix(b"\n").removesuffix(b"\r")
        if not text and begins_with_http(unread):
            # An HTTP server ignores blank lines before a request (RFC 9112, section 2.2). This
            # one does if the request arrived with them.
            continue
        log.put(describe_line(text), sys.stdout)

        http_answer = answer_to_http(text)
        if http_answer:
            connection.sendall(http_answer)
            # It announces `Connection: close`. How the client leaves is no error.
            return
        if text == b"hola":
            line = b"hello\n"
        connection.sendall(line)


def read_line(connection: ssl.SSLSocket, unread: bytes) -> tuple[bytes, bytes]:
    """Return a line with its newline, and what was read after it. Raises OSError.

    After the client's close_notify, there is no line.
    """
    deadline = time.monotonic() + IDLE_TIMEOUT
    while b"\n" not in unread and len(unread) < MAX_LINE:
        connection.settimeout(time_left(deadline))
        data = connection.recv(MAX_LINE)
        if not data and unread:
            raise ConnectionError("a line cut short")
        if not data:
            return b"", b""
        unread += data
    connection.settimeout(IDLE_TIMEOUT)

    line, newline, rest = unread.partition(b"\n")
    if len(line) >= MAX_LINE:
        raise ConnectionError(f"a line longer than {MAX_LINE} bytes")
    return line + newline, rest


def time_left(deadline: float) -> float:
    """Return the seconds until a deadline. Raises TimeoutError after it."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("timed out")
    return seconds


def describe_line(text: bytes) -> str:
    """Return what is printed of a line. The beginning of a long one is enough."""
    # Bytes that are not UTF-8 become surrogates, which are escaped when they are printed. A
    # character has at most four bytes. To decode more than that would take too long.
    start = text[: 4 * MAX_SHOWN + 4].decode(errors="surrogateescape")
    if len(start) <= MAX_SHOWN:
        return f"read: [{start}]"
    shown = start[:MAX_SHOWN]
    more = len(text) - len(shown.encode(errors="surrogateescape"))
    return f"read: [{shown}] and {more} bytes more"


def begins_with_http(unread: bytes) -> bool:
    """Tell whether an HTTP request follows, after a few more blank lines at most."""
    found: Any = AFTER_BLANKS.match(unread)
    return answer_to_http(found[1].removesuffix(b"\r")) != b""


def answer_to_http(line: bytes) -> bytes:
    """Return the answer to an HTTP request line. It is empty if the line is none."""
    # What is in the middle of a long line does not matter. To search it would take too long.
    if len(line) > 200:
        line = line[:100] + line[-100:]
    if HTTP_REQUEST.fullmatch(line):
        # An answer to HEAD has no body (RFC 9110, section 9.3.2).
        if line.startswith(b"HEAD "):
            return HTTP_HEADER
        return HTTP_HEADER + b"hello\n"
    if HTTP_LOOKALIKE.fullmatch(line):
        return HTTP_ERROR
    return b""


def close_politely(connection: ssl.SSLSocket) -> None:
    """Close so that the client can read our last answer, or the alert. Raises OSError."""
    # Send close_notify, and don't wait for the client's. This fails after a failed handshake.
    connection.setblocking(False)
    with suppress(OSError, ValueError):
        connection.unwrap()

    # TLS ends here. From now on, recv returns what arrives by TCP: read until the client
    # closes. Closing with unread data would reset the connection, and a reset can destroy an
    # answer.
    connection.shutdown(socket.SHUT_WR)
    deadline = time.monotonic() + TIMEOUT
    connection.settimeout(TIMEOUT)
    while connection.recv(MAX_LINE):
        connection.settimeout(time_left(deadline))


# --- 5. Output -------------------------------------------------------------------------------


class Log:
    """Prints lines in a thread of its own, so that stalled output holds up no client."""

    def __init__(self) -> None:
        self.lines: Queue[tuple[str, TextIO | None] | None] = Queue(MAX_UNPRINTED)
        self.loses_lines = Event()
        self.thread = Thread(target=self.work, daemon=True)
        self.thread.start()

    def put(self, text: str, stream: TextIO | None) -> None:
        """Have a line printed. If that is not possible for a while, the line is lost."""
        patience = PATIENCE
        if self.loses_lines.is_set():
            patience = 0
        try:
            self.lines.put((text, stream), timeout=patience)
        except Full:
            self.loses_lines.set()

    def put_error(self, what: str, error: Exception) -> None:
        """Have an error line printed."""
        self.put(error_line(what, error), sys.stderr)

    def work(self) -> None:
        """Print one line after the other. This is what the thread does."""
        complained = False
        while line := self.lines.get():
            try:
                say(*line)
            except OSError as error:
                # Go on serving. Complain once, and not for every line.
                if not complained:
                    complain("cannot print", error)
                complained = True
            if self.loses_lines.is_set():
                self.loses_lines.clear()
                complain("lines are lost", TimeoutError("they are not read in time"))

    def finish(self) -> None:
        """Wait until all lines are printed, or for a moment if they can't be."""
        with suppress(Full):
            self.lines.put(None, timeout=PAUSE)
        self.thread.join(PAUSE)


def complain(what: str, error: Exception) -> None:
    """Print an error line at once."""
    with suppress(OSError):
        say(error_line(what, error), sys.stderr)


def warn(text: str) -> None:
    """Print a warning at once."""
    with suppress(OSError):
        say(f"simple_https_server.py: warning: {text}", sys.stderr)


def error_line(what: str, error: Exception) -> str:
    """Return the line that reports an error."""
    return f"simple_https_server.py: error: {what}: {describe_error(error)}"


def describe_error(error: Exception) -> str:
    """Return the words of OpenSSL or the system for an error, without its codes.

    For example, `[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca (_ssl.c:2580)` becomes
    `alert unknown ca`.
    """
    # An error of our own may begin with the name of a folder that looks like a code.
    if not isinstance(error, OSError):
        return str(error)

    words = re.sub(r"^\[[^]]*\] ", "", str(error))
    words = re.sub(r" ?\(?_ssl\.c:\d+[):] ?", "", words)
    # Some alerts lack the word, such as `tlsv1 unrecognized name`.
    words = re.sub("^(sslv3|tlsv1|tlsv13|ssl/tls) (alert )?", "alert ", words)
    if words == "internal error":
        return "OpenSSL can't use what the peer sent (internal error)"
    return words or "end of input"


def say(text: str, stream: TextIO | None) -> None:
    """Print a line, and escape what is not printable: a peer must not forge lines.

    Raises OSError if it can't be printed.
    """
    # Python has no stream if it was closed when the script started.
    if stream is None:
        return
    if not text.isprintable():
        text = escape(text)

    # The stream's encoding may lack characters that a peer sends.
    text = text.encode(stream.encoding, "backslashreplace").decode(stream.encoding)

    # The newline is part of the text, so that lines of several threads don't mix.
    print(text + "\n", end="", file=stream, flush=True)


def escape(text: str) -> str:
    """Return a text with codes, such as \\x1b, for what is not printable.

    A backslash of the text is doubled beside them. In a text without codes, it is not: what a
    peer has typed may look like a code.
    """
    # repr does so, and is fast. Split what is between its quotation marks at the text's own
    # backslashes.
    parts = repr(text)[1:-1].split("\\\\")
    # A byte that is not UTF-8 was decoded as a surrogate, such as FF as U+DCFF.
    return "\\\\".join(part.replace("\\udc", "\\x") for part in parts)


if __name__ == "__main__":
    arguments = parse_arguments()
    try:
        # Threads may still serve clients. This ends them.
        os._exit(main(arguments))
    except KeyboardInterrupt:
        os._exit(130)
    except SystemExit:
        # Python would wait for a standard error that nothing reads.
        os._exit(0)
