#!/usr/bin/env python3
"""Create the CA hierarchy that a YAML file defines, as a folder of PEM files.

One rule covers every run: walk the hierarchy from the top, keep what is there, make what is
missing, verify everything. The keys folder is the only state.

The script reads as a run goes:

    main         (at the end) reads command line and configuration, and locks the keys folder
    walk         settles the CAs from the root down, then the nodes, which need the CAs' lists
    settle       settles one entry in ten steps, from reading its folder (a new entry gets a
                 key) to writing its files
    certify      signs a certificate: a root's with its own key, any other with its issuer's
    settle_list  keeps a CA's revocation list, or signs the next one
    Verifier     has OpenSSL verify every certificate, with the revocation lists: the first one
                 below each CA as far as the trust anchor, later ones as far as that CA

What a folder keys/NAME holds:

    key.pem        the private key
    sign           a CA: a program that signs, in place of key.pem; public.pem has its key
    csr.pem        a signing request, when the issuer's key is on another machine
    cert.pem       the certificate
    issued/        a CA: a copy of every certificate that it signed
    cross.pem      a root: its certificate from a higher CA, put there by a person
    crl.pem        a CA: its own revocation list; a node: those of its anchors and of all CAs
                   below them
    fullchain.pem  cert.pem and its issuers, without the trust anchor
    ca.pem         the anchors that it trusts

The words used throughout:

    entry          what the configuration says about one CA or node
    settle         bring an entry's folder in line with the configuration, and verify it
    task           the work on one entry: entry, folder, signer, and the issuer's authority
    signer         an entry's private key, opened when it is first needed
    authority      what a CA hands down to the entries below it: chain, lists, signer, verifier
    list           a certificate revocation list (RFC 5280, section 5)
    record         a CA's folder issued/
    anchor         a trust anchor: the self-signed certificate at the top of a chain
    bundle         a node's ca.pem or crl.pem, in which each CA that it trusts has a part
"""

from __future__ import annotations

try:
    import os
    import signal
    import sys
except KeyboardInterrupt:
    raise SystemExit(130) from None

SCRIPT = "simple_key_generation.py"

# Until main() takes over, this ends the script quietly on Ctrl-C. A shell's background job
# ignores the signal, and still does.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, lambda _signal, _frame: os._exit(130))

try:
    import argparse
    import base64
    import errno
    import fcntl
    import getpass
    import hashlib
    import ipaddress
    import re
    import shutil
    import string
    import time
    import unicodedata
    import warnings
    from collections import Counter
    from collections.abc import (
        Callable,
        Collection,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )
    from contextlib import contextmanager, suppress
    from datetime import datetime, timedelta, timezone
    from functools import cache, partial
    from pathlib import Path
    from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar, cast

    import cryptography
    import OpenSSL
    import yaml
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
    from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID
    from OpenSSL import crypto
    from yaml import CSafeLoader

    # Older releases can be imported, and fail later on, where the reason is hard to see.
    for package, oldest in ((cryptography, 43), (OpenSSL, 25)):
        if int(package.__version__.partition(".")[0]) < oldest:
            raise ImportError(f"{package.__name__} {package.__version__} is too old")
except Exception as error:
    # Not only ImportError: releases that don't fit together raise all kinds of errors.
    advice = "run it with .venv/bin/python, or pip install -r requirements.txt for this Python"
    if "CSafeLoader" in str(error):
        advice = "this PyYAML lacks libyaml: apt-get install libyaml-dev, then "
        advice += "pip install --force-reinstall --no-cache-dir PyYAML"
    reason = " ".join(str(error).split()) or type(error).__name__
    sys.exit(f"{SCRIPT}: error: {reason}: {advice}")

if TYPE_CHECKING:
    from concurrent.futures import Future
    from subprocess import Popen
    from typing import IO

    from cryptography.hazmat.primitives.asymmetric import types

    PrivateKey = types.CertificateIssuerPrivateKeyTypes
    PublicKey = types.CertificateIssuerPublicKeyTypes
    Digest = hashes.SHA256 | hashes.SHA384 | hashes.SHA512
    RevocationList = x509.CertificateRevocationList


# --- 1. Types --------------------------------------------------------------------------------


class Entry(NamedTuple):
    """What the configuration says about one CA or node."""

    name: str
    where: str  # its place in the file, such as sros_config.yml: keys.nodes.server
    is_ca: bool
    issuer: str | None  # None: self-signed
    trust: tuple[str, ...]  # the anchors that a node verifies its peers by; a CA: its anchor
    key_type: str  # such as ec:prime256v1
    digest: str  # what its key signs with, if the key type leaves a choice
    passphrase: str | None  # the environment variable; None: the key is not encrypted
    subject: x509.Name
    not_before: datetime
    not_after: datetime
    next_update: datetime | None  # when a CA's list ends; None: when the CA does
    extensions: tuple[Extension, ...]


class Extension(NamedTuple):
    """One extension of an entry (RFC 5280, section 4.2)."""

    oid: x509.ObjectIdentifier
    critical: bool
    value: x509.ExtensionType | None  # None: a key identifier, made from a key


class Folder(NamedTuple):
    """What an entry's folder holds when its turn comes."""

    path: str
    file_names: frozenset[str]
    key_pem: bytes | None  # None: the key is elsewhere
    certificate: x509.Certificate | None
    request: Request | None
    record: frozenset[str]  # file names in issued/

    def is_new(self) -> bool:
        """Tell whether there is no folder yet, or an empty one."""
        return not self.file_names


class Request(NamedTuple):
    """The parts of a signing request that count. The script ignores the rest."""

    public_key: object
    fingerprint: str  # the SHA-256 of that key, as it is written in the request
    is_sound: bool  # signed by that key; RSA-PSS keys, which cryptography misreads, are not


class Task(NamedTuple):
    """What the steps of one entry work on."""

    run: Run
    entry: Entry
    folder: Folder
    signer: Signer
    above: Authority | None  # the issuer's; None: the entry signs itself
    trusted: Trusted | None  # what a node verifies its peers by; None: a CA


class Authority(NamedTuple):
    """What a CA hands down to the entries below it."""

    path: str
    chain: tuple[x509.Certificate, ...]  # the CA's certificate, its issuers, last the anchor
    not_after: datetime  # the earliest end in the chain
    key_identifier: x509.AuthorityKeyIdentifier
    lists: tuple[RevocationList, ...]  # its own, then its issuers'; OpenSSL needs all or none
    revoked: frozenset[int]  # the serial numbers on its own list
    signer: Signer
    verifier: Verifier
    record: set[str]  # file names in issued/; grows as the CA signs

    # What the folders hold, as PEM; empty if there is no such thing.
    intermediates_pem: bytes  # the chain without the anchor
    anchor_pem: bytes
    cross_pem: bytes | None  # None: it can't be read; the folders keep what they have
    own_list_pem: bytes


class Trusted(NamedTuple):
    """What the nodes that trust the same anchors verify their peers by."""

    anchors: Bundle  # ca.pem
    lists: Bundle  # crl.pem: the lists of the anchors and of all CAs below them


class Bundle(NamedTuple):
    """The parts of a node's ca.pem or crl.pem."""

    file_name: str
    parts: tuple[Part, ...]
    pem: bytes  # all parts, one after the other
    is_complete: bool  # False: a CA failed, and its part stays as each file has it
    updates: dict[bytes, Update]  # by what a file holds; grows as files are read


class Part(NamedTuple):
    """What one CA contributes to a bundle."""

    name: str
    certificate: x509.Certificate  # tells which part of an older file came from this CA
    pem: bytes  # its certificate or its list; empty: the CA is not, or no longer, trusted


class Update(NamedTuple):
    """What becomes of a bundle that is not up to date."""

    pem: bytes
    new: tuple[str, ...]  # the CAs from which it had no part


class Outcome(NamedTuple):
    """What became of an entry."""

    state: str  # made, kept, renewed, revoked, failed, left alone, or forgotten
    line: str = ""  # its line of the tree, if it has one; with --json, its object
    problems: tuple[Problem, ...] = ()
    error: Problem | None = None  # what ended it
    authority: Authority | None = None  # None: a node, or a CA that failed early
    list_part: Part | None = None  # a CA's list for the nodes, once it is on disk
    blocked_by: str | None = None  # the entry because of which nothing below can be made
    written: tuple[str, ...] = ()  # the paths of the files that were written


class Problem(NamedTuple):
    """An error or a warning, in one line: what is wrong, where, and what to do."""

    kind: str  # "error" or "warning"
    text: str


class Run(NamedTuple):
    """What all entries share."""

    keys: str  # the path of the keys folder
    entries: Sequence[Entry]  # in the order of the tree
    present: datetime
    now: datetime  # a second before the present; by it, what is made now has begun
    verify_at: datetime | None  # None: OpenSSL goes by the system's clock
    orders: Orders
    phrases: Phrases
    programs: Programs
    new_keys: Mapping[str, Future[PrivateKey]]  # by entry: keys that are being made ahead
    disk: Disk
    as_json: bool
    copies: tuple[ListFile, ...]  # every crl.pem there is, to restore a lost one from


class Orders(NamedTuple):
    """What the command line asks for."""

    renew: frozenset[str]
    renew_due: bool  # --renew without names
    revoke: frozenset[str]
    reason: str


class Fault(Exception):
    """What is wrong, where, and what to do, in one line. It ends one entry: exit status 1."""


class ConfigurationError(Fault):
    """A fault of the configuration or the command line: exit status 2, nothing is written."""


# What cryptography raises for what it can't read, make or verify.
INVALID = (
    ValueError,
    OverflowError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
# Errors that end one entry, and do not stop the others.
ENTRY_ERRORS = (Fault, OSError, *INVALID)


# --- 2. The walk -----------------------------------------------------------------------------


def walk(run: Run, report: Report) -> None:
    """Settle all entries, and report them in the order of the tree."""
    outcomes: dict[str, Outcome] = {}
    left_alone: Counter[str] = Counter()

    # First every CA, from the root down.
    for entry in run.entries:
        if entry.is_ca:
            outcomes[entry.name] = take_turn(run, entry, outcomes, None)
    fail_ambiguous_lists(run, outcomes)
    trusted = trusted_by_nodes(run, outcomes)

    # Then every node. The output is in the order of the tree, so each CA's outcome has waited.
    # A node's outcome is not kept, as there may be thousands.
    for number, entry in enumerate(run.entries, 1):
        outcome = outcomes.get(entry.name)
        if outcome is None:
            kin = (entry.issuer, entry.trust)
            outcome = take_turn(run, entry, outcomes, trusted[kin])
        if run.as_json:
            line = json_line(run, entry.name, entry.issuer, entry.is_ca, outcome)
            outcome = outcome._replace(line=line)
        report.outcome(outcome, number, len(run.entries))
        if outcome.state == "left alone":
            left_alone[str(outcome.blocked_by)] += 1

    # Last, the problems that concern several entries, or none.
    report.problems(not_called_problems(run))
    report.problems(left_alone_problems(run, left_alone))
    for outcome in forgotten_folders(run, outcomes):
        report.outcome(outcome, len(run.entries), len(run.entries))
    report.problems(new_cas(run, trusted.values()))


def not_called_problems(run: Run) -> Iterator[Problem]:
    """Yield a warning for each program that would sign if this weren't a dry run."""
    for path in sorted(run.programs.not_called):
        text = f"{path}: -n does not call it, and does not verify what it would sign"
        yield Problem("warning", text)


def left_alone_problems(run: Run, left_alone: Mapping[str, int]) -> Iterator[Problem]:
    """Yield a line for each CA below which entries were left alone."""
    for name, count in left_alone.items():
        text = f"{run.keys}: left alone: {count} below {name}, which failed or is revoked"
        if name in run.orders.revoke:
            yield Problem("warning", text)
        else:
            yield Problem("error", text)


def take_turn(
    run: Run, entry: Entry, outcomes: Mapping[str, Outcome], trusted: Trusted | None
) -> Outcome:
    """Settle an entry or leave it alone, and note what was written."""
    run.disk.written.clear()
    outcome = settle_or_leave_alone(run, entry, outcomes, trusted)
    return outcome._replace(written=tuple(run.disk.written))


def settle_or_leave_alone(
    run: Run, entry: Entry, outcomes: Mapping[str, Outcome], trusted: Trusted | None
) -> Outcome:
    """Settle an entry, unless its issuer has failed or is revoked."""
    if entry.issuer is None:
        return settle(run, entry, None, trusted)
    issuer = outcomes[entry.issuer]
    if issuer.blocked_by is None:
        return settle(run, entry, issuer.authority, trusted)

    if not can_go_on(run, entry, issuer):
        return leave_alone(run, entry, issuer, trusted)
    # As a rule, the entry's chain now fails to verify, and the issuer's error line says why.
    outcome = settle(run, entry, issuer.authority, trusted)
    if outcome.blocked_by is None:
        return outcome
    return outcome._replace(
        state="left alone", line="", error=None, blocked_by=issuer.blocked_by
    )


def can_go_on(run: Run, entry: Entry, issuer: Outcome) -> bool:
    """Tell whether a CA that failed has its list on disk, and the entry a certificate."""
    # A newer list that could not be written here must not be written elsewhere.
    if issuer.authority is None or not issuer.authority.lists or issuer.list_part is None:
        return False
    return os.path.exists(os.path.join(run.keys, entry.name, "cert.pem"))


def leave_alone(run: Run, entry: Entry, issuer: Outcome, trusted: Trusted | None) -> Outcome:
    """Leave an entry alone, but for revocation lists and anchors.

    A CA's own list needs nothing from above: revocations get through, whatever is wrong there.
    """
    problems: list[Problem] = []
    list_part = None
    try:
        task = look_at_folder(run, entry)
        if trusted is not None:
            spread(run.disk, task.folder, trusted)
        elif task.folder.certificate is not None:
            list_part = settle_list_alone(task, task.folder.certificate, problems)
    except ENTRY_ERRORS as error:
        problems.append(problem_of(error, os.path.join(run.keys, entry.name)))
    return Outcome(
        "left alone",
        problems=tuple(problems),
        list_part=list_part,
        blocked_by=issuer.blocked_by,
    )


def settle_list_alone(
    task: Task, ca: x509.Certificate, problems: list[Problem]
) -> Part | None:
    """Settle and write the list of a CA that is left alone. Raises Fault, OSError."""
    check_ca(f"{task.folder.path}/cert.pem", ca)
    own_list = settle_list(task, ca, problems)
    if own_list is None:
        return None
    pem = to_pem(own_list)
    task.run.disk.update(task.folder.path, task.folder.file_names, {"crl.pem": pem})
    return Part(task.entry.name, ca, pem)


def look_at_folder(run: Run, entry: Entry) -> Task:
    """Return the task of an entry, as if it had no issuer. Raises Fault, OSError."""
    folder = read_folder(os.path.join(run.keys, entry.name))
    signer = Signer(entry, run.phrases, f"{folder.path}/key.pem", folder.key_pem, None)
    # exists: sign may be a link to a USB stick, too.
    if os.path.exists(f"{folder.path}/sign"):
        key = program_key(run, entry, folder)
        signer = Signer(entry, run.phrases, key.path, None, cast("PrivateKey", key))
    return Task(run, entry, folder, signer, None, None)


# --- 3. One entry ----------------------------------------------------------------------------


class Draft(NamedTuple):
    """An entry's certificate, before it is verified."""

    certificate: x509.Certificate
    state: str  # made, kept or renewed
    is_compared: bool  # with its key; False: the pass phrase was not at hand


def settle(
    run: Run, entry: Entry, above: Authority | None, trusted: Trusted | None
) -> Outcome:
    """Bring one entry's folder in line with the configuration, and verify it.

    (1) Look at the folder; a new one gets a key.   (6) Spread new lists and anchors.
    (2) Certify the key, if it has no certificate.  (7) Refuse a revoked certificate.
    (3) Match certificate, key and request.         (8) Verify the chain with OpenSSL.
    (4) Renew the certificate, if ordered.          (9) Compare with the configuration.
    (5) Settle a CA's own list, and hand it down.  (10) Write what is new.

    `above` is the issuer's authority, or None for an entry that signs itself. `trusted` is
    what a node verifies its peers by, or None for a CA.
    """
    problems: list[Problem] = []
    own = None
    try:
        task = look(run, entry)._replace(above=above, trusted=trusted)
        draft = obtain_certificate(task, problems)
        if entry.is_ca:
            own = hand_down(task, draft.certificate, problems)
        state = verify_and_write(task, draft, own, problems)
        outcome = Outcome(state, tree_line(task, draft, state, own))
    except ENTRY_ERRORS as error:
        problem = problem_of(error, os.path.join(run.keys, entry.name))
        outcome = Outcome("failed", error=problem)

    blocked_by = None
    if outcome.state in ("failed", "revoked"):
        blocked_by = entry.name
    return outcome._replace(
        problems=tuple(problems),
        authority=own,
        list_part=list_on_disk(run, entry, own),
        blocked_by=blocked_by,
    )


def list_on_disk(run: Run, entry: Entry, own: Authority | None) -> Part | None:
    """Return a CA's list for the nodes; None if it could not be written to disk."""
    if own is None or not own.own_list_pem:
        return None
    with suppress(OSError):
        if run.disk.read(f"{own.path}/crl.pem") == own.own_list_pem:
            return Part(entry.name, own.chain[0], own.own_list_pem)
    return None


def look(run: Run, entry: Entry) -> Task:
    """Take step (1). Raises Fault, OSError."""
    # (1) Look. The key of a new folder is made here, and written in step (10).
    task = look_at_folder(run, entry)
    if task.folder.is_new():
        task = task._replace(signer=make_key(run, entry, task.folder))
    return task


def obtain_certificate(task: Task, problems: list[Problem]) -> Draft:
    """Take the steps (2) to (4). Raises Fault, OSError."""
    # (2) Certify, unless there is a certificate.
    certificate = task.folder.certificate
    state = "kept"
    if certificate is None:
        certificate = first_certificate(task)
        state = "made"

    # (3) Match: the certificate, the key and the request must belong together.
    is_compared = not task.signer.is_locked()
    for problem in match(task, certificate):
        problems.append(problem)

    # (4) Renew. If that fails, the old certificate stays in force.
    if state == "kept" and must_renew(task, certificate):
        try:
            certificate = renewed_certificate(task, certificate)
            state = "renewed"
        except ENTRY_ERRORS as error:
            problems.append(problem_of(error, task.folder.path))

    if task.entry.is_ca:
        check_ca(f"{task.folder.path}/cert.pem", certificate)
        check_path_length(task, f"{task.folder.path}/cert.pem", certificate)
    return Draft(certificate, state, is_compared)


def hand_down(task: Task, certificate: x509.Certificate, problems: list[Problem]) -> Authority:
    """Take step (5), and return what a CA hands down. Raises Fault, OSError."""
    # (5) Settle the CA's list: keep, extend, refresh or begin it.
    own_list = settle_list(task, certificate, problems)

    above = task.above
    cert_pem = to_pem(certificate)
    chain = [certificate]
    not_after = certificate.not_valid_after_utc
    if above is None:
        intermediates_pem = b""
        anchor_pem = cert_pem
        cross_pem = read_cross(task, certificate, problems)
    else:
        chain.extend(above.chain)
        not_after = min(not_after, above.not_after)
        intermediates_pem = cert_pem + above.intermediates_pem
        anchor_pem = above.anchor_pem
        cross_pem = above.cross_pem

    lists = lists_of_chain(own_list, above)
    return Authority(
        path=task.folder.path,
        chain=tuple(chain),
        not_after=not_after,
        key_identifier=key_identifier(certificate),
        lists=lists,
        revoked=serial_numbers(own_list),
        signer=task.signer,
        verifier=Verifier(task.entry.name, tuple(chain), lists, task.run.verify_at),
        record=set(task.folder.record),
        intermediates_pem=intermediates_pem,
        anchor_pem=anchor_pem,
        cross_pem=cross_pem,
        own_list_pem=to_pem(own_list),
    )


def lists_of_chain(
    own_list: RevocationList | None, above: Authority | None
) -> tuple[RevocationList, ...]:
    """Return the lists of a CA and of all CAs above it; none at all if one is missing."""
    if own_list is None:
        return ()
    if above is None:
        return (own_list,)
    if not above.lists:
        return ()
    return (own_list, *above.lists)


def verify_and_write(
    task: Task, draft: Draft, own: Authority | None, problems: list[Problem]
) -> str:
    """Take the steps (6) to (10), and return the entry's state. Raises Fault, OSError."""
    folder = task.folder
    path = f"{folder.path}/cert.pem"
    # A root is its own issuer.
    issuer = cast(Authority, task.above or own)

    # (6) Spread: what is newer replaces what is there, even if a later step fails. A folder's
    # first list waits for step (10).
    if task.trusted is not None:
        spread(task.run.disk, folder, task.trusted)
    elif own is not None and own.own_list_pem and "crl.pem" in folder.file_names:
        files = {"crl.pem": own.own_list_pem}
        task.run.disk.update(folder.path, folder.file_names, files)

    # (7) Refuse a revoked certificate, unless this run was ordered to revoke it.
    if is_revoked(task, draft.certificate):
        if task.entry.name in task.run.orders.revoke:
            return "revoked"
        raise Fault(f"{path}: certificate revoked: rm -r {folder.path}, and run again")

    # (8) Verify: no certificate is written unless OpenSSL accepts its chain.
    issuer.verifier.verify(path, draft.certificate)

    # (9) Compare, unless everything is new.
    if not folder.is_new():
        for problem in compare(task, draft):
            problems.append(problem)

    # (10) Write. The record comes first, so that whatever is in use can be revoked.
    files = files_for_peers(task, own)
    if task.above is not None:
        add_to_record(task, task.above, draft.certificate)
    elif draft.state == "renewed" and folder.certificate is not None:
        add_to_record(task, issuer, folder.certificate)
    write(task, draft, issuer, files)
    return draft.state


def files_for_peers(task: Task, own: Authority | None) -> dict[str, bytes]:
    """Return ca.pem and crl.pem: of a CA, both; of a node, what is missing. Raises Fault."""
    files: dict[str, bytes] = {}
    if own is not None:
        files["ca.pem"] = own.anchor_pem
        if own.own_list_pem:
            files["crl.pem"] = own.own_list_pem
        return files

    issuer = cast(Authority, task.above)
    trusted = cast(Trusted, task.trusted)
    bundles = [trusted.anchors]
    # Without the list of one of its CAs, a node with a crl.pem would refuse all their nodes.
    if issuer.lists or not trusts(trusted.anchors, issuer.chain[-1]):
        bundles.append(trusted.lists)
    for bundle in bundles:
        if bundle.file_name in task.folder.file_names:
            continue
        if not bundle.pem:
            where = f"{task.folder.path}/{bundle.file_name}"
            advice = f"mend {' or '.join(task.entry.trust)} first"
            raise Fault(f"{where}: can't be made: {advice}")
        files[bundle.file_name] = bundle.pem
    return files


def write(
    task: Task, draft: Draft, issuer: Authority, files_for_peers: Mapping[str, bytes]
) -> None:
    """Write what is new or differs. Raises OSError."""
    cert_pem = to_pem(draft.certificate)
    is_used_up = request_is_used_up(task, draft)
    files: dict[str, bytes] = {}
    if task.folder.is_new():
        files["key.pem"] = task.signer.pem or b""
    if draft.state != "kept":
        files["cert.pem"] = cert_pem
    fullchain = cert_pem + issuer.intermediates_pem
    if issuer.cross_pem is not None:
        files["fullchain.pem"] = fullchain + issuer.cross_pem
    elif not begins_with(task.folder, "fullchain.pem", fullchain):
        files["fullchain.pem"] = fullchain
    files.update(files_for_peers)
    task.run.disk.update(task.folder.path, task.folder.file_names, files)

    if is_used_up:
        task.run.disk.remove(f"{task.folder.path}/csr.pem")


def request_is_used_up(task: Task, draft: Draft) -> bool:
    """Tell whether a request that an earlier --renew left has served its purpose."""
    folder = task.folder
    if folder.request is None or not task.signer.is_here():
        return False
    if draft.state == "renewed":
        return True

    # Somebody may have put the new certificate there. fullchain.pem still has the old one.
    before = None
    with suppress(Fault, OSError):
        before = load_certificate(f"{folder.path}/fullchain.pem")
    if before is None or before == draft.certificate:
        return False
    return before.public_key() == draft.certificate.public_key()


def begins_with(folder: Folder, name: str, data: bytes) -> bool:
    """Tell whether a file is there, and begins with some data. Raises OSError."""
    if name not in folder.file_names:
        return False
    return read_file(f"{folder.path}/{name}").startswith(data)


def add_to_record(task: Task, issuer: Authority, certificate: x509.Certificate) -> None:
    """Add a certificate to its issuer's record, unless it is there already. Raises OSError."""
    file_name = f"{task.entry.name}-{certificate.serial_number:X}.pem"
    if file_name not in issuer.record:
        files = {file_name: to_pem(certificate)}
        task.run.disk.update(f"{issuer.path}/issued", issuer.record, files)
        issuer.record.add(file_name)


def tree_line(task: Task, draft: Draft, state: str, own: Authority | None) -> str:
    """Return an entry's line of the tree, indented by its depth."""
    depth = 0
    if task.above is not None:
        depth = len(task.above.chain)
    name = "  " * depth + task.entry.name
    key = key_type(draft.certificate.public_key())
    by = task.entry.issuer or "itself"
    ends = draft.certificate.not_valid_after_utc

    notes = ""
    if state in ("made", "renewed") and ends < task.entry.not_after:
        notes += f", with {by}"
    if own is not None and own.revoked:
        notes += f", {len(own.revoked)} revoked"
    if not task.signer.is_here():
        notes += ", key elsewhere"
    elif not draft.is_compared:
        notes += ", key not compared"
    if state in ("made", "renewed") and task.folder.request is not None:
        notes += f", SHA-256 of its key: {task.folder.request.fingerprint}"
    return f"{name:16}  {state:7}  {key:13}  by {by:10}  until {ends.date()}{notes}"


# --- 4. Certificates -------------------------------------------------------------------------


def first_certificate(task: Task) -> x509.Certificate:
    """Certify the key in a request or, without one, the entry's own. Raises Fault, OSError."""
    folder = task.folder
    if folder.request is not None:
        return certify(task, requested_key(folder.path, folder.request))
    if not task.signer.is_here():
        advice = f"put one there, or rm -r {folder.path}"
        raise Fault(f"{folder.path}: no key.pem or csr.pem: {advice}")
    return certify(task, task.signer.open().public_key())


def must_renew(task: Task, certificate: x509.Certificate) -> bool:
    """Tell whether a new certificate is ordered. A revoked one is never renewed."""
    if is_revoked(task, certificate):
        return False
    if task.entry.name in task.run.orders.renew:
        return True
    # Below what has expired, nothing can be renewed. The error line of that one says so.
    if task.above is not None and task.above.not_after <= task.run.now:
        return False
    return task.run.orders.renew_due and is_due(task.run, certificate)


def renewed_certificate(task: Task, certificate: x509.Certificate) -> x509.Certificate:
    """Return a new certificate for the same key. Raises Fault, OSError."""
    path = f"{task.folder.path}/cert.pem"
    if task.entry.is_ca:
        if comparable(certificate.subject) != comparable(task.entry.subject):
            name = certificate.subject.rfc4514_string()
            why = f"its children name its subject, so {task.entry.where} must say it: {name}"
            raise Fault(f"{path}: can't be renewed: {why}")
        refuse_if_serial_is_named(task, certificate)

    renewed = certify(task, certificate.public_key())
    if task.above is not None:
        task.above.verifier.verify(path, renewed)
    return renewed


def refuse_if_serial_is_named(task: Task, ca: x509.Certificate) -> None:
    """Raise Fault if anything below a CA names its serial number. Raises OSError.

    Other software may put issuer and serial number into an authorityKeyIdentifier. Such a
    certificate would not verify below a renewed CA, which has a new serial number.
    """
    revoked = serial_numbers(newest_list(task, ca))
    for name, path in certificates_below(task):
        certificate = load_certificate(path)
        named = extension_of(certificate, x509.AuthorityKeyIdentifier)
        if named is None or named.authority_cert_serial_number != ca.serial_number:
            continue
        is_over = certificate.not_valid_after_utc <= task.run.now
        if not is_over and certificate.serial_number not in revoked:
            why = f"{path} names its serial number: --renew or --revoke {name} first"
            raise Fault(f"{task.folder.path}/cert.pem: can't be renewed: {why}")


def certificates_below(task: Task) -> Iterator[tuple[str, str]]:
    """Yield the name and the path of each certificate in use that a CA has signed."""
    found = set()
    for entry in task.run.entries:
        path = os.path.join(task.run.keys, entry.name, "cert.pem")
        if entry.issuer == task.entry.name and os.path.exists(path):
            found.add(entry.name)
            yield entry.name, path
    # The record has earlier ones, too. They matter where there is no folder.
    for file_name in sorted(task.folder.record):
        name, _, _ = file_name.rpartition("-")
        if name not in found and name != task.entry.name:
            yield name, f"{task.folder.path}/issued/{file_name}"


def certify(task: Task, key: object) -> x509.Certificate:
    """Certify a key, unless it is weak or was revoked. Raises Fault, OSError.

    If the issuer's key is elsewhere, a signing request is left for it in the folder.
    """
    path = f"{task.folder.path}/key.pem"
    if task.folder.request is not None:
        path = f"{task.folder.path}/csr.pem"
    check_key(path, key)
    public_key = cast("PublicKey", key)
    check_dates(task.entry, task.run)

    signer = task.signer
    if task.above is not None:
        if task.above.not_after <= task.run.now:
            why = "a certificate above it has expired: --renew that one first"
            raise Fault(f"{task.folder.path}/cert.pem: can't be made anew: {why}")
        refuse_revoked_key(task, public_key, task.above)
        signer = task.above.signer

    if not signer.is_here():
        raise_for_request(task, signer)
    return sign_certificate(task, public_key, signer)


def check_dates(entry: Entry, run: Run) -> None:
    """Raise Fault for a date in the configuration that has become wrong with time."""
    if entry.not_after <= run.now:
        date = entry.not_after.date()
        raise Fault(
            f"{entry.where}.validity.notAfter: {date} has passed: give it a later date"
        )
    if entry.not_before > run.present:
        date = entry.not_before.date()
        raise Fault(
            f"{entry.where}.validity.notBefore: {date} is in the future: "
            "set the clock, or give it an earlier date"
        )


def sign_certificate(task: Task, public_key: PublicKey, signer: Signer) -> x509.Certificate:
    """Return a new certificate, signed with the issuer's key (RFC 5280, section 4.1)."""
    entry = task.entry
    subject = entry.subject
    # A renewed CA keeps what others name it by: its subject as it is encoded, here, and its
    # subjectKeyIdentifier, in value_for.
    if entry.is_ca and task.folder.certificate is not None:
        subject = task.folder.certificate.subject
    issuer = subject
    not_after = entry.not_after
    if task.above is not None:
        issuer = task.above.chain[0].subject
        # No certificate outlives its issuers.
        not_after = min(not_after, task.above.not_after)

    builder = (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(entry.not_before)
        .not_valid_after(not_after)
    )
    for extension in entry.extensions:
        value = value_for(task, extension, public_key)
        builder = builder.add_extension(value, extension.critical)
    return builder.sign(signer.open(), signer.digest())


def value_for(task: Task, extension: Extension, public_key: PublicKey) -> x509.ExtensionType:
    """Return an extension's value. A key identifier is made from the key that it names."""
    if extension.value is not None:
        return extension.value
    if extension.oid == x509.SubjectKeyIdentifier.oid:
        # A renewed CA keeps the one that its children name.
        before = None
        if task.entry.is_ca and task.folder.certificate is not None:
            before = extension_of(task.folder.certificate, x509.SubjectKeyIdentifier)
        if before is not None:
            return before
        return x509.SubjectKeyIdentifier.from_public_key(public_key)
    if task.above is None:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(public_key)
    return task.above.key_identifier


def subject_key_identifier(ca: x509.Certificate) -> x509.SubjectKeyIdentifier:
    """Return a CA's subjectKeyIdentifier (RFC 5280, section 4.2.1.2), which check_ca wants."""
    return ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value


def key_identifier(ca: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """Return the authorityKeyIdentifier of all that a CA signs (RFC 5280, 4.2.1.1)."""
    own = subject_key_identifier(ca)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def raise_for_request(task: Task, issuer: Signer) -> NoReturn:
    """Leave a request (RFC 2986), as the issuer's key is elsewhere. Raises Fault, OSError."""
    folder = task.folder
    if folder.request is None and not task.signer.is_here():
        raise Fault(f"{folder.path}/cert.pem: can't be renewed: that needs {issuer.path}")

    if folder.request is None:
        builder = x509.CertificateSigningRequestBuilder().subject_name(task.entry.subject)
        request = builder.sign(task.signer.open(), task.signer.digest())
        files = {"csr.pem": to_pem(request)}
        if folder.is_new():
            files["key.pem"] = task.signer.pem or b""
        task.run.disk.update(folder.path, folder.file_names, files)
    advice = (
        f"have {os.path.dirname(issuer.path)} sign it, put cert.pem beside it, and run again"
    )
    raise Fault(f"{folder.path}/csr.pem: {advice}")


def is_due(run: Run, certificate: x509.Certificate) -> bool:
    """Tell whether a certificate is due for renewal."""
    begins = certificate.not_valid_before_utc
    return needs_successor(run, begins, certificate.not_valid_after_utc)


def needs_successor(run: Run, begins: datetime, ends: datetime) -> bool:
    """Tell whether two thirds of a lifetime have passed, or it has not begun yet.

    The latter happens when a clock was ahead for a while.
    """
    return begins > run.present or run.now > ends - (ends - begins) / 3


# --- 5. Revocation lists ---------------------------------------------------------------------


def settle_list(
    task: Task, ca: x509.Certificate, problems: list[Problem]
) -> RevocationList | None:
    """Keep, extend, refresh or begin a CA's list. Raises Fault, OSError.

    the list is           key at hand   pass phrase to be typed   key elsewhere
    good                  kept          kept                      kept
    due for a new one     refreshed     kept, with a warning      kept, with a warning
    expired               refreshed     error                     error
    extended (--revoke)   extended      extended, after typing    kept, with an error
    not there yet         begun         begun, after typing       missing, with an error

    A list that was there and is lost comes back from a copy, in newest_list, or is an error.
    """
    path = f"{task.folder.path}/crl.pem"
    signing_key = task.signer.path
    current = newest_list(task, ca)
    added = newly_revoked(task, ca, current, problems)
    if current is not None and not added:
        if not list_is_due(task.run, ca, current):
            return current
        if not task.signer.is_here() or task.signer.is_locked():
            problems.append(list_stays(task, ca, current))
            return current

    if not task.signer.is_here():
        if added:
            text = f"{path}: stays as it is: a new one needs {signing_key}"
            problems.append(Problem("error", text))
        else:
            why = "is missing, so no node can tell who is revoked"
            text = f"{path}: {why}: put it there, or make it with {signing_key}"
            problems.append(Problem("error", text))
        return current

    return signed_list(task, ca, current, added, problems)


def signed_list(
    task: Task,
    ca: x509.Certificate,
    current: RevocationList | None,
    added: Sequence[x509.RevokedCertificate],
    problems: list[Problem],
) -> RevocationList:
    """Return a CA's next list or, if it can't be signed but can wait, the current one.

    Raises Fault, OSError.
    """
    try:
        crl = next_list(task, ca, current, added, problems)
    except Fault as error:
        if current is None or added or not is_in_force(task.run, ca, current):
            raise
        problems.append(problem_of(error, task.folder.path))
        return current
    # match() can't compare a key that is still encrypted.
    if crl.signature != NOT_SIGNED and not is_signed_by(crl, ca):
        path = f"{task.folder.path}/cert.pem"
        raise Fault(f"{path}: does not match {task.signer.path}: {WRONG_ONE}")
    return crl


def is_in_force(run: Run, ca: x509.Certificate, crl: RevocationList) -> bool:
    """Tell whether a list has begun, and has not ended."""
    return crl.last_update_utc <= run.present and end_of_list(ca, crl) > run.now


def list_stays(task: Task, ca: x509.Certificate, current: RevocationList) -> Problem:
    """Return a warning that a CA's key is needed soon. Raises Fault if it is needed now."""
    path = f"{task.folder.path}/crl.pem"
    begins = current.last_update_utc
    if begins > task.run.present:
        when = f"begins in the future, on {begins.date()}, as a clock was ahead"
        raise Fault(f"{path}: {when}: the next one needs {task.signer.path}")
    ends = end_of_list(ca, current)
    if ends <= task.run.now:
        raise Fault(f"{path}: has expired: the next one needs {task.signer.path}")
    text = f"{path}: ends on {ends.date()}: the next one needs {task.signer.path}"
    return Problem("warning", text)


def next_list(
    task: Task,
    ca: x509.Certificate,
    current: RevocationList | None,
    added: Sequence[x509.RevokedCertificate],
    problems: list[Problem],
) -> RevocationList:
    """Return a CA's next list: what was revoked, and what is added (RFC 5280, section 5)."""
    now = task.run.now
    number = 0
    revoked: dict[int, x509.RevokedCertificate] = {}
    if current is not None:
        number = crl_number(current)
        revoked.update({each.serial_number: each for each in current})
    # What was on the list already is replaced.
    revoked.update({each.serial_number: each for each in added})

    ends = end_of_next_list(task, ca, problems)
    # Backdated by a twelfth of its life, at most a day, for robots whose clocks are behind.
    begins = now - min(timedelta(days=1), (ends - now) / 12)

    # Passed all at once: add_revoked_certificate copies the whole list each time.
    builder = (
        x509.CertificateRevocationListBuilder(revoked_certificates=list(revoked.values()))
        .issuer_name(ca.subject)
        .last_update(max(begins, ca.not_valid_before_utc))
        .next_update(ends)
        .add_extension(x509.CRLNumber(number + 1), critical=False)
        .add_extension(key_identifier(ca), critical=False)
    )
    return builder.sign(task.signer.open(), task.signer.digest())


def end_of_next_list(task: Task, ca: x509.Certificate, problems: list[Problem]) -> datetime:
    """Return when a CA's next list ends: with the CA, or at its nextUpdate. Raises Fault."""
    ends = ca.not_valid_after_utc
    if ends <= task.run.now:
        raise Fault(
            f"{task.folder.path}/cert.pem: has expired, so it can't sign a list: --renew it"
        )

    wanted = task.entry.next_update
    if wanted is None:
        return ends
    if wanted > task.run.now:
        return min(ends, wanted)
    # A date that has passed must not keep a list from being made.
    text = f"{wanted.date()} has passed: the list ends with the CA: give it a later date"
    problems.append(Problem("error", f"{task.entry.where}.validity.nextUpdate: {text}"))
    return ends


def revoked_certificate(
    serial_number: int, reason: str, since: datetime
) -> x509.RevokedCertificate:
    """Return what a list says about a certificate (RFC 5280, section 5.3)."""
    builder = (
        x509.RevokedCertificateBuilder().serial_number(serial_number).revocation_date(since)
    )
    # The RFC wants this reason to be left out.
    if reason != "unspecified":
        extension = x509.CRLReason(x509.ReasonFlags(reason))
        builder = builder.add_extension(extension, critical=False)
    return builder.build()


def newly_revoked(
    task: Task,
    ca: x509.Certificate,
    current: RevocationList | None,
    problems: list[Problem],
) -> list[x509.RevokedCertificate]:
    """Return what --revoke adds to a list, or changes on it. Raises Fault, OSError."""
    orders = task.run.orders
    on_list = {each.serial_number: each for each in current or ()}
    added = []
    for name, serial_number in numbers_to_revoke(task, ca, problems):
        before = on_list.get(serial_number)
        if before is None:
            added.append(revoked_certificate(serial_number, orders.reason, task.run.now))
        elif is_graver(orders.reason, reason_of(before)):
            since = before.revocation_date_utc
            added.append(revoked_certificate(serial_number, orders.reason, since))
        else:
            text = f"has {name} already ({reason_of(before)}): nothing changes for it"
            problems.append(Problem("warning", f"{task.folder.path}/crl.pem: {text}"))
    return added


def numbers_to_revoke(
    task: Task, ca: x509.Certificate, problems: list[Problem]
) -> Iterator[tuple[str, int]]:
    """Yield the name and serial number of each certificate that --revoke is about."""
    orders = task.run.orders
    for file_name in sorted(task.folder.record):
        name, _, _ = file_name.rpartition("-")
        # A root's record has its own old certificates, too. A root can't be revoked by a list.
        if name in orders.revoke and name != task.entry.name:
            number = recorded_number(task, file_name, problems)
            if number is not None:
                yield name, number

    # What the record lacks is recorded at the entry's turn, which is too late for this list.
    for entry in task.run.entries:
        if entry.name in orders.revoke and entry.issuer == task.entry.name:
            number = unrecorded_number(task, ca, entry.name)
            if number is not None:
                yield entry.name, number


def unrecorded_number(task: Task, ca: x509.Certificate, name: str) -> int | None:
    """Return the serial number of a certificate that is in use, but not in the record."""
    # A file that can't be read is an error when the entry's turn comes.
    with suppress(Fault, OSError):
        certificate = load_certificate(os.path.join(task.run.keys, name, "cert.pem"))
        number = certificate.serial_number
        is_over = certificate.not_valid_after_utc <= task.run.now
        is_recorded = f"{name}-{number:X}.pem" in task.folder.record
        if certificate.issuer == ca.subject and not is_over and not is_recorded:
            return number
    return None


def recorded_number(task: Task, file_name: str, problems: list[Problem]) -> int | None:
    """Return the serial number of a recorded certificate; None if it needs no revocation."""
    try:
        certificate = load_certificate(f"{task.folder.path}/issued/{file_name}")
    except (Fault, OSError) as error:
        # The file's name has the number, too: a damaged record must not save a thief.
        number = re.search("-([0-9A-F]{1,40})[.]pem$", file_name)
        if number is None or not 0 < int(number[1], 16) < 2**LONGEST_SERIAL_NUMBER:
            problems.append(problem_of(error, file_name))
            return None
        path = f"{task.folder.path}/issued/{file_name}"
        text = f"{path}: can't be read: revoked by the number in its name"
        problems.append(Problem("warning", text))
        return int(number[1], 16)
    if certificate.not_valid_after_utc <= task.run.now:
        return None
    return certificate.serial_number


COMPROMISES = ("keyCompromise", "cACompromise", "aACompromise")


def is_graver(reason: str, before: str) -> bool:
    """Tell whether a reason replaces an earlier one.

    Any other reason replaces a hold. A compromise replaces all but another compromise.
    """
    if before == "certificateHold":
        return reason != "certificateHold"
    return reason in COMPROMISES and before not in COMPROMISES


def reason_of(revoked: x509.RevokedCertificate) -> str:
    """Return why a certificate was revoked (RFC 5280, section 5.3.1)."""
    reason = extension_of(revoked, x509.CRLReason)
    if reason is None:
        return "unspecified"
    return reason.reason.value


def newest_list(task: Task, ca: x509.Certificate) -> RevocationList | None:
    """Return a CA's own list or, if it is lost, the newest copy. Raises Fault, OSError."""
    path = f"{task.folder.path}/crl.pem"
    copy = newest_of(task.run.copies, ca)

    if "crl.pem" in task.folder.file_names:
        own = newest_of((read_lists(path),), ca)
        if own is None or (copy is not None and crl_number(copy) > crl_number(own)):
            advice = f"rm {path}, and run again to restore it"
            raise Fault(f"{path}: is not this CA's newest list: {advice}")
        return own

    for file in task.run.copies:
        # A damaged file may hold the newest copy. A new CA has no copy yet.
        if file.lists is None and not task.folder.is_new():
            raise Fault(f"{file.path}: is damaged, or is not what its name says: {GOOD_COPY}")
    if copy is None and task.folder.record and task.signer.is_here():
        raise Fault(
            f"{path}: is lost, and no node has a copy: put back the newest copy that you "
            f"have, or rm -r {task.folder.path} for a new key"
        )
    return copy


def newest_of(files: Sequence[ListFile], ca: x509.Certificate) -> RevocationList | None:
    """Return the list with the highest number among those that a CA signed."""
    newest: RevocationList | None = None
    for file in files:
        for crl in file.lists or ():
            is_newer = newest is None or crl_number(crl) > crl_number(newest)
            if is_newer and is_signed_by(crl, ca):
                newest = crl
    return newest


def is_signed_by(crl: RevocationList, ca: x509.Certificate) -> bool:
    """Tell whether a CA signed a list."""
    if crl.issuer != ca.subject:
        return False
    return crl.is_signature_valid(cast("PublicKey", ca.public_key()))


def crl_number(crl: RevocationList) -> int:
    """Return a list's number; 0 if it has none (RFC 5280, section 5.2.3)."""
    number = extension_of(crl, x509.CRLNumber)
    if number is None:
        return 0
    return number.crl_number


def serial_numbers(crl: RevocationList | None) -> frozenset[int]:
    """Return the serial numbers on a list; none if there is no list."""
    if crl is None:
        return frozenset()
    return frozenset(entry.serial_number for entry in crl)


def end_of_list(ca: x509.Certificate, crl: RevocationList) -> datetime:
    """Return when a list ends: without a nextUpdate, with its CA."""
    return crl.next_update_utc or ca.not_valid_after_utc


def list_is_due(run: Run, ca: x509.Certificate, crl: RevocationList) -> bool:
    """Tell whether a CA needs a new list: in the last third of the old one's life, if that one
    begins in the future, or if it names another certificate of the CA.
    """
    # The next list of a CA that has expired, or has not begun, would be no better.
    if ca.not_valid_after_utc <= run.now or ca.not_valid_before_utc > run.present:
        return False
    if not names_issuer(crl, ca):
        return True
    return needs_successor(run, crl.last_update_utc, end_of_list(ca, crl))


def names_issuer(crl: RevocationList, ca: x509.Certificate) -> bool:
    """Tell whether a list's authorityKeyIdentifier, if it has one, fits a CA's certificate."""
    named = extension_of(crl, x509.AuthorityKeyIdentifier)
    if named is None:
        return True
    same_key = named.key_identifier in (None, key_identifier(ca).key_identifier)
    same_serial = named.authority_cert_serial_number in (None, ca.serial_number)
    return same_key and same_serial


def is_revoked(task: Task, certificate: x509.Certificate) -> bool:
    """Tell whether a certificate is on its issuer's list."""
    return task.above is not None and certificate.serial_number in task.above.revoked


def refuse_revoked_key(task: Task, key: PublicKey, above: Authority) -> None:
    """Raise Fault for a key that was revoked under the entry's name. Raises OSError."""
    # A key that was made in this run can't have been revoked.
    if task.folder.is_new():
        return
    for serial_number in above.revoked:
        file_name = f"{task.entry.name}-{serial_number:X}.pem"
        if file_name in above.record:
            revoked = load_certificate(f"{above.path}/issued/{file_name}")
            if revoked.public_key() == key:
                path = task.folder.path
                raise Fault(f"{path}: is revoked: rm -r {path}, and run again for a new key")


# --- 6. Checks -------------------------------------------------------------------------------


FLAGS = crypto.X509StoreFlags
MEND = "--renew it, or mend its configuration"
NEW_CROSS = "have a new one made, or remove it"
GOOD_COPY = "put back a good copy, or remove it"
WRONG_ONE = "remove the wrong one, and run again"


class Verifier:
    """Has OpenSSL verify what one CA signed: in strict mode, and with revocation lists.

    The first certificate is verified up to the anchor, with the lists of all CAs between.
    That proves the CA's own certificate, so the next ones are verified up to the CA only, with
    the CA's list. There are three exceptions:

    - Where a CA in the chain limits names (RFC 5280, 4.2.1.10) or addresses (RFC 3779), every
      certificate is verified up to the anchor, since limits hold for all that is below.
    - Where a dry run did not have something signed, all are verified up to the CA only.
    - Where a list is missing, as its CA's key is elsewhere, OpenSSL looks at no list at all.
      settle_list reports that as an error, and the nodes below get no crl.pem.
    """

    def __init__(
        self,
        name: str,
        chain: tuple[x509.Certificate, ...],
        lists: tuple[RevocationList, ...],
        verify_at: datetime | None,
    ) -> None:
        self.name = name
        self.chain = chain
        self.lists = lists
        self.verify_at = verify_at
        self.limits_names = any(limits_names(ca) for ca in chain)
        signatures = [ca.signature for ca in chain] + [crl.signature for crl in lists]
        self.is_unsigned = NOT_SIGNED in signatures
        self.ca_store: crypto.X509Store | None = None  # trusts the CA, once it is proven

    def verify(self, path: str, certificate: x509.Certificate) -> None:
        """Have OpenSSL verify a certificate (X509_verify_cert(3)). Raises Fault."""
        if certificate.signature == NOT_SIGNED:
            return
        # Unlike a TLS context, a store has no security level that rejects MD5 or SHA-1.
        check_digest(path, certificate)
        leaf = crypto.X509.from_cryptography(certificate)
        if self.is_unsigned and self.ca_store is None:
            self.stop_at_ca(path)
        try:
            if self.ca_store is None:
                self.verify_to_anchor(path, leaf)
            else:
                crypto.X509StoreContext(self.ca_store, leaf).verify_certificate()
        except crypto.X509StoreContextError as error:
            whose = error.certificate.to_cryptography().subject.rfc4514_string()
            advice = MEND
            if "not yet" in str(error):
                advice = "--renew it, or set the clock"
            raise Fault(f"{path}: {error} ({whose}): {advice}") from None

    def verify_to_anchor(self, path: str, leaf: crypto.X509) -> None:
        """Verify a whole chain; from then on, stop at the CA, unless there are limits.

        Raises Fault, crypto.X509StoreContextError.
        """
        store = self.store(self.chain[-1], self.lists, FLAGS.CRL_CHECK_ALL)
        intermediates = [crypto.X509.from_cryptography(ca) for ca in self.chain[:-1]]
        chain = crypto.X509StoreContext(store, leaf, intermediates).get_verified_chain()

        # The issuer comes second. A root is alone in its chain.
        issuer = chain[0]
        if len(chain) > 1:
            issuer = chain[1]
        if issuer.to_cryptography() != self.chain[0]:
            raise Fault(f"{path}: is not signed by {self.name}: {MEND}")

        if not self.limits_names:
            own_list = self.lists[:1]
            self.ca_store = self.store(self.chain[0], own_list, FLAGS.PARTIAL_CHAIN)

    def stop_at_ca(self, path: str) -> None:
        """In a dry run, verify no signature above the CA. Raises Fault if one is revoked."""
        for number in range(1, len(self.lists)):
            if self.chain[number - 1].serial_number in serial_numbers(self.lists[number]):
                raise Fault(f"{path}: certificate revoked: {MEND}")
        signed = [crl for crl in self.lists[:1] if crl.signature != NOT_SIGNED]
        self.ca_store = self.store(self.chain[0], signed, FLAGS.PARTIAL_CHAIN)

    def check_alone(self, path: str) -> None:
        """Have OpenSSL look at the CA itself, but not at its signature. Raises Fault."""
        ca = crypto.X509.from_cryptography(self.chain[0])
        try:
            store = self.store(self.chain[0], (), FLAGS.PARTIAL_CHAIN)
            crypto.X509StoreContext(store, ca).verify_certificate()
        except crypto.X509StoreContextError as error:
            raise Fault(f"{path}: {error}: {NEW_CROSS}") from None

    def store(
        self, trusted: x509.Certificate, lists: Sequence[RevocationList], flags: int
    ) -> crypto.X509Store:
        """Return the store that OpenSSL verifies with (X509_VERIFY_PARAM_set_flags(3))."""
        store = crypto.X509Store()
        store.add_cert(crypto.X509.from_cryptography(trusted))
        for crl in lists:
            store.add_crl(crl)
        if self.verify_at is not None:
            store.set_time(self.verify_at)

        flags |= FLAGS.X509_STRICT
        if trusted.signature != NOT_SIGNED:
            flags |= FLAGS.CHECK_SS_SIGNATURE
        # Without this one, CRL_CHECK_ALL has no effect.
        if lists:
            flags |= FLAGS.CRL_CHECK
        store.set_flags(flags)
        return store


def check_digest(path: str, certificate: x509.Certificate, advice: str = MEND) -> None:
    """Raise Fault for a signature with a digest for which collisions can be found."""
    digest = certificate.signature_hash_algorithm
    if digest is not None and digest.name in ("md5", "sha1"):
        raise Fault(f"{path}: is signed with {digest.name}, which can be forged: {advice}")


def limits_names(ca: x509.Certificate) -> bool:
    """Tell whether a CA limits the names or addresses of everything below it."""
    return any(
        extension_row(extension.oid.dotted_string).limits_below for extension in ca.extensions
    )


def match(task: Task, certificate: x509.Certificate) -> Iterator[Problem]:
    """Check that certificate, key and request match, and yield warnings. Raises Fault."""
    path = f"{task.folder.path}/cert.pem"
    public_key = certificate.public_key()
    check_key(path, public_key)
    if task.folder.key_pem is not None and os.stat(task.signer.path).st_mode & 0o077:
        text = f"other users can reach it: chmod 600 {task.signer.path}"
        yield Problem("warning", f"{task.signer.path}: {text}")

    if task.above is not None and "cross.pem" in task.folder.file_names:
        text = "is used in a root's folder only: move it there, or remove it"
        yield Problem("warning", f"{task.folder.path}/cross.pem: {text}")

    is_readable = task.signer.is_here() and not task.signer.is_locked()
    if is_readable and task.signer.open().public_key() != public_key:
        raise Fault(f"{path}: does not match {task.signer.path}: {WRONG_ONE}")
    if task.folder.key_pem is not None:
        yield from encryption_warnings(task, task.folder.key_pem)

    request = task.folder.request
    if request is not None and requested_key(task.folder.path, request) != public_key:
        raise Fault(f"{path}: does not match {task.folder.path}/csr.pem: {WRONG_ONE}")


def requested_key(folder: str, request: Request) -> object:
    """Return the key in a request, which must have signed it (RFC 2986, 3). Raises Fault."""
    if not request.is_sound:
        why = "its signature is wrong or by SHA-1, or its key is RSA-PSS"
        raise Fault(f"{folder}/csr.pem: {why}: have a new one made")
    return request.public_key


def encryption_warnings(task: Task, pem: bytes) -> Iterator[Problem]:
    """Yield a warning if a key is encrypted and should not be, or the other way round."""
    path = task.signer.path
    where = task.entry.where
    is_encrypted = b"ENCRYPTED" in pem
    if task.entry.passphrase is not None and not is_encrypted:
        what = f"is not encrypted, though {where} has a cipher"
        command = f"openssl pkcs8 -topk8 -v2 aes-256-cbc -in {path} -out new.pem"
        yield Problem("warning", f"{path}: {what}: {command} && mv new.pem {path}")
    if task.entry.passphrase is None and is_encrypted:
        what = f"is encrypted, though {where} has no cipher"
        command = f"openssl pkey -in {path} -out new.pem"
        yield Problem("warning", f"{path}: {what}: {command} && mv new.pem {path}")


def check_ca(path: str, certificate: x509.Certificate, advice: str = MEND) -> None:
    """Raise Fault for a certificate that can't sign what a CA signs (RFC 5280, 4.2.1)."""
    constraints = extension_of(certificate, x509.BasicConstraints)
    identifier = extension_of(certificate, x509.SubjectKeyIdentifier)
    if constraints is None or not constraints.ca or identifier is None:
        needs = "it needs CA:TRUE and a subjectKeyIdentifier"
        raise Fault(f"{path}: is not a CA's certificate: {needs}: {advice}")
    usage = extension_of(certificate, x509.KeyUsage)
    if usage is not None and not (usage.key_cert_sign and usage.crl_sign):
        why = "can't sign certificates and lists, as its keyUsage lacks keyCertSign or cRLSign"
        raise Fault(f"{path}: {why}: {advice}")


def check_path_length(
    task: Task,
    path: str,
    certificate: x509.Certificate,
    advice: str = MEND,
    cas_between: int = 0,
) -> None:
    """Raise Fault if a CA's pathlen is too short for the CAs below it."""
    levels = cas_between + levels_of_cas_below(task.run.entries, task.entry.name)
    constraints = extension_of(certificate, x509.BasicConstraints)
    if constraints is not None and constraints.path_length is not None:
        limit = constraints.path_length
        if limit < levels:
            what = f"its pathlen:{limit} is too short for {levels} CAs in a row below"
            raise Fault(f"{path}: {what}: {advice}")


T = TypeVar("T", bound=x509.ExtensionType)


def extension_of(
    holder: x509.Certificate | RevocationList | x509.RevokedCertificate, kind: type[T]
) -> T | None:
    """Return the value of an extension; None if there is none of that kind."""
    for extension in holder.extensions:
        if isinstance(extension.value, kind):
            return extension.value
    return None


def compare(task: Task, draft: Draft) -> Iterator[Problem]:
    """Yield warnings if a certificate differs from the configuration, or ends soon."""
    path = f"{task.folder.path}/cert.pem"
    different = sorted(differences(task, draft.certificate))
    if different:
        text = f"{path}: differs from {task.entry.where}: {', '.join(different)}"
        yield Problem("warning", text)
    if draft.state == "kept" and is_due(task.run, draft.certificate):
        ends = draft.certificate.not_valid_after_utc.date()
        yield Problem("warning", f"{path}: is due for --renew: it ends on {ends}")


def differences(task: Task, certificate: x509.Certificate) -> set[str]:
    """Return the names of what differs from the configuration."""
    public_key = certificate.public_key()
    different: set[str] = set()
    if key_type(public_key) != task.entry.key_type:
        different.add("key type")
    # A renewed CA keeps its subject as it is, even where the same is written in another way.
    is_same = certificate.subject == task.entry.subject
    if task.entry.is_ca:
        is_same = comparable(certificate.subject) == comparable(task.entry.subject)
    if not is_same:
        different.add("subject")

    found = set()
    for each in certificate.extensions:
        found.add((each.oid, each.critical, each.value.public_bytes()))
    wanted = set()
    for extension in task.entry.extensions:
        value = value_for(task, extension, cast("PublicKey", public_key))
        wanted.add((extension.oid, extension.critical, value.public_bytes()))
    for oid, _, _ in found.symmetric_difference(wanted):
        different.add(extension_row(oid.dotted_string).name)

    # This one depends on the issuer's certificate, and OpenSSL has checked it.
    different.discard("authorityKeyIdentifier")
    return different


def read_cross(task: Task, anchor: x509.Certificate, problems: list[Problem]) -> bytes | None:
    """Return an anchor's cross.pem; empty if it is no good; None if it can't be read."""
    path = f"{task.folder.path}/cross.pem"
    if "cross.pem" not in task.folder.file_names:
        return b""
    try:
        chain = load_certificates(path)
        check_cross_key(path, anchor, chain[0])
    except (Fault, OSError) as error:
        problems.append(problem_of(error, path))
        return None
    try:
        check_cross(task, anchor, chain)
    except Fault as error:
        problems.append(problem_of(error, path))
        return b""
    for certificate in chain:
        if is_due(task.run, certificate):
            ends = certificate.not_valid_after_utc.date()
            problems.append(Problem("warning", f"{path}: ends on {ends}: have a new one made"))
    return to_pem(*chain)


def check_cross_key(path: str, anchor: x509.Certificate, cross: x509.Certificate) -> None:
    """Raise Fault unless a certificate is a higher CA's, for the anchor's name and key."""
    has_name = cross.subject == anchor.subject and cross.issuer != anchor.subject
    if not has_name or cross.public_key() != anchor.public_key():
        what = "is not a higher CA's certificate for this name and key"
        raise Fault(f"{path}: {what}: {NEW_CROSS}")


def check_cross(
    task: Task, anchor: x509.Certificate, chain: Sequence[x509.Certificate]
) -> None:
    """Check an anchor's certificate from a higher CA, and the higher CA's own issuers.

    Raises Fault.
    """
    path = f"{task.folder.path}/cross.pem"
    for number, certificate in enumerate(chain):
        if number > 0:
            check_issuer(path, chain[number - 1], certificate)
        # Those who trust the root above all have it themselves.
        if certificate.subject != certificate.issuer:
            check_higher_ca(task, path, certificate, number)
    if subject_key_identifier(chain[0]) != subject_key_identifier(anchor):
        what = f"has another subjectKeyIdentifier than {task.folder.path}/cert.pem"
        raise Fault(f"{path}: {what}: {NEW_CROSS}")


def check_higher_ca(
    task: Task, path: str, certificate: x509.Certificate, cas_between: int
) -> None:
    """Check one certificate of a cross.pem. Raises Fault."""
    check_ca(path, certificate, NEW_CROSS)
    check_digest(path, certificate, NEW_CROSS)
    check_key(path, certificate.public_key())
    check_path_length(task, path, certificate, NEW_CROSS, cas_between)
    if certificate.not_valid_after_utc <= task.run.now:
        raise Fault(f"{path}: has expired: {NEW_CROSS}")
    if certificate.not_valid_before_utc > task.run.present:
        begins = certificate.not_valid_before_utc.date()
        raise Fault(f"{path}: begins on {begins}: {NEW_CROSS}, or set the clock")
    # OpenSSL looks at all extensions. Its issuer may not be here, so it is trusted itself.
    verifier = Verifier(task.entry.name, (certificate,), (), task.run.verify_at)
    verifier.check_alone(path)


def check_issuer(path: str, certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    """Raise Fault unless a certificate is signed by the one that follows it in a file."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        raise Fault(
            f"{path}: a certificate is followed by one that is not its issuer's: "
            "put each before its issuer's, and no others"
        ) from None


def levels_of_cas_below(entries: Sequence[Entry], name: str) -> int:
    """Return how many CAs in a row the configuration has below one."""
    levels = {name: 0}
    # The entries come in the order of the tree, each one after its issuer.
    for entry in entries:
        if entry.is_ca and entry.issuer in levels:
            levels[entry.name] = levels[entry.issuer] + 1
    return max(levels.values())


# --- 7. What nodes trust ---------------------------------------------------------------------


# What nodes have in common that verify their peers alike: their issuer, and whom they trust.
Kin = tuple[str | None, tuple[str, ...]]


def trusted_by_nodes(run: Run, outcomes: Mapping[str, Outcome]) -> dict[Kin, Trusted]:
    """Return what nodes verify their peers by, one for all nodes with the same CAs."""
    cas = [entry for entry in run.entries if entry.is_ca]
    trusted: dict[Kin, Trusted] = {}
    for entry in run.entries:
        kin = (entry.issuer, entry.trust)
        if not entry.is_ca and kin not in trusted:
            anchors = anchor_bundle(entry.trust, cas, outcomes)
            lists = list_bundle(entry, cas, outcomes)
            trusted[kin] = Trusted(anchors, lists)
    return trusted


def anchor_bundle(
    trust: Sequence[str], cas: Sequence[Entry], outcomes: Mapping[str, Outcome]
) -> Bundle:
    """Return the parts of ca.pem: the anchors, in the order of `trust`."""
    parts = []
    is_complete = True
    for name in trust:
        authority = outcomes[name].authority
        if authority is None or outcomes[name].blocked_by is not None:
            is_complete = False
        else:
            parts.append(Part(name, authority.chain[0], authority.anchor_pem))

    # Other anchors lose their part, if they have one.
    for ca in cas:
        authority = outcomes[ca.name].authority
        if ca.issuer is None and ca.name not in trust and authority is not None:
            parts.append(Part(ca.name, authority.chain[0], b""))
    return bundle_of("ca.pem", parts, is_complete)


def list_bundle(node: Entry, cas: Sequence[Entry], outcomes: Mapping[str, Outcome]) -> Bundle:
    """Return the parts of a node's crl.pem: the lists of its anchors and all CAs below."""
    parts = []
    is_complete = True
    for name in in_list_order(node, cas):
        part = outcomes[name].list_part
        if part is not None:
            parts.append(part)
        if part is None or outcomes[name].blocked_by is not None:
            is_complete = False

    # Other CAs lose their part, if they have one.
    for ca in cas:
        part = outcomes[ca.name].list_part
        if ca.trust[0] not in node.trust and part is not None:
            parts.append(part._replace(pem=b""))
    return bundle_of("crl.pem", parts, is_complete)


def in_list_order(node: Entry, cas: Sequence[Entry]) -> list[str]:
    """Return the CAs below a node's anchors, from the bottom up.

    The CAs above the node come first, since some programs read only the first list.
    """
    names = []
    issuer = node.issuer
    for ca in reversed(cas):
        if ca.name == issuer:
            issuer = ca.issuer
            if ca.trust[0] in node.trust:
                names.append(ca.name)
    own = set(names)
    for anchor in node.trust:
        for ca in reversed(cas):
            if ca.trust[0] == anchor and ca.name not in own:
                names.append(ca.name)
    return names


def bundle_of(file_name: str, parts: Sequence[Part], is_complete: bool) -> Bundle:
    """Return a bundle of some parts."""
    pem = b"".join(part.pem for part in parts)
    return Bundle(file_name, tuple(parts), pem, is_complete, {})


def trusts(anchors: Bundle, anchor: x509.Certificate) -> bool:
    """Tell whether an anchor is among those of a ca.pem."""
    return any(part.certificate == anchor and part.pem for part in anchors.parts)


def spread(disk: Disk, folder: Folder, trusted: Trusted) -> None:
    """Bring a node's crl.pem and ca.pem up to date, if it has them. Raises Fault, OSError."""
    # Lists come first: without one, a CA's nodes would be refused even where it is trusted.
    for bundle in (trusted.lists, trusted.anchors):
        if bundle.file_name not in folder.file_names:
            continue
        path = f"{folder.path}/{bundle.file_name}"
        data = read_file(path)
        if data == bundle.pem:
            continue
        # Most nodes have equal files. Each kind is taken apart once.
        if data not in bundle.updates:
            bundle.updates[data] = update_of(bundle, path)
        files = {bundle.file_name: bundle.updates[data].pem}
        disk.update(folder.path, folder.file_names, files)


def update_of(bundle: Bundle, path: str) -> Update:
    """Return what becomes of a file, part by part. Raises Fault, OSError.

    If the bundle is incomplete, what did not come from one of its CAs stays as it is.
    """
    there = parts_there(bundle, path)
    if not there and bundle.is_complete:
        return Update(bundle.pem, ())
    if not there:
        advice = f"mend what failed, or rm {path}, and run again"
        raise Fault(f"{path}: is damaged, and can't be made anew: {advice}")

    pem = b""
    left = {part.name: part.pem for part in bundle.parts}
    by_subject: dict[x509.Name, list[Part]] = {}
    for part in bundle.parts:
        by_subject.setdefault(part.certificate.subject, []).append(part)
    for each in there:
        source = part_of(by_subject, each)
        if source is None:
            pem += to_pem(each)
        else:
            pem += left.pop(source.name, b"")
    new = tuple(name for name in left if left[name])
    if bundle.is_complete:
        return Update(bundle.pem, new)
    return Update(pem + b"".join(left.values()), new)


def parts_there(bundle: Bundle, path: str) -> Sequence[x509.Certificate | RevocationList]:
    """Return what a ca.pem or crl.pem holds; nothing if it is damaged. Raises OSError."""
    if bundle.file_name == "crl.pem":
        return read_lists(path).lists or ()
    try:
        return load_certificates(path)
    except Fault:
        return ()


def part_of(
    by_subject: Mapping[x509.Name, Sequence[Part]], each: x509.Certificate | RevocationList
) -> Part | None:
    """Return the part whose CA a certificate or a list came from; None if there is none."""
    if isinstance(each, x509.Certificate):
        for part in by_subject.get(each.subject, ()):
            if each.public_key() == part.certificate.public_key():
                return part
        return None
    for part in by_subject.get(each.issuer, ()):
        if is_signed_by(each, part.certificate):
            return part
    return None


def fail_ambiguous_lists(run: Run, outcomes: dict[str, Outcome]) -> None:
    """Fail each CA whose list OpenSSL would also take for another CA's.

    Where two CAs have the same subject, their lists are told apart by authorityKeyIdentifier
    only. A list without one gets into no more folders, so the other CA's nodes stay accepted.
    """
    for trust in {entry.trust for entry in run.entries if not entry.is_ca}:
        namesakes: dict[str, list[Part]] = {}
        for entry in run.entries:
            part = None
            if entry.is_ca and entry.trust[0] in trust:
                part = outcomes[entry.name].list_part
            if part is not None:
                subject = str(comparable(part.certificate.subject))
                namesakes.setdefault(subject, []).append(part)
        for parts in namesakes.values():
            for problem, name in ambiguous_lists(run, parts):
                outcomes[name] = outcomes[name]._replace(
                    state="failed", line="", error=problem, list_part=None, blocked_by=name
                )


def ambiguous_lists(run: Run, namesakes: Sequence[Part]) -> Iterator[tuple[Problem, str]]:
    """Yield an error and a name for each list that OpenSSL would take for a namesake's."""
    for part in namesakes:
        crl = x509.load_pem_x509_crl(part.pem)
        if extension_of(crl, x509.AuthorityKeyIdentifier) is not None:
            continue
        for other in namesakes:
            if other.certificate.public_key() != part.certificate.public_key():
                path = os.path.join(run.keys, part.name, "crl.pem")
                why = f"has no authorityKeyIdentifier, and {other.name} has the same subject"
                yield Problem("error", f"{path}: {why}: have a list made with one"), part.name
                break


def new_cas(run: Run, trusted: Collection[Trusted]) -> Iterator[Problem]:
    """Yield a warning if there are CAs that the nodes knew nothing of before this run."""
    found: set[str] = set()
    for each in trusted:
        for update in each.lists.updates.values():
            found.update(update.new)

    names = []
    files = "crl.pem"
    for entry in run.entries:
        if entry.name in found:
            names.append(entry.name)
            if entry.issuer is None:
                files = "ca.pem and crl.pem"
    if names:
        advice = f"copy {files} to all of them and send SIGHUP, then use the nodes below"
        text = f"{run.keys}: new to the nodes: {', '.join(names)}: {advice}"
        yield Problem("warning", text)


def forgotten_folders(run: Run, outcomes: Mapping[str, Outcome]) -> Iterator[Outcome]:
    """Yield a warning for each folder with a valid certificate that no entry names.

    Raises OSError.
    """
    # A dry run does not make the folder.
    if not os.path.exists(run.keys):
        return
    named = {entry.name for entry in run.entries}
    forgotten = []
    for name in sorted(os.listdir(run.keys)):
        if name not in named and not name.startswith("."):
            forgotten.append(name)
    if not forgotten:
        return
    revoked = all_revoked(run, outcomes)
    for name in forgotten:
        path = os.path.join(run.keys, name)
        certificate = valid_certificate(run, path, revoked)
        if certificate is None:
            continue
        problem = Problem("warning", forgotten_text(run, path, certificate))
        outcome = Outcome("forgotten", problems=(problem,))
        if run.as_json:
            line = json_line(run, name, None, True, outcome)
            outcome = outcome._replace(line=line)
        yield outcome


def valid_certificate(
    run: Run, path: str, revoked: Mapping[x509.Name, Collection[int]]
) -> x509.Certificate | None:
    """Return a folder's certificate, unless it has expired, is revoked or can't be read."""
    try:
        certificate = load_certificate(f"{path}/cert.pem")
    except (Fault, OSError):
        return None
    if certificate.not_valid_after_utc <= run.now:
        return None
    if certificate.serial_number in revoked.get(certificate.issuer, ()):
        return None
    return certificate


def all_revoked(run: Run, outcomes: Mapping[str, Outcome]) -> dict[x509.Name, set[int]]:
    """Return the serial numbers on all known lists, by issuer."""
    lists = [crl for file in run.copies for crl in file.lists or ()]
    for outcome in outcomes.values():
        if outcome.list_part is not None:
            lists.append(x509.load_pem_x509_crl(outcome.list_part.pem))
    revoked: dict[x509.Name, set[int]] = {}
    for crl in lists:
        revoked.setdefault(crl.issuer, set()).update(serial_numbers(crl))
    return revoked


def forgotten_text(run: Run, path: str, certificate: x509.Certificate) -> str:
    """Return what to do about a folder that no entry names."""
    name = os.path.basename(path)
    file_name = f"{name}-{certificate.serial_number:X}.pem"
    advice = f"rm -r {path}"
    for entry in run.entries:
        recorded = os.path.join(run.keys, entry.name, "issued", file_name)
        if entry.is_ca and os.path.exists(recorded):
            advice = f"--revoke {name}, or put the entry back"
    ends = certificate.not_valid_after_utc.date()
    return f"{path}: is valid until {ends}, but no entry has this name: {advice}"


# --- 8. Folders and files --------------------------------------------------------------------


class ListFile(NamedTuple):
    """A crl.pem, and the lists in it."""

    path: str
    lists: tuple[RevocationList, ...] | None  # None: the file is damaged


# The name of an unfinished file or folder, beside its place.
LEFTOVER = re.compile("[.].*[.]part")


def read_folder(path: str) -> Folder:
    """Return what an entry's folder holds. Raises Fault, OSError."""
    # lexists: a link to nowhere is an error below, not a new folder.
    if not os.path.lexists(path):
        return Folder(path, frozenset(), None, None, None, frozenset())

    file_names = file_names_in(path)
    key_pem = None
    certificate = None
    request = None
    record: frozenset[str] = frozenset()
    # exists: key.pem may be a link to a USB stick that is not plugged in.
    if os.path.exists(f"{path}/key.pem"):
        key_pem = read_file(f"{path}/key.pem")
    if "cert.pem" in file_names:
        certificate = load_certificate(f"{path}/cert.pem")
    if "csr.pem" in file_names:
        request = load_request(f"{path}/csr.pem")
    if "issued" in file_names:
        record = file_names_in(f"{path}/issued")
    return Folder(path, file_names, key_pem, certificate, request, record)


def file_names_in(path: str) -> frozenset[str]:
    """Return the names in a folder, without the leftovers of a killed run. Raises OSError."""
    # A dry run does not remove such leftovers.
    return frozenset(name for name in os.listdir(path) if not LEFTOVER.fullmatch(name))


def read_file(path: str) -> bytes:
    """Return a file's bytes. Raises OSError."""
    with open(path, "rb") as file:
        return file.read()


def load_certificate(path: str) -> x509.Certificate:
    """Return the certificate in a PEM file. Raises Fault, OSError."""
    return load_certificates(path)[0]


def load_certificates(path: str) -> list[x509.Certificate]:
    """Return the certificates in a PEM file, at least one. Raises Fault, OSError."""
    return certificates_in(path, read_file(path))


def certificates_in(path: str, data: bytes) -> list[x509.Certificate]:
    """Return the certificates in what a PEM file holds, at least one. Raises Fault."""
    try:
        certificates = x509.load_pem_x509_certificates(data)
        for certificate in certificates:
            # cryptography parses these when they are first used. Using them here finds damage.
            certificate.public_key()
            _ = certificate.extensions
    except INVALID:
        raise damaged(path, data, "x509") from None
    # cryptography passes over a certificate that was cut short.
    if len(re.findall(b"-BEGIN [A-Z0-9 ]*CERTIFICATE-", data)) != len(certificates):
        what = "holds a certificate that is damaged, or of another kind"
        raise Fault(f"{path}: {what}: {GOOD_COPY}")
    for certificate in certificates:
        number = certificate.serial_number
        if number <= 0 or number.bit_length() > LONGEST_SERIAL_NUMBER:
            why = "its serial number is not positive, or has more than 20 octets"
            advice = "so it can't be revoked (RFC 5280, 4.1.2.2): have a new one made"
            raise Fault(f"{path}: {why}, {advice}")
    return certificates


# Bits: 20 octets, as in RFC 5280, of which DER needs one bit for the sign.
LONGEST_SERIAL_NUMBER = 159


def damaged(path: str, data: bytes, command: str) -> Fault:
    """Return what is wrong with a file that openssl's `command` may be able to convert."""
    # In DER, it is a SEQUENCE, whose tag is the octet 0x30.
    if data[:1] == b"0" and b"-----BEGIN" not in data:
        advice = f"openssl {command} -inform DER -in {path} -out new.pem"
        return Fault(f"{path}: is not in PEM: {advice} && mv new.pem {path}")
    return Fault(f"{path}: is damaged, or is not what its name says: {GOOD_COPY}")


def load_request(path: str) -> Request:
    """Return the signing request in a PEM file. Raises Fault, OSError."""
    pem = read_file(path)
    try:
        return read_request(pem)
    except INVALID:
        raise damaged(path, pem, "req") from None


# The object identifier id-RSASSA-PSS in DER (RFC 4055, section 1.2).
RSA_PSS = bytes.fromhex("06092a864886f70d01010a")


def read_request(pem: bytes) -> Request:
    """Return the parts of a signing request that count (RFC 2986). Raises one of INVALID."""
    try:
        request = x509.load_pem_x509_csr(pem)
        public_key = request.public_key()
    except (ValueError, x509.InvalidVersion):
        return read_odd_request(pem)
    # cryptography takes an RSA-PSS key for a plain one.
    is_plain = RSA_PSS not in request.tbs_certrequest_bytes
    key_der = der_elements(request.tbs_certrequest_bytes)[2]
    return Request(public_key, fingerprint(key_der), is_plain and request.is_signature_valid)


def fingerprint(key_der: bytes) -> str:
    """Return the SHA-256 of a key in DER, which its sender can print with openssl."""
    return hashlib.sha256(key_der).hexdigest()


# Signature algorithms in DER, and what they hash with (RFC 5758, RFC 4055, RFC 8410).
SIGNATURES: dict[bytes, Digest | None] = {
    bytes.fromhex("06082a8648ce3d040302"): hashes.SHA256(),
    bytes.fromhex("06082a8648ce3d040303"): hashes.SHA384(),
    bytes.fromhex("06082a8648ce3d040304"): hashes.SHA512(),
    bytes.fromhex("06092a864886f70d01010b"): hashes.SHA256(),
    bytes.fromhex("06092a864886f70d01010c"): hashes.SHA384(),
    bytes.fromhex("06092a864886f70d01010d"): hashes.SHA512(),
    bytes.fromhex("06032b6570"): None,
    bytes.fromhex("06032b6571"): None,
}


def read_odd_request(pem: bytes) -> Request:
    """Return the same for a request that cryptography can't parse. Raises ValueError.

    OpenSSL accepts it: the odd part, such as the subject or an attribute, does not count.
    """
    info, algorithm, signature = der_elements(der_of(pem))
    # CertificationRequestInfo: version, subject, key, attributes.
    key_der = der_elements(info)[2]
    public_key = serialization.load_der_public_key(key_der)

    name = der_elements(algorithm)[0]
    start, end = der_content(signature, 0)
    # A BIT STRING begins with the number of unused bits.
    octets = signature[start + 1 : end]
    if name not in SIGNATURES or RSA_PSS in key_der:
        return Request(public_key, fingerprint(key_der), False)
    is_sound = is_signed_with(public_key, SIGNATURES[name], octets, info)
    return Request(public_key, fingerprint(key_der), is_sound)


def is_signed_with(
    public_key: object, digest: Digest | None, signature: bytes, data: bytes
) -> bool:
    """Tell whether data is signed with a key, and a digest where the key type takes one."""
    try:
        if isinstance(public_key, ec.EllipticCurvePublicKey) and digest is not None:
            public_key.verify(signature, data, ec.ECDSA(digest))
        elif isinstance(public_key, rsa.RSAPublicKey) and digest is not None:
            public_key.verify(signature, data, padding.PKCS1v15(), digest)
        elif isinstance(public_key, (ed25519.Ed25519PublicKey, ed448.Ed448PublicKey)):
            public_key.verify(signature, data)
        elif key_type(public_key) in ML_DSA:
            cast("mldsa.MLDSA44PublicKey", public_key).verify(signature, data)
        else:
            return False
    except InvalidSignature:
        return False
    return True


def der_of(pem: bytes) -> bytes:
    """Return the DER in a PEM file (RFC 7468); empty if it is encrypted, or not PEM."""
    block = re.search(b"-----BEGIN [A-Z ]+-----([A-Za-z0-9+/=\\s]+)-----END", pem)
    if block is None:
        return b""
    return base64.b64decode(block[1])


def der_elements(der: bytes) -> list[bytes]:
    """Return the values inside a DER value, each with its header. Raises ValueError."""
    elements = []
    position, end = der_content(der, 0)
    while position < end:
        _, following = der_content(der, position)
        elements.append(der[position:following])
        position = following
    return elements


def der_content(der: bytes, position: int) -> tuple[int, int]:
    """Return where a DER value's content begins and ends (X.690, 8.1). Raises ValueError."""
    header = der[position : position + 2]
    if len(header) < 2:
        raise ValueError("cut short")
    length = header[1]
    start = position + 2
    if length >= 128:
        octets = der[start : start + length - 128]
        start += length - 128
        length = int.from_bytes(octets, "big")
    if start + length > len(der):
        raise ValueError("cut short")
    return start, start + length


def read_lists(path: str) -> ListFile:
    """Return the revocation lists in a crl.pem, which may be damaged. Raises OSError."""
    return ListFile(path, lists_in(read_file(path)))


def lists_in(data: bytes) -> tuple[RevocationList, ...] | None:
    """Return the revocation lists in a file; None if it is damaged."""
    blocks = re.findall(b"-+BEGIN[^-]+-+[^-]+-+END[^-]+-+", data)
    try:
        lists = [load_list(block) for block in blocks]
    except INVALID:
        return None
    # A file that was cut short has a beginning without an end.
    if data.count(b"-BEGIN ") != len(lists):
        return None
    return tuple(lists)


# Cached, as the files of a fleet's nodes hold the same lists.
@cache
def load_list(pem: bytes) -> RevocationList:
    """Return a revocation list. Raises one of INVALID."""
    crl = x509.load_pem_x509_crl(pem)
    # cryptography parses these at their first use. Use them, to find damage here.
    _ = crl.extensions
    return crl


def read_copies(keys: str) -> tuple[ListFile, ...]:
    """Return the crl.pem of every folder, each without the lists of those before it."""
    copies: dict[bytes, ListFile] = {}
    known: set[bytes] = set()
    # A dry run does not make the folder.
    if not os.path.exists(keys):
        return ()
    for name in os.listdir(keys):
        path = os.path.join(keys, name, "crl.pem")
        # A folder that can't be read is an error when its own turn comes.
        with suppress(OSError):
            data = read_file(path)
            if data not in copies:
                copies[data] = without_known(read_lists(path), known)
    return tuple(copies.values())


def without_known(file: ListFile, known: set[bytes]) -> ListFile:
    """Return a crl.pem without the lists that are known. The others become known."""
    if file.lists is None:
        return file
    lists = []
    for crl in file.lists:
        digest = crl.fingerprint(hashes.SHA256())
        if digest not in known:
            known.add(digest)
            lists.append(crl)
    return ListFile(file.path, tuple(lists))


class Disk:
    """Writes the files of the keys folder; in a dry run, only keeps what they would hold."""

    def __init__(self, is_dry: bool) -> None:
        self.is_dry = is_dry
        self.written: list[str] = []  # the paths of an entry's files, during its turn
        self.unwritten: dict[str, bytes] = {}  # by path, in a dry run

    def read(self, path: str) -> bytes:
        """Return a file's bytes, as this run has left it. Raises OSError."""
        if path in self.unwritten:
            return self.unwritten[path]
        return read_file(path)

    def update(self, folder: str, there: Collection[str], files: Mapping[str, bytes]) -> None:
        """Write the files that are new or differ, each one whole. Raises OSError.

        `there` are the names of the files that the folder holds. If there are none, the folder
        appears whole, too.
        """
        changed: dict[str, bytes] = {}
        for name, data in files.items():
            if name not in there or self.read(f"{folder}/{name}") != data:
                changed[name] = data

        if changed and self.is_dry:
            check_writable(folder, there, next(iter(changed)))
        if not there and not self.is_dry:
            make_folder(folder, changed)
        for name, data in changed.items():
            path = f"{folder}/{name}"
            if self.is_dry:
                self.unwritten[path] = data
            elif there:
                replace_file(folder, name, data)
            self.written.append(path)

    def remove(self, path: str) -> None:
        """Remove a file. Raises OSError."""
        if not self.is_dry:
            os.unlink(path)


def check_writable(folder: str, there: Collection[str], name: str) -> None:
    """Raise OSError if a run that is not dry could not write a file."""
    path = f"{folder}/{name}"
    parent = folder
    if not there:
        path = folder
        parent = os.path.dirname(folder)
    if os.path.exists(parent) and not os.access(parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


def make_folder(path: str, files: Mapping[str, bytes]) -> None:
    """Make a folder beside its place, and rename it when it is complete. Raises OSError."""
    parent, folder_name = os.path.split(path)
    part = os.path.join(parent, f".{folder_name}.part")
    try:
        os.makedirs(part, 0o700, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    for name, data in files.items():
        create_file(f"{part}/{name}", data, f"{path}/{name}")
    # An empty folder may be there already. Where there is a file or a link, this fails.
    os.rename(part, path)


def replace_file(folder: str, name: str, data: bytes) -> None:
    """Create a file beside its place, and rename it when it is complete. Raises OSError."""
    path = f"{folder}/{name}"
    part = f"{folder}/.{name}.part"
    create_file(part, data, path)
    try:
        os.rename(part, path)
    except OSError as error:
        os.unlink(part)
        raise OSError(error.errno, error.strerror, path) from None


def create_file(part: str, data: bytes, path: str) -> None:
    """Create a file that is to become `path`. Raises OSError, which names `path`."""
    mode = 0o644
    if path.endswith("/key.pem"):
        mode = 0o600
    try:
        # The file has its mode from the start. O_EXCL does not follow a link that is there.
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(descriptor, "wb") as file:
            file.write(data)
    except OSError as error:
        if os.path.lexists(part):
            os.unlink(part)
        # When the disk is full, the system's error names no file.
        raise OSError(error.errno, error.strerror, path) from None


def to_pem(
    *objects: x509.Certificate | x509.CertificateSigningRequest | RevocationList | None,
) -> bytes:
    """Return certificates, requests or lists as PEM (RFC 7468), skipping None."""
    pem = b""
    for each in objects:
        if each is not None:
            pem += each.public_bytes(serialization.Encoding.PEM)
    return pem


@contextmanager
def locked(keys: str, is_dry: bool) -> Iterator[None]:
    """Make and lock the keys folder: one run at a time works on it. Raises Fault, OSError.

    A dry run makes no folder, and shares its lock with other dry runs.
    """
    if os.path.islink(keys) and not os.path.exists(keys):
        raise Fault(f"{keys}: is a link to {os.readlink(keys)}, which does not exist")
    if os.path.exists(keys) and not os.path.isdir(keys):
        raise Fault(f"{keys}: is not a folder")
    kind = fcntl.LOCK_EX
    if is_dry:
        kind = fcntl.LOCK_SH
    if not is_dry:
        os.makedirs(keys, 0o700, exist_ok=True)
    elif not os.path.exists(keys):
        yield
        return

    # The kernel releases the lock when this process ends, however it ends.
    lock = os.open(keys, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{SCRIPT}: waiting for another run on {keys}", file=sys.stderr, flush=True)
            fcntl.flock(lock, kind)
        yield
    finally:
        os.close(lock)


def clear_leftovers(keys: str) -> Iterator[Problem]:
    """Remove the unfinished files of a killed run; yield those that can't be removed."""
    for pattern in ("*/issued/.*.part", "*/.*.part", ".*.part"):
        for part in Path(keys).glob(pattern):
            try:
                remove(part)
            except OSError as error:
                # For a file in a folder, rmtree's error names only the file.
                yield Problem("error", f"{part}: {error.strerror}")


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that it holds. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


# --- 9. Keys and pass phrases ----------------------------------------------------------------


KEY_TYPES: dict[str, Callable[[], PrivateKey]] = {
    "rsa:2048": partial(rsa.generate_private_key, 65537, 2048),
    "rsa:3072": partial(rsa.generate_private_key, 65537, 3072),
    "rsa:4096": partial(rsa.generate_private_key, 65537, 4096),
    "rsa:6144": partial(rsa.generate_private_key, 65537, 6144),
    "rsa:7680": partial(rsa.generate_private_key, 65537, 7680),
    "rsa:8192": partial(rsa.generate_private_key, 65537, 8192),
    "ec:prime256v1": partial(ec.generate_private_key, ec.SECP256R1()),
    "ec:secp384r1": partial(ec.generate_private_key, ec.SECP384R1()),
    "ec:secp521r1": partial(ec.generate_private_key, ec.SECP521R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ed448": ed448.Ed448PrivateKey.generate,
}
ML_DSA = ("ml-dsa-44", "ml-dsa-65", "ml-dsa-87")
with suppress(ImportError):
    # cryptography has these (RFC 9881) from release 47 on.
    from cryptography.hazmat.primitives.asymmetric import mldsa

    KEY_TYPES["ml-dsa-44"] = mldsa.MLDSA44PrivateKey.generate
    KEY_TYPES["ml-dsa-65"] = mldsa.MLDSA65PrivateKey.generate
    KEY_TYPES["ml-dsa-87"] = mldsa.MLDSA87PrivateKey.generate

DIGESTS: dict[str, Digest] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}


class Signer:
    """An entry's private key, opened when it is first needed."""

    def __init__(
        self,
        entry: Entry,
        phrases: Phrases,
        path: str,
        pem: bytes | None,
        key: PrivateKey | None,
    ) -> None:
        self.entry = entry
        self.phrases = phrases
        self.path = path
        self.pem = pem  # None: the key is elsewhere
        self.key = key  # None: not opened yet

    def is_here(self) -> bool:
        """Tell whether there is a key, encrypted or not, or a program that signs."""
        return self.pem is not None or self.key is not None

    def is_locked(self) -> bool:
        """Tell whether somebody would have to type the key's pass phrase."""
        if self.key is not None or self.pem is None or b"ENCRYPTED" not in self.pem:
            return False
        variable = self.entry.passphrase
        return variable is None or not self.phrases.known(variable)

    def open(self) -> PrivateKey:
        """Return the key, decrypted once. Raises Fault."""
        if self.key is None:
            self.key = self.decrypt()
        return self.key

    def decrypt(self) -> PrivateKey:
        """Return the key in key.pem. Raises Fault."""
        pem = self.pem or b""
        variable = self.entry.passphrase
        phrase = None
        if b"ENCRYPTED" in pem:
            if variable is None:
                raise Fault(f"{self.path}: is encrypted, but {self.entry.where} has no cipher")
            phrase = self.phrases.get(variable)
        try:
            key = load_key(pem, phrase)
        except UnusableKey as error:
            advice = f"take a new key: rm -r {os.path.dirname(self.path)}"
            raise Fault(f"{self.path}: {error}: {advice}") from None
        except (ValueError, TypeError, UnsupportedAlgorithm, crypto.Error):
            raise Fault(f"{self.path}: {self.why_unreadable(pem)}") from None
        # Before it signs, its public key is compared with one of a type that can sign.
        return cast("PrivateKey", key)

    def why_unreadable(self, pem: bytes) -> str:
        """Return what may be wrong with a key that can't be read, and what to do."""
        path = self.path
        if b"OPENSSH" in pem and self.entry.key_type == "ed25519":
            folder = os.path.dirname(path)
            why = "is in OpenSSH's own form, from which ed25519 keys have no way back"
            return f"{why}: take a new key: rm -r {folder}"
        if b"OPENSSH" in pem:
            return f"is in OpenSSH's own form: ssh-keygen -p -m PKCS8 -f {path}"
        if pem and b"-----BEGIN" not in pem:
            command = f"openssl pkey -in {path} -out new.pem"
            return f"is not in PEM: {command} && mv new.pem {path}"
        if b"ENCRYPTED" in pem:
            variable = self.entry.passphrase
            return f"is damaged, or its pass phrase ({variable}) is wrong or not set"
        return "is damaged, or of a form that OpenSSL can't read"

    def digest(self) -> Digest | None:
        """Return what the key signs with; None for the key types that hash by themselves."""
        if isinstance(self.open(), (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey)):
            return DIGESTS[self.entry.digest]
        return None


EVP_PKEY_RSA_PSS = 912
# The version in DER, among the first octets of an unencrypted key.
PKCS8_VERSION_2 = bytes.fromhex("020101300506032b65")


class UnusableKey(Exception):
    """Why a private key is of no use for TLS."""


# PEM as nearly all programs write it (RFC 7468, section 3).
USUAL_PEM = re.compile(
    b"-----BEGIN [A-Z ]+-----\n([A-Za-z0-9+/=]{1,76}\n)+-----END [A-Z ]+-----\n"
)


def load_key(pem: bytes, phrase: bytes | None) -> object:
    """Return a private key. Raises UnusableKey, ValueError, crypto.Error.

    Servers and clients read it with OpenSSL, so what may be read in two ways is read with
    OpenSSL, too. It reads some keys that cryptography does not, such as EC keys with 31 or 33
    octets, which some programs write. cryptography takes an RSA-PSS key for a plain one, and
    reads PEM in one line, and Ed25519 keys in version 2 of PKCS#8 (RFC 5958), which OpenSSL
    3.0 can't.
    """
    if PKCS8_VERSION_2 in der_of(pem):
        raise UnusableKey("is in version 2 of PKCS#8, which OpenSSL 3.0 can't read")
    key = None
    with suppress(ValueError):
        key = serialization.load_pem_private_key(pem, phrase)
    is_usual = USUAL_PEM.fullmatch(pem) is not None
    if key is not None and is_usual and not isinstance(key, rsa.RSAPrivateKey):
        return key

    loaded = crypto.load_privatekey(crypto.FILETYPE_PEM, pem, phrase or b"")
    if loaded.type() == EVP_PKEY_RSA_PSS:
        raise UnusableKey("is an RSA-PSS key, and its certificate would say plain RSA")
    return key or loaded.to_cryptography_key()


def make_key(run: Run, entry: Entry, folder: Folder) -> Signer:
    """Make a new key, and encrypt it if the entry has a cipher. Raises Fault."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if entry.passphrase is not None:
        phrase = run.phrases.get(entry.passphrase, new=True)
        # This is PBES2 with AES-256-CBC (RFC 8018), the one cipher that an entry can have.
        encryption = serialization.BestAvailableEncryption(phrase)
    if entry.name in run.new_keys:
        key = run.new_keys[entry.name].result()
    else:
        key = KEY_TYPES[entry.key_type]()
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    return Signer(entry, run.phrases, f"{folder.path}/key.pem", pem, key)


def key_type(public_key: object) -> str:
    """Return a public key's type as the configuration spells it."""
    if isinstance(public_key, rsa.RSAPublicKey):
        return f"rsa:{public_key.key_size}"
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        # SEC 2 has another name for the curve that X9.62 and OpenSSL call prime256v1.
        return f"ec:{public_key.curve.name.replace('secp256r1', 'prime256v1')}"
    name = type(public_key).__name__.removesuffix("PublicKey").lower()
    return name.replace("mldsa", "ml-dsa-")


def check_key(path: str, public_key: object) -> None:
    """Raise Fault for a public key that is weak, or of a type that signs no certificates."""
    name = key_type(public_key)
    is_strong_rsa = isinstance(public_key, rsa.RSAPublicKey) and public_key.key_size >= 2048
    if not is_strong_rsa and name not in KEY_TYPES:
        raise Fault(
            f"{path}: its key, {name}, is too weak or of a type that can't be used here: "
            "take one such as ec:prime256v1"
        )


def make_keys_ahead(keys: str, entries: Sequence[Entry]) -> dict[str, Future[PrivateKey]]:
    """Start to make the RSA keys of all new entries on all cores, as each one takes long."""
    new = []
    for entry in entries:
        if entry.key_type.startswith("rsa:") and not os.path.lexists(
            os.path.join(keys, entry.name)
        ):
            new.append(entry)
    if not new:
        return {}

    # Imported only here, as it would slow the start of every other run by a tenth.
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    return {entry.name: pool.submit(KEY_TYPES[entry.key_type]) for entry in new}


class Programs(NamedTuple):
    """How programs are called that sign in place of a key, and what became of it."""

    is_dry: bool
    timeout: int  # seconds
    failures: dict[str, str]  # by path: what is wrong with a program; it isn't called again
    not_called: set[str]  # the paths of those that a dry run would have called


# Stands for a signature in a dry run, which calls no program.
NOT_SIGNED = b"not signed"


class ProgramKey:
    """A private key that only a program can use: `sign`, in a CA's folder.

    Whatever passes for one of cryptography's private keys can sign certificates, requests and
    lists. The classes below do, one for each type of key.
    """

    def __init__(
        self, path: str, public_key: PublicKey, digest: str | None, programs: Programs
    ) -> None:
        self.path = path
        self.its_public_key = public_key
        self.digest = digest  # None: the key type leaves no choice
        self.programs = programs

    def public_key(self) -> PublicKey:
        """Return the public key that belongs to the program."""
        return self.its_public_key

    def sign(self, data: bytes, *_parameters: object) -> bytes:
        """Return what the program signs, once it is checked. Raises Fault."""
        programs = self.programs
        if programs.is_dry:
            programs.not_called.add(self.path)
            return NOT_SIGNED
        # A program that is called in vain a thousand times may lock its token.
        if self.path in programs.failures:
            raise Fault(programs.failures[self.path])
        try:
            return self.checked_signature(data)
        except Fault as error:
            programs.failures[self.path] = str(error)
            raise

    def checked_signature(self, data: bytes) -> bytes:
        """Call the program. Raises Fault if what it prints is not its key's signature."""
        arguments = []
        digest = None
        if self.digest is not None:
            arguments.append(self.digest)
            digest = DIGESTS[self.digest]
        signature = call_program(self.path, arguments, data, self.programs.timeout)
        if not is_signed_with(self.its_public_key, digest, signature, data):
            key = f"its {key_type(self.its_public_key)} key"
            what = f"printed {len(signature)} bytes, which are not a signature by {key}"
            if self.digest is not None:
                what += f" with {self.digest}"
            raise Fault(f"{self.path}: {what}: check which key it uses, and the form")
        return signature


@rsa.RSAPrivateKey.register
class RsaProgramKey(ProgramKey):
    """One whose signatures are those of PKCS#1 v1.5 (RFC 8017, section 8.2)."""


@ec.EllipticCurvePrivateKey.register
class EcProgramKey(ProgramKey):
    """One whose signatures are ECDSA's, in DER (RFC 3279, section 2.2.3)."""


@ed25519.Ed25519PrivateKey.register
class Ed25519ProgramKey(ProgramKey):
    """One whose signatures are those of RFC 8032."""


@ed448.Ed448PrivateKey.register
class Ed448ProgramKey(ProgramKey):
    """One whose signatures are those of RFC 8032."""


PROGRAM_KEYS: dict[str, type[ProgramKey]] = {
    "rsa": RsaProgramKey,
    "ec": EcProgramKey,
    "ed25519": Ed25519ProgramKey,
    "ed448": Ed448ProgramKey,
}
if "ml-dsa-44" in KEY_TYPES:

    @mldsa.MLDSA44PrivateKey.register
    class MlDsa44ProgramKey(ProgramKey):
        """One whose signatures are those of FIPS 204."""

    @mldsa.MLDSA65PrivateKey.register
    class MlDsa65ProgramKey(ProgramKey):
        """One whose signatures are those of FIPS 204."""

    @mldsa.MLDSA87PrivateKey.register
    class MlDsa87ProgramKey(ProgramKey):
        """One whose signatures are those of FIPS 204."""

    PROGRAM_KEYS["ml-dsa-44"] = MlDsa44ProgramKey
    PROGRAM_KEYS["ml-dsa-65"] = MlDsa65ProgramKey
    PROGRAM_KEYS["ml-dsa-87"] = MlDsa87ProgramKey


def program_key(run: Run, entry: Entry, folder: Folder) -> ProgramKey:
    """Return the key of a CA whose folder holds `sign`. Raises Fault, OSError."""
    path = f"{folder.path}/sign"
    if not entry.is_ca:
        raise Fault(f"{path}: only a CA's folder may hold one: remove it")
    if "key.pem" in folder.file_names:
        raise Fault(f"{path}: is there beside key.pem: remove the one that is not in use")
    check_program(path)

    public_key = public_key_of(folder)
    check_key(path, public_key)
    # rsa:2048 and rsa:4096 differ for the program alone.
    kind, _, _ = key_type(public_key).partition(":")
    digest = None
    if kind in ("rsa", "ec"):
        digest = entry.digest
    return PROGRAM_KEYS[kind](path, cast("PublicKey", public_key), digest, run.programs)


def check_program(path: str) -> None:
    """Raise Fault for a program that can't run, or that others could put another in place of.

    Raises OSError.
    """
    if not os.path.isfile(path) or not os.access(path, os.X_OK):
        raise Fault(f"{path}: is not executable: chmod u+x {path}")
    for each in (path, os.path.dirname(path)):
        status = os.stat(each)
        if status.st_mode & 0o022:
            advice = f"so {path} is not called: chmod go-w {each}"
            raise Fault(f"{each}: others can write it, {advice}")
        if status.st_uid not in (0, os.geteuid()):
            raise Fault(f"{each}: belongs to another user, so {path} is not called")


def public_key_of(folder: Folder) -> object:
    """Return the public key that belongs to `sign`. Raises Fault, OSError."""
    path = f"{folder.path}/public.pem"
    if "public.pem" in folder.file_names:
        try:
            return serialization.load_pem_public_key(read_file(path))
        except INVALID:
            raise damaged(path, read_file(path), "pkey -pubin -pubout") from None
    # match() compares these two with each other.
    if folder.certificate is not None:
        return folder.certificate.public_key()
    if folder.request is not None:
        return folder.request.public_key
    raise Fault(f"{path}: is missing: put the public key there that belongs to sign")


# Bytes: more than the longest signature, that of ML-DSA-87, has.
MOST_OUTPUT = 8192


def call_program(path: str, arguments: Sequence[str], data: bytes, timeout: int) -> bytes:
    """Run a program in its folder, and return what it prints. Raises Fault.

    Its standard input is `data`. It has the script's standard error, and may ask questions at
    the terminal. After `timeout` seconds, it is killed.
    """
    # Imported only here, as most runs do without it.
    import subprocess

    folder, name = os.path.split(path)
    # A file rather than a pipe, as openssl asks for its length.
    with open(os.memfd_create("data"), "w+b") as standard_input:
        standard_input.write(data)
        standard_input.seek(0)
        try:
            process = subprocess.Popen(
                [f"./{name}", *arguments],
                cwd=folder,
                stdin=standard_input,
                stdout=subprocess.PIPE,
            )
        except OSError as error:
            raise Fault(f"{path}: can't be run: {error.strerror}") from None

    until = time.monotonic() + timeout
    try:
        output = output_of(process, path, until)
        status = process.wait(max(0.0, until - time.monotonic()))
    except (TimeoutError, subprocess.TimeoutExpired):
        why = f"did not sign within {timeout} seconds (SROS_SIGN_TIMEOUT)"
        raise Fault(f"{path}: {why}") from None
    finally:
        kill(process)
    if status < 0:
        raise Fault(f"{path}: did not sign: signal {-status} ended it")
    if status > 0:
        raise Fault(f"{path}: did not sign: it ended with status {status}")
    return output


def output_of(process: Popen[bytes], path: str, until: float) -> bytes:
    """Return what a program prints. Raises TimeoutError, and Fault if it prints too much."""
    import select

    pipe = cast("IO[bytes]", process.stdout)
    output = b""
    while len(output) <= MOST_OUTPUT:
        seconds_left = max(0.0, until - time.monotonic())
        ready, _, _ = select.select([pipe], [], [], seconds_left)
        if not ready:
            raise TimeoutError
        data = os.read(pipe.fileno(), MOST_OUTPUT)
        if not data:
            return output
        output += data
    raise Fault(f"{path}: printed more than any signature has")


def kill(process: Popen[bytes]) -> None:
    """Kill a program that still runs, and those that it has started."""
    if process.poll() is None:
        for pid in [process.pid, *started_by(process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()
    cast("IO[bytes]", process.stdout).close()


def started_by(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that they have (proc(5))."""
    found = []
    # Some kernels lack the file.
    with suppress(OSError):
        for child in read_file(f"/proc/{pid}/task/{pid}/children").split():
            found.append(int(child))
            found.extend(started_by(int(child)))
    return found


class Phrases(NamedTuple):
    """Pass phrases, by variable: from the environment, or typed once at the terminal.

    They are bytes, so that a key opens in every locale.
    """

    environment: Mapping[bytes, bytes]
    typed: dict[str, bytes]

    def known(self, variable: str) -> bool:
        """Tell whether a pass phrase is at hand, so that there is no prompt."""
        return variable in self.typed or os.fsencode(variable) in self.environment

    def get(self, variable: str, new: bool = False) -> bytes:
        """Return a pass phrase. It is typed twice if it is for a new key. Raises Fault."""
        if not self.known(variable):
            self.typed[variable] = ask(variable, new)
        phrase = self.typed.get(variable)
        if phrase is None:
            phrase = self.environment[os.fsencode(variable)]

        # OpenSSL's buffer for it (PEM_BUFSIZE) has 1024 bytes.
        if not 0 < len(phrase) < 1024:
            raise Fault(f"{variable}: a pass phrase must have 1 to 1023 bytes")
        if new and phrase.endswith((b"\n", b"\r")):
            why = "ends with a line break, which can't be typed: remove it"
            raise Fault(f"{variable}: the pass phrase {why}")
        return phrase


def ask(variable: str, new: bool) -> bytes:
    """Return the pass phrase that somebody types. Raises Fault."""
    try:
        # Without a terminal, getpass would read standard input.
        os.close(os.open("/dev/tty", os.O_RDWR))
        phrase = getpass.getpass(f"Enter pass phrase ({variable}): ")
        again = phrase
        if new:
            again = getpass.getpass(f"Verifying - enter it again ({variable}): ")
    except UnicodeDecodeError:
        # `from None`, as the text of that exception shows what was typed.
        raise Fault(f"{variable}: what was typed is not text in this locale") from None
    except (OSError, EOFError):
        why = "is not set, and there is no terminal to ask on"
        raise Fault(f"{variable}: {why}") from None
    if phrase != again:
        raise Fault(f"{variable}: the two pass phrases differ: run again")
    return os.fsencode(phrase)


# --- 10. Configuration -----------------------------------------------------------------------


class Loader(CSafeLoader):
    """PyYAML's safe loader, which also

    - refuses deep nesting, which crashes releases before 6.0.4;
    - refuses a field that is given twice, and a mapping that contains itself;
    - lets the first of several merges win, as YAML's merge type says; in 6.0.4 the last wins.
    """

    max_depth = 100  # an entry needs five levels

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.depth = 0
        # PyYAML notices a mapping that contains itself only if it constructs depth first.
        self.deep_construct = True

    def descend_resolver(self, current_node: Any, current_index: Any) -> None:
        """Enter a level of nesting. Raises yaml.MarkedYAMLError."""
        self.depth += 1
        if self.depth > self.max_depth:
            text = f"nested more than {self.max_depth} levels deep"
            raise yaml.MarkedYAMLError(None, None, text, current_node.start_mark)
        super().descend_resolver(current_node, current_index)

    def ascend_resolver(self) -> None:
        """Leave a level of nesting."""
        self.depth -= 1
        super().ascend_resolver()

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping. Raises yaml.MarkedYAMLError."""
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for name, count in names.items():
            if count > 1:
                raise yaml.MarkedYAMLError(
                    None, None, f"{name!r} is given twice", node.start_mark
                )

        pairs: list[tuple[Any, Any]] = []
        for key, value in node.value:
            if key.value == "<<" and value is node:
                raise yaml.MarkedYAMLError(
                    None, None, "an anchor merges itself", node.start_mark
                )
            if key.value == "<<" and isinstance(value, yaml.SequenceNode):
                # "<<: [*a, *b]" becomes "<<: *b" and "<<: *a". Of these, the last one wins.
                pairs.extend((key, each) for each in reversed(value.value))
            else:
                pairs.append((key, value))
        node.value = pairs
        return cast("dict[Any, Any]", super().construct_mapping(node, deep))


# A date stays text, since it may also be an offset from now.
yaml.add_constructor("tag:yaml.org,2002:timestamp", Loader.construct_yaml_str, Loader)


def read_configuration(path: str, now: datetime) -> list[Entry]:
    """Return all entries in the order of the tree. Raises ConfigurationError."""
    document = load_yaml(path)
    cas = None
    if isinstance(document, dict):
        cas = document.get("keys")
    if not isinstance(document, dict) or not isinstance(cas, dict) or not cas:
        text = "must be a mapping with the field keys, a mapping of entries"
        raise ConfigurationError(f"{path}: {text}")
    for field in document:
        if field != "keys" and not str(field).startswith("x-"):
            text = f"unknown field {field!r}: only keys, and x-… for anchors, may be here"
            raise ConfigurationError(f"{path}: {text}")

    nodes = cas.pop("nodes", None) or {}
    if not isinstance(nodes, dict):
        raise ConfigurationError(f"{path}: keys.nodes: must be a mapping of entries")
    entries: dict[str, Entry] = {}
    for name, fields in cas.items():
        entries[name] = read_entry(f"{path}: keys.{name}", name, fields, True, now)
    for name, fields in nodes.items():
        if name in cas:
            text = f"{name} is a name under keys, too, and would have the same folder"
            raise ConfigurationError(f"{path}: keys.nodes: {text}")
        entries[name] = read_entry(f"{path}: keys.nodes.{name}", name, fields, False, now)

    ordered = in_tree_order(entries)
    check_path_lengths(entries)
    check_subjects(entries)
    check_trust(entries)
    return with_trust(ordered)


def load_yaml(path: str) -> object:
    """Return what a YAML file says. Raises ConfigurationError."""
    try:
        with open(path, "rb") as file:
            return yaml.load(file, Loader)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, LookupError, RecursionError) as error:
        # PyYAML's own words take several lines.
        raise ConfigurationError(f"{path}: {' '.join(str(error).split())}") from None


def in_tree_order(entries: Mapping[str, Entry]) -> list[Entry]:
    """Return each entry, then what it signs, depth first. Raises ConfigurationError."""
    below: dict[str | None, list[Entry]] = {}
    for entry in entries.values():
        if entry.issuer is not None:
            issuer = entries.get(entry.issuer)
            if issuer is None or not issuer.is_ca:
                text = f"there is no CA {entry.issuer!r} under keys"
                raise ConfigurationError(f"{entry.where}.issuer: {text}")
        below.setdefault(entry.issuer, []).append(entry)

    ordered: list[Entry] = []
    waiting = list(reversed(below.get(None, [])))
    while waiting:
        entry = waiting.pop()
        ordered.append(entry)
        waiting.extend(reversed(below.get(entry.name, [])))

    reached = {entry.name for entry in ordered}
    for entry in entries.values():
        if entry.name not in reached:
            text = "goes round in a circle, and never reaches a self-signed CA"
            raise ConfigurationError(f"{entry.where}.issuer: {text}")
    return ordered


def check_path_lengths(entries: Mapping[str, Entry]) -> None:
    """Check the pathlen of all CAs (RFC 5280, section 4.2.1.9). Raises ConfigurationError."""
    for entry in entries.values():
        if not entry.is_ca:
            continue
        # How many CAs are below the issuer in question, down to this entry.
        cas_below = 1
        issuer_name = entry.issuer
        while issuer_name is not None:
            issuer = entries[issuer_name]
            limit = path_length(issuer)
            if limit is not None and cas_below > limit:
                text = f"more CAs in a row than {issuer.name}'s pathlen:{limit} allows"
                raise ConfigurationError(f"{entry.where}.issuer: {text}")
            cas_below += 1
            issuer_name = issuer.issuer


def check_subjects(entries: Mapping[str, Entry]) -> None:
    """Check that no entry has its issuer's subject. Raises ConfigurationError."""
    for entry in entries.values():
        if entry.issuer is None:
            continue
        # Such a certificate would look self-signed (RFC 5280, section 6.1).
        if comparable(entry.subject) == comparable(entries[entry.issuer].subject):
            text = f"is the same as that of its issuer, {entry.issuer}"
            raise ConfigurationError(f"{entry.where}.subject: {text}")


def check_trust(entries: Mapping[str, Entry]) -> None:
    """Check the anchors that nodes trust. Raises ConfigurationError."""
    for entry in entries.values():
        where = f"{entry.where}.trust"
        if entry.is_ca and entry.trust:
            raise ConfigurationError(f"{where}: is for nodes only, which verify their peers")
        for name in entry.trust:
            anchor = entries.get(name)
            if anchor is None or not anchor.is_ca:
                raise ConfigurationError(f"{where}: there is no CA {name!r} under keys")
            if anchor.issuer is not None:
                text = f"{name} is not a trust anchor: {anchor.issuer} signs it"
                raise ConfigurationError(f"{where}: {text}")
            if entry.trust.count(name) > 1:
                raise ConfigurationError(f"{where}: {name} is given twice")


def with_trust(ordered: Sequence[Entry]) -> list[Entry]:
    """Return entries in the order of the tree, with the anchors that they trust.

    By default, a node trusts its own anchor.
    """
    anchors: dict[str, str] = {}
    complete = []
    for entry in ordered:
        anchor = entry.name
        if entry.issuer is not None:
            anchor = anchors[entry.issuer]
        anchors[entry.name] = anchor
        if not entry.trust:
            entry = entry._replace(trust=(anchor,))
        complete.append(entry)
    return complete


def comparable(name: x509.Name) -> list[tuple[str, str]]:
    """Return a form of a name that is equal for equal names (RFC 5280, section 7.1).

    As in OpenSSL, case does not count, nor do spaces at either end or repeated ones.
    """
    attributes = []
    for attribute in name:
        text = " ".join(str(attribute.value).split())
        attributes.append((attribute.oid.dotted_string, text.lower()))
    return attributes


def path_length(ca: Entry) -> int | None:
    """Return a CA's pathlen; None if it has no limit."""
    for extension in ca.extensions:
        if isinstance(extension.value, x509.BasicConstraints):
            return extension.value.path_length
    return None


# Forms of values, as regular expressions. A name is a folder.
NAME = "[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}"
OID = "([01][.][123]?[0-9]|2[.](0|[1-9][0-9]*))([.](0|[1-9][0-9]*))+"
TIME = "[+-]?[0-9]{1,5}[hdwy]|[0-9]{4}-[0-9]{2}-[0-9]{2}([Tt ].+)?"
DER = "DER:([0-9A-Fa-f]{2}[: ]?)+"

# The fields of an entry and their forms. FORMS, at the end of chapter 11, adds the fields of
# subject and extensions.
PLAIN_FIELDS = {
    "issuer": NAME,
    "trust": NAME,
    # ML-DSA is named even where cryptography lacks it: check_fields then says so.
    "key": "|".join(dict.fromkeys([*KEY_TYPES, *ML_DSA])),
    "digest": "|".join(DIGESTS),
    "cipher": "aes-256-cbc",
    "passphrase": "[A-Za-z_][A-Za-z0-9_]*",
    "validity.notBefore": TIME,
    "validity.notAfter": TIME,
    "validity.nextUpdate": TIME,
}

# The fields of a subject: their OIDs, and their forms within the bounds of RFC 5280, A.1.
SUBJECT_FIELDS = {
    "countryName": (x509.NameOID.COUNTRY_NAME, "[A-Z]{2}"),
    "stateOrProvinceName": (x509.NameOID.STATE_OR_PROVINCE_NAME, ".{1,128}"),
    "localityName": (x509.NameOID.LOCALITY_NAME, ".{1,128}"),
    "organizationName": (x509.NameOID.ORGANIZATION_NAME, ".{1,64}"),
    "organizationalUnitName": (x509.NameOID.ORGANIZATIONAL_UNIT_NAME, ".{1,64}"),
    "commonName": (x509.NameOID.COMMON_NAME, ".{1,64}"),
    "serialNumber": (x509.NameOID.SERIAL_NUMBER, "[A-Za-z0-9 '()+,./:=?-]{1,64}"),
    "domainComponent": (x509.NameOID.DOMAIN_COMPONENT, "[A-Za-z0-9-]{1,63}"),
    "givenName": (x509.NameOID.GIVEN_NAME, ".{1,64}"),
    "surname": (x509.NameOID.SURNAME, ".{1,64}"),
    "title": (x509.NameOID.TITLE, ".{1,64}"),
    "pseudonym": (x509.NameOID.PSEUDONYM, ".{1,128}"),
    "userId": (x509.NameOID.USER_ID, ".{1,256}"),
    "streetAddress": (x509.NameOID.STREET_ADDRESS, ".{1,128}"),
    "postalCode": (x509.NameOID.POSTAL_CODE, ".{1,40}"),
    "emailAddress": (x509.NameOID.EMAIL_ADDRESS, "[!-?A-~]{1,64}@[A-Za-z0-9.-]{1,190}"),
}

GROUPS = ("subject", "validity", "extensions")


def read_entry(where: str, name: Any, fields: Any, is_ca: bool, now: datetime) -> Entry:
    """Return one entry. Raises ConfigurationError, with the place."""
    try:
        check_form(text_of(name), NAME)
        if not isinstance(fields, dict):
            raise ValueError("must be a mapping of fields to their values")
    except ValueError as error:
        raise ConfigurationError(f"{where}: {error}") from None

    values: dict[str, Any] = {}
    for field, item in fields_of(fields):
        try:
            refuse_unknown(field, item)
            # "~" removes a field.
            if item is not None:
                parts = parts_of(field, item, name)
                values[field] = read_value(field, parts, is_ca, now)
        except INVALID as error:
            # Not of a collection, as aliases of aliases can make one that is immense.
            shown = ""
            if item is not None and not isinstance(item, (dict, list, set)):
                shown = f"{item!r}: "
            raise ConfigurationError(f"{where}.{field}: {shown}{error}") from None

    has_subject = isinstance(fields.get("subject"), dict)
    check_fields(where, values, is_ca, has_subject)
    check_combinations(where, values, is_ca, now)
    return new_entry(name, where, is_ca, values, now)


def new_entry(
    name: str, where: str, is_ca: bool, values: Mapping[str, Any], now: datetime
) -> Entry:
    """Return an entry with values that were checked."""
    passphrase = None
    if "cipher" in values:
        passphrase = values["passphrase"]
    subject: list[x509.NameAttribute[str | bytes]] = []
    for field in values:
        if field.startswith("subject."):
            subject.extend(values[field])
    return Entry(
        name=name,
        where=where,
        is_ca=is_ca,
        issuer=values.get("issuer"),
        trust=values.get("trust", ()),
        key_type=values["key"],
        digest=values.get("digest", "sha256"),
        passphrase=passphrase,
        subject=x509.Name(subject),
        not_before=values.get("validity.notBefore", now),
        not_after=values["validity.notAfter"],
        next_update=values.get("validity.nextUpdate"),
        extensions=tuple(values[field] for field in values if field.startswith("extensions.")),
    )


def fields_of(mapping: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Yield an entry's fields by their full names, such as validity.notAfter."""
    for group, part in mapping.items():
        if group in GROUPS and isinstance(part, dict):
            for name, item in part.items():
                yield f"{group}.{name}", item
        else:
            yield str(group), part


def refuse_unknown(field: str, item: object) -> None:
    """Raise ValueError if there is no such field."""
    group, _, name = field.partition(".")
    if field in FORMS or is_nameless(group, name):
        return
    # Within a group, ~ may also remove a field that is not there.
    if item is None and group in GROUPS:
        return
    if field in GROUPS and isinstance(item, list):
        raise ValueError("is a list, not a mapping of fields to their values")
    if field in GROUPS:
        raise ValueError("must be a mapping of fields to their values")

    known = []
    for each in FORMS:
        shown = each
        if not each.startswith(f"{group}."):
            shown, _, _ = each.partition(".")
        if shown not in known:
            known.append(shown)
    raise ValueError(f"unknown field: the known ones are {', '.join(known)}")


def is_nameless(group: str, name: str) -> bool:
    """Tell whether a field is the OID of an extension or attribute that has no name here."""
    if not re.fullmatch(OID, name):
        return False
    if group == "subject":
        return name not in [oid.dotted_string for oid, _ in SUBJECT_FIELDS.values()]
    return group == "extensions" and extension_row(name).name == name


def check_fields(
    where: str, values: Mapping[str, Any], is_ca: bool, has_subject: bool
) -> None:
    """Check that an entry's fields go together. Raises ConfigurationError."""
    required = ["key", "validity.notAfter"]
    if is_ca:
        required.append("extensions.basicConstraints")
        required.append("extensions.keyUsage")
        required.append("extensions.subjectKeyIdentifier")
    else:
        required.append("issuer")
    if "issuer" in values:
        required.append("extensions.authorityKeyIdentifier")
    if "cipher" in values:
        required.append("passphrase")
    for field in required:
        if field not in values:
            raise ConfigurationError(f"{where}.{field}: is missing")
    check_subject(where, values, is_ca, has_subject)


def check_combinations(
    where: str, values: Mapping[str, Any], is_ca: bool, now: datetime
) -> None:
    """Check fields that exclude each other. Raises ConfigurationError."""
    ends = values["validity.notAfter"]
    begins = values.get("validity.notBefore", now)
    # A notAfter that has passed became wrong with time: check_dates handles it.
    if begins > ends > now:
        raise ConfigurationError(f"{where}.validity: notBefore is later than notAfter")
    if values["key"] not in KEY_TYPES:
        text = f"{values['key']} needs cryptography 47 or newer"
        raise ConfigurationError(f"{where}.key: {text}")
    if "digest" in values and values["key"].startswith(("ed", "ml-dsa")):
        text = f"{values['key']} takes no digest: remove it with ~"
        raise ConfigurationError(f"{where}.digest: {text}")
    if "validity.nextUpdate" in values and not is_ca:
        text = "only a CA has a revocation list"
        raise ConfigurationError(f"{where}.validity.nextUpdate: {text}")


def check_subject(
    where: str, values: Mapping[str, Any], is_ca: bool, has_subject: bool
) -> None:
    """Check that an entry has a name (RFC 5280, 4.1.2.6). Raises ConfigurationError."""
    if any(field.startswith("subject.") for field in values):
        return
    if is_ca or not has_subject:
        raise ConfigurationError(f"{where}.subject: is missing")
    names = values.get("extensions.subjectAltName")
    if names is None or not names.critical:
        text = "is missing: without one, subjectAltName must be critical (RFC 5280, 4.1.2.6)"
        raise ConfigurationError(f"{where}.subject: {text}")


def parts_of(field: str, item: object, name: str) -> tuple[str, ...]:
    """Return the texts of a list or of an extension, or the one text. Raises ValueError."""
    group, _, _ = field.partition(".")
    if isinstance(item, list):
        if group not in ("subject", "extensions", "trust"):
            why = "only trust, subject and extensions may hold lists"
            raise ValueError(f"is a list, not text: {why}")
        if not item:
            raise ValueError("is an empty list: ~ leaves a field out")
        return tuple(with_name(text_of(each), name) for each in item)
    text = with_name(text_of(item), name)
    if group not in ("extensions", "trust"):
        return (text,)
    # In a list, a part may have commas of its own.
    return tuple(part.strip() for part in text.split(","))


def text_of(item: object) -> str:
    """Return a value that is a text. Raises ValueError."""
    if isinstance(item, (dict, set)):
        raise ValueError("is a mapping, not text")
    if isinstance(item, list):
        raise ValueError("is a list, not text")
    if item is None:
        raise ValueError("is empty, not text")
    if not isinstance(item, str):
        traps = "(NO is false, 0123 is octal)"
        raise ValueError(f"YAML does not read this as text {traps}: put it in quotes")
    return item


def with_name(text: str, name: str) -> str:
    """Return a text with the entry's name in place of $name. Raises ValueError."""
    if "$" not in text:
        return text
    try:
        return string.Template(text).substitute(name=name)
    except (KeyError, ValueError):
        raise ValueError("$name is the only variable; a dollar sign is written $$") from None


# Cached, as the entries of a fleet have most of their values in common.
@cache
def read_value(field: str, parts: tuple[str, ...], is_ca: bool, now: datetime) -> object:
    """Return what a field says. Raises one of INVALID."""
    group, _, name = field.partition(".")
    for part in parts:
        check_form(part, FORMS.get(field, ".+"))
    if group == "subject":
        if name in SUBJECT_FIELDS:
            oid, _ = SUBJECT_FIELDS[name]
        else:
            oid = x509.ObjectIdentifier(name)
        return [name_attribute(oid, part) for part in parts]
    if group == "extensions":
        return read_extension(name, parts, is_ca)
    if group == "validity":
        return read_time(name, parts[0], now)
    if group == "trust":
        return parts
    return parts[0]


def check_form(text: str, form: str) -> None:
    """Check a text against a regular expression. Raises ValueError."""
    if not re.fullmatch(form, text):
        raise ValueError(f"is not of the form {form}")
    for character in text:
        # Control characters, separators of lines and paragraphs, halves of surrogate pairs.
        if unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs"):
            raise ValueError(f"contains {character!a}, which is not text")


def name_attribute(oid: x509.ObjectIdentifier, text: str) -> x509.NameAttribute[str | bytes]:
    """Return one attribute of a name (RFC 5280, section 4.1.2.4). Raises ValueError."""
    if oid != x509.NameOID.COMMON_NAME or len(text.encode()) <= 64:
        return x509.NameAttribute(oid, text)

    # RFC 5280 allows 64 characters. cryptography allows 64 octets, but more in what it reads.
    # So have it read a request whose organizationName is turned into a commonName.
    organization = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, text)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(organization)
    request = builder.sign(ed25519.Ed25519PrivateKey.generate(), None)
    der = request.public_bytes(serialization.Encoding.DER)
    der = der.replace(ORGANIZATION_NAME, COMMON_NAME, 1)
    return next(iter(x509.load_der_x509_csr(der).subject))


# id-at-organizationName and id-at-commonName in DER (RFC 5280, appendix A.1).
ORGANIZATION_NAME = bytes.fromhex("060355040a")
COMMON_NAME = bytes.fromhex("0603550403")


def read_time(name: str, text: str, now: datetime) -> datetime:
    """Return a timestamp, or an offset from now (a year has 365 days). Raises ValueError."""
    offset = re.fullmatch("([+-]?[0-9]+)([hdwy])", text)
    if offset is not None:
        hours = {"h": 1, "d": 24, "w": 7 * 24, "y": 365 * 24}[offset[2]]
        moment = now + timedelta(hours=int(offset[1]) * hours)
    else:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        moment = moment.astimezone(timezone.utc)

    # A timestamp becomes wrong with time, so it is checked when it is used.
    if offset is not None and (moment <= now) != (name == "notBefore"):
        if name == "notBefore":
            raise ValueError("must not be in the future")
        raise ValueError("must be in the future")
    # RFC 5280, section 4.1.2.5, has no years before 1950.
    if moment.year < 1950:
        raise ValueError("is before 1950")
    return moment.replace(microsecond=0)


# --- 11. Extensions --------------------------------------------------------------------------


class Parts(NamedTuple):
    """An extension's value as it is written: parts between commas, "critical" taken off."""

    items: list[str]
    critical: bool
    is_ca: bool  # whose extension it is


class ExtensionRow(NamedTuple):
    """All that the script knows about one extension."""

    name: str  # in x509v3_config(5); without a name there, the OID
    oid: x509.ObjectIdentifier
    form: str  # of each part, as a regular expression
    read: Callable[[Parts], x509.ExtensionType] | None  # None: the value is made from a key
    may_be_critical: bool = True
    limits_below: bool = False  # limits names or addresses, down to the last certificate


def read_extension(name: str, parts: Sequence[str], is_ca: bool) -> Extension:
    """Return an extension from the syntax of x509v3_config(5). Raises one of INVALID."""
    row = EXTENSIONS.get(name) or extension_row(name)
    items = list(parts)
    critical = items[0] == "critical"
    if critical:
        items.remove("critical")
        if not row.may_be_critical:
            raise ValueError("must not be critical, or OpenSSL would refuse it")
    if not items:
        raise ValueError(f"nothing of the form {row.form} follows critical")
    for item in items:
        if items.count(item) > 1:
            raise ValueError(f"{item!r} is given twice")
        if not re.fullmatch(row.form, item):
            text = f"{item!r} is not of the form {row.form}"
            if len(items) > 1:
                text += "; a part with a comma needs a YAML list of parts, or %2C in a URI"
            raise ValueError(text)

    value = None
    if row.read is not None:
        value = row.read(Parts(items, critical, is_ca))
    return Extension(row.oid, critical, value)


def read_basic_constraints(parts: Parts) -> x509.BasicConstraints:
    """Read `CA:TRUE, pathlen:0`, which a CA needs critical (RFC 5280, section 4.2.1.9)."""
    text = ",".join(parts.items)
    if not parts.is_ca and text == "CA:FALSE":
        return x509.BasicConstraints(False, None)
    if parts.is_ca and parts.critical and text == "CA:TRUE":
        return x509.BasicConstraints(True, None)
    limit = re.fullmatch("CA:TRUE,pathlen:([0-9]+)", text)
    if parts.is_ca and parts.critical and limit:
        return x509.BasicConstraints(True, int(limit[1]))
    raise ValueError("must be CA:FALSE, or for a CA: critical, CA:TRUE, pathlen:0")


# The names of x509v3_config(5), and those of x509.KeyUsage.
KEY_USAGES = {
    "digitalSignature": "digital_signature",
    "nonRepudiation": "content_commitment",
    "keyEncipherment": "key_encipherment",
    "dataEncipherment": "data_encipherment",
    "keyAgreement": "key_agreement",
    "keyCertSign": "key_cert_sign",
    "cRLSign": "crl_sign",
    "encipherOnly": "encipher_only",
    "decipherOnly": "decipher_only",
}


def read_key_usage(parts: Parts) -> x509.KeyUsage:
    """Read `keyCertSign, cRLSign` (RFC 5280, section 4.2.1.3)."""
    usage = x509.KeyUsage(**{bit: name in parts.items for name, bit in KEY_USAGES.items()})
    if usage.key_cert_sign != parts.is_ca or usage.crl_sign != parts.is_ca:
        raise ValueError("every CA needs keyCertSign and cRLSign, and no node may have them")
    return usage


PURPOSES = {
    "serverAuth": ExtendedKeyUsageOID.SERVER_AUTH,
    "clientAuth": ExtendedKeyUsageOID.CLIENT_AUTH,
    "codeSigning": ExtendedKeyUsageOID.CODE_SIGNING,
    "emailProtection": ExtendedKeyUsageOID.EMAIL_PROTECTION,
    "timeStamping": ExtendedKeyUsageOID.TIME_STAMPING,
    "OCSPSigning": ExtendedKeyUsageOID.OCSP_SIGNING,
}


def read_extended_key_usage(parts: Parts) -> x509.ExtendedKeyUsage:
    """Read `serverAuth, clientAuth`, or OIDs (RFC 5280, section 4.2.1.12)."""
    purposes = []
    for item in parts.items:
        purpose = PURPOSES.get(item) or x509.ObjectIdentifier(item)
        if purpose in purposes:
            raise ValueError(f"{item!r} is given twice, by name and by number")
        purposes.append(purpose)
    return x509.ExtendedKeyUsage(purposes)


def read_alternative_name(parts: Parts) -> x509.SubjectAlternativeName:
    """Read `DNS:localhost, IP:127.0.0.1` (RFC 5280, section 4.2.1.6)."""
    names: list[x509.GeneralName] = []
    spellings: list[object] = []
    for item in parts.items:
        name = read_name(item)
        spelling = comparable_name(name)
        if spelling in spellings:
            raise ValueError(f"{item!r} is given twice, in different spellings")
        names.append(name)
        spellings.append(spelling)
    return x509.SubjectAlternativeName(names)


def comparable_name(name: x509.GeneralName) -> object:
    """Return a form of a name that is equal for equal names (RFC 5280, 7.2, 7.4 and 7.5)."""
    # Upper and lower case mean the same host, and the same scheme of a URI.
    if isinstance(name, x509.DNSName):
        return name.value.lower()
    if isinstance(name, x509.RFC822Name):
        mailbox, _, host = name.value.partition("@")
        return mailbox, host.lower()
    if isinstance(name, x509.UniformResourceIdentifier):
        scheme_and_host = "[^:]+:(//[^/?#@]*(?![^/?#]))?"
        return re.sub(scheme_and_host, lambda found: found[0].lower(), name.value, count=1)
    return name


def read_name_constraints(parts: Parts) -> x509.NameConstraints:
    """Read `permitted;DNS:.example, excluded;IP:10.0.0.0/8` (RFC 5280, section 4.2.1.10)."""
    if not parts.is_ca:
        raise ValueError("is for a CA only")
    subtrees: dict[str, list[x509.GeneralName]] = {"permitted": [], "excluded": []}
    for item in parts.items:
        side, _, subtree = item.partition(";")
        subtrees[side].append(read_subtree(subtree))
    # RFC 5280 has no empty sequence of subtrees.
    return x509.NameConstraints(subtrees["permitted"] or None, subtrees["excluded"] or None)


def read_policies(parts: Parts) -> x509.CertificatePolicies:
    """Read OIDs (RFC 5280, section 4.2.1.4)."""
    oids = [x509.ObjectIdentifier(item) for item in parts.items]
    return x509.CertificatePolicies([x509.PolicyInformation(oid, None) for oid in oids])


def read_distribution_points(parts: Parts) -> x509.CRLDistributionPoints:
    """Read `URI:http://…` (RFC 5280, section 4.2.1.13)."""
    names: list[x509.GeneralName] = []
    for item in parts.items:
        name = read_name(item)
        if comparable_name(name) in [comparable_name(each) for each in names]:
            raise ValueError(f"{item!r} is given twice, in different spellings")
        names.append(name)
    points = [x509.DistributionPoint([name], None, None, None) for name in names]
    return x509.CRLDistributionPoints(points)


ACCESS_METHODS = {
    "OCSP": AuthorityInformationAccessOID.OCSP,
    "caIssuers": AuthorityInformationAccessOID.CA_ISSUERS,
}


def read_information_access(parts: Parts) -> x509.AuthorityInformationAccess:
    """Read `OCSP;URI:http://…, caIssuers;URI:http://…` (RFC 5280, section 4.2.2.1)."""
    descriptions = []
    for item in parts.items:
        method, _, location = item.partition(";")
        oid = ACCESS_METHODS.get(method) or x509.ObjectIdentifier(method)
        description = x509.AccessDescription(oid, read_name(location))
        if description in descriptions:
            raise ValueError(f"{item!r} is given twice, by name and by number")
        descriptions.append(description)
    return x509.AuthorityInformationAccess(descriptions)


def read_der(oid: x509.ObjectIdentifier, parts: Parts) -> x509.UnrecognizedExtension:
    """Read `DER:0403010203`, the content of any other extension."""
    digits = "".join(parts.items).removeprefix("DER:").replace(":", " ")
    extension = x509.UnrecognizedExtension(oid, bytes.fromhex(digits))
    # cryptography parses the content of OIDs that it knows. Have it do so, in a request.
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    builder = builder.add_extension(extension, critical=False)
    _ = builder.sign(ed25519.Ed25519PrivateKey.generate(), None).extensions
    return extension


LABEL = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
MAILBOX = "[!-?A-~]{1,64}"


def host_form(front: str) -> str:
    """Return the form of a host name with something in front (RFC 1034, section 3.5)."""
    at_most_253 = "(?=.{1,253}$)"
    no_address = "(?![0-9.]+$)"
    return f"{at_most_253}{no_address}{front}{LABEL}(?:[.]{LABEL})*"


NAME_FORMS = {
    # No verifier accepts a wildcard right below a top-level domain (RFC 6125, section 7.2).
    "DNS": host_form("(?:[*][.](?=[^.]+[.]))?"),
    "URI": "[A-Za-z][A-Za-z0-9+.-]*:[!-~]+",
    "email": f"{MAILBOX}@{host_form('')}",
}
SUBTREE_FORMS = {
    "DNS": host_form("[.]?"),
    "URI": host_form("[.]?"),
    "email": f"(?:{MAILBOX}@)?{host_form('[.]?')}",
}
NO_ZONE = "a certificate can't hold an address's zone: leave out % and what follows"
GENERAL_NAMES: dict[str, Callable[[str], x509.GeneralName]] = {
    "DNS": x509.DNSName,
    "URI": x509.UniformResourceIdentifier,
    "email": x509.RFC822Name,
}


def read_name(item: str) -> x509.GeneralName:
    """Read a name such as `DNS:localhost` (RFC 5280, section 4.2.1.6). Raises ValueError."""
    kind, _, value = item.partition(":")
    if kind == "IP":
        if "%" in value:
            raise ValueError(NO_ZONE)
        return x509.IPAddress(ipaddress.ip_address(value))
    if kind == "RID":
        return x509.RegisteredID(x509.ObjectIdentifier(value))
    if kind == "otherName":
        return read_other_name(value)
    return read_text_name(kind, value, NAME_FORMS)


def read_other_name(value: str) -> x509.OtherName:
    """Read `1.3.6.1.4.1.311.20.2.3;UTF8:robot@example`, such as a UPN. Raises ValueError."""
    dotted, _, text = value.partition(";UTF8:")
    content = text.encode()
    octets = (len(content).bit_length() + 7) // 8
    length = len(content).to_bytes(octets, "big")
    # A length of 128 and more is preceded by the number of its octets (X.690, 8.1.3.5).
    if len(content) >= 128:
        length = bytes([128 + octets]) + length
    # The first octet is the tag of a UTF8String in DER.
    return x509.OtherName(x509.ObjectIdentifier(dotted), b"\x0c" + length + content)


def read_subtree(item: str) -> x509.GeneralName:
    """Read a subtree such as `DNS:.example` (RFC 5280, 4.2.1.10). Raises ValueError."""
    kind, _, value = item.partition(":")
    if kind == "IP":
        if "%" in value:
            raise ValueError(NO_ZONE)
        return x509.IPAddress(ipaddress.ip_network(value))
    return read_text_name(kind, value, SUBTREE_FORMS)


def read_text_name(kind: str, value: str, forms: Mapping[str, str]) -> x509.GeneralName:
    """Read a name that is a text. Raises ValueError."""
    if not re.fullmatch(forms[kind], value):
        why = f"{value!r} is not a valid {kind} name"
        if not value.isascii():
            why += " (a host name is ASCII, or begins with xn--)"
        elif "*" in value:
            why += " (a wildcard is the first label, and at least two others follow)"
        raise ValueError(why)
    return GENERAL_NAMES[kind](value)


def extension_row(dotted: str) -> ExtensionRow:
    """Return the row of an extension by its OID."""
    for row in EXTENSIONS.values():
        if row.oid.dotted_string == dotted:
            return row
    return nameless(dotted, may_be_critical=False)


def nameless(
    dotted: str, *, may_be_critical: bool, limits_below: bool = False
) -> ExtensionRow:
    """Return the row of an extension that has no name in x509v3_config(5)."""
    oid = x509.ObjectIdentifier(dotted)
    return ExtensionRow(
        dotted, oid, DER, partial(read_der, oid), may_be_critical, limits_below
    )


ROWS = (
    ExtensionRow(
        "basicConstraints",
        x509.BasicConstraints.oid,
        "CA:TRUE|CA:FALSE|pathlen:[0-9]{1,4}",
        read_basic_constraints,
    ),
    ExtensionRow("keyUsage", x509.KeyUsage.oid, "|".join(KEY_USAGES), read_key_usage),
    ExtensionRow(
        "extendedKeyUsage",
        x509.ExtendedKeyUsage.oid,
        "|".join([*PURPOSES, OID]),
        read_extended_key_usage,
    ),
    ExtensionRow(
        "subjectKeyIdentifier",
        x509.SubjectKeyIdentifier.oid,
        "hash",
        None,
        may_be_critical=False,
    ),
    ExtensionRow(
        "authorityKeyIdentifier",
        x509.AuthorityKeyIdentifier.oid,
        "keyid|keyid:always",
        None,
        may_be_critical=False,
    ),
    ExtensionRow(
        "subjectAltName",
        x509.SubjectAlternativeName.oid,
        f"(DNS|IP|URI|email):.+|RID:{OID}|otherName:{OID};UTF8:.+",
        read_alternative_name,
    ),
    ExtensionRow(
        "nameConstraints",
        x509.NameConstraints.oid,
        "(permitted|excluded);(DNS|IP|URI|email):.+",
        read_name_constraints,
        limits_below=True,
    ),
    ExtensionRow("certificatePolicies", x509.CertificatePolicies.oid, OID, read_policies),
    ExtensionRow(
        "crlDistributionPoints",
        x509.CRLDistributionPoints.oid,
        "URI:.+",
        read_distribution_points,
    ),
    ExtensionRow(
        "authorityInfoAccess",
        x509.AuthorityInformationAccess.oid,
        f"(OCSP|caIssuers|{OID});URI:.+",
        read_information_access,
        may_be_critical=False,
    ),
    # policyMappings, policyConstraints, inhibitAnyPolicy (RFC 5280, section 4.2.1)
    nameless("2.5.29.33", may_be_critical=True),
    nameless("2.5.29.36", may_be_critical=True),
    nameless("2.5.29.54", may_be_critical=True),
    # ipAddrBlocks, autonomousSysIds (RFC 3779)
    nameless("1.3.6.1.5.5.7.1.7", may_be_critical=False, limits_below=True),
    nameless("1.3.6.1.5.5.7.1.8", may_be_critical=False, limits_below=True),
)
EXTENSIONS = {row.name: row for row in ROWS}

# Every field that has a name, and its form. An extension's parts have forms of their own.
FORMS = {
    **PLAIN_FIELDS,
    **{f"subject.{name}": form for name, (_, form) in SUBJECT_FIELDS.items()},
    **{f"extensions.{name}": ".+" for name in EXTENSIONS if not re.fullmatch(OID, name)},
}


# --- 12. Command line ------------------------------------------------------------------------


class Report:
    """The one place that prints.

    The tree goes to standard output, and problems to standard error. When a run takes longer
    than a few seconds, the last line of a terminal says how far it is.
    """

    def __init__(self, quiet: bool, as_json: bool) -> None:
        self.quiet = quiet
        self.as_json = as_json
        self.said: set[str] = set()
        self.exit_status = 0
        self.progress = Progress()

    def outcome(self, outcome: Outcome, number: int, total: int) -> None:
        """Print an entry's problems, then its line of the tree. Raises OSError."""
        self.problems(outcome.problems)
        if outcome.error is not None:
            self.problem(outcome.error)
        if outcome.line and not self.quiet:
            self.progress.clear()
            count = ""
            if total > 9 and not self.as_json:
                count = f"[{number:2}/{total}] "
            try:
                print(f"{count}{outcome.line}", flush=True)
            except OSError as error:
                raise OSError(error.errno, error.strerror, "standard output") from None
        self.progress.show(number, total)

    def problems(self, problems: Iterable[Problem]) -> None:
        """Print errors and warnings."""
        for problem in problems:
            self.problem(problem)

    def problem(self, problem: Problem) -> None:
        """Print an error or a warning as one line, but never the same one twice."""
        if problem.kind == "error":
            self.exit_status = 1
        line = printable(f"{SCRIPT}: {problem.kind}: {problem.text}")
        if line not in self.said:
            self.said.add(line)
            self.progress.clear()
            # In one piece, or lines of several processes would mix.
            print(f"{in_colour(line, problem.kind)}\n", end="", file=sys.stderr, flush=True)


def json_line(run: Run, name: str, issuer: str | None, is_ca: bool, outcome: Outcome) -> str:
    """Return what --json prints of a folder: an object (RFC 8259), in one line.

    It tells what the folder holds after its turn. What is not known is null.
    """
    # Imported only here, as most runs do without it.
    import json

    folder = os.path.join(run.keys, name)
    certificate = None
    # What is wrong with the file is one of the problems.
    path = f"{folder}/cert.pem"
    with suppress(OSError, Fault):
        certificate = certificates_in(path, run.disk.read(path))[0]

    written = list(outcome.written)
    if run.disk.is_dry:
        # A record's file name has the serial number, which another run would not choose.
        written = [
            path for path in written if os.path.basename(os.path.dirname(path)) != "issued"
        ]
    problems = list(outcome.problems)
    if outcome.error is not None:
        problems.append(outcome.error)
    fields = {
        "name": name,
        "issuer": issuer,
        "state": outcome.state,
        **certificate_fields(run, path, certificate),
        **list_fields(run, f"{folder}/crl.pem", certificate, is_ca),
        "written": written,
        "problems": [problem._asdict() for problem in problems],
    }
    return json.dumps(fields)


def certificate_fields(
    run: Run, path: str, certificate: x509.Certificate | None
) -> dict[str, object]:
    """Return what --json says about a certificate, as openssl-x509(1) prints it."""
    fields: dict[str, object] = dict.fromkeys(
        ("key", "serial", "notBefore", "notAfter", "due")
    )
    if certificate is None:
        return fields
    fields["key"] = key_type(certificate.public_key())
    # Of what a dry run has made, these would be others in the next run.
    if path not in run.disk.unwritten:
        octets = (certificate.serial_number.bit_length() + 7) // 8
        fields["serial"] = certificate.serial_number.to_bytes(octets, "big").hex().upper()
        fields["notBefore"] = timestamp(certificate.not_valid_before_utc)
        fields["notAfter"] = timestamp(certificate.not_valid_after_utc)
    fields["due"] = is_due(run, certificate)
    return fields


def list_fields(
    run: Run, path: str, ca: x509.Certificate | None, is_ca: bool
) -> dict[str, object]:
    """Return what --json says about a CA's own list, as openssl-crl(1) prints it."""
    fields: dict[str, object] = dict.fromkeys(("crlNumber", "nextUpdate"))
    if ca is None or not is_ca:
        return fields
    lists: tuple[RevocationList, ...] | None = ()
    with suppress(OSError):
        lists = lists_in(run.disk.read(path))
    crl = newest_of((ListFile(path, lists),), ca)
    if lists and lists[0].signature == NOT_SIGNED:
        crl = lists[0]
    if crl is not None:
        fields["crlNumber"] = crl_number(crl)
    if crl is not None and path not in run.disk.unwritten:
        fields["nextUpdate"] = timestamp(end_of_list(ca, crl))
    return fields


def timestamp(moment: datetime) -> str:
    """Return a time in UTC as in 2026-11-28T08:00:00Z (RFC 3339)."""
    return moment.isoformat().replace("+00:00", "Z")


class Progress:
    """The count and the time left, on the last line of a terminal."""

    patience = 3.0  # seconds before the first line

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.next_time = self.began + self.patience
        self.is_shown = False

    def show(self, number: int, total: int) -> None:
        """Say that `number` entries of `total` are done, at most once a second."""
        now = time.monotonic()
        if number == total:
            self.clear()
        elif now > self.next_time and sys.stderr.isatty():
            seconds_left = (now - self.began) / number * (total - number)
            self.clear()
            text = f"{number} of {total}, about {seconds_left:.0f} s left"
            print(text, end="", file=sys.stderr, flush=True)
            self.is_shown = True
            self.next_time = now + 1

    def clear(self) -> None:
        """Clear the line, before another takes its place."""
        if self.is_shown:
            print(CLEAR_LINE, end="", file=sys.stderr, flush=True)
            self.is_shown = False


# Control sequences of ECMA-48: to the first column, and erase the line; red, yellow, plain.
CLEAR_LINE = "\r\x1b[K"
COLOURS = {"error": "\x1b[31m", "warning": "\x1b[33m"}
PLAIN = "\x1b[0m"


def in_colour(line: str, kind: str) -> str:
    """Return the line of an error or a warning, in colour where a terminal shows it.

    NO_COLOR, if it is not empty, turns colour off (https://no-color.org).
    """
    is_unwanted = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    if is_unwanted or not sys.stderr.isatty():
        return line
    return f"{COLOURS[kind]}{line}{PLAIN}"


def printable(text: str) -> str:
    """Return a text in which characters that could steer a terminal are escaped."""
    if text.isprintable():
        return text
    escaped = [c if c.isprintable() else c.encode("unicode_escape").decode() for c in text]
    return "".join(escaped)


def problem_of(error: Exception, where: str) -> Problem:
    """Return an exception as a problem. `where` is the place if it names none."""
    if isinstance(error, Fault):
        return Problem("error", str(error))
    if isinstance(error, OSError):
        # For a rename, filename2 is the target.
        name = error.filename2 or error.filename or where
        if isinstance(error, FileNotFoundError) and os.path.islink(name):
            text = f"{name}: is a link to {os.readlink(name)}, which does not exist"
            return Problem("error", text)
        return Problem("error", f"{name}: {error.strerror}")
    return Problem("error", f"{where}: {error}")


def main(arguments: Sequence[str] | None = None, now: datetime | None = None) -> int:
    """Do one run, and return the exit status.

    `arguments` are the command line's, without the script's name. `now` overrides the clock.
    The status is 0: done; 1: something failed; 2: wrong use or configuration, and nothing was
    written; 130: interrupted.
    """
    options = parse_arguments(arguments)
    report = Report(options.quiet, options.json)
    try:
        with without_library_warnings():
            generate(options, now, report)
    except KeyboardInterrupt:
        report.progress.clear()
        return 130
    except ConfigurationError as error:
        report.problem(problem_of(error, options.config))
        return 2
    except (Fault, OSError) as error:
        report.problem(problem_of(error, options.keys))
        return 1
    return report.exit_status


def generate(options: argparse.Namespace, verify_at: datetime | None, report: Report) -> None:
    """Read the configuration, and settle all of it. Raises Fault, OSError."""
    present = verify_at or datetime.now(timezone.utc)
    present = present.replace(microsecond=0)
    # Another program's clock may be a tick behind. For it, too, what is made now has begun.
    now = present - timedelta(seconds=1)
    keys = options.keys
    entries = read_configuration(options.config, now)
    phrases = Phrases(os.environb, {})
    programs = Programs(options.dry_run, sign_timeout(os.environ), {}, set())
    orders = read_orders(options)
    check_orders(orders, keys, entries, now, report)

    # For a new folder, ask for all pass phrases before anything is written.
    if not os.path.lexists(keys):
        for entry in entries:
            if entry.passphrase is not None:
                phrases.get(entry.passphrase, new=True)

    with locked(keys, options.dry_run):
        if not options.dry_run:
            report.problems(clear_leftovers(keys))
        new_keys = make_keys_ahead(keys, entries)
        run = Run(
            keys=keys,
            entries=entries,
            present=present,
            now=now,
            verify_at=verify_at,
            orders=orders,
            phrases=phrases,
            programs=programs,
            new_keys=new_keys,
            disk=Disk(options.dry_run),
            as_json=options.json,
            copies=read_copies(keys),
        )
        walk(run, report)
        if not options.dry_run:
            os.sync()


def sign_timeout(environment: Mapping[str, str]) -> int:
    """Return how many seconds a program that signs may take. Raises ConfigurationError."""
    text = environment.get("SROS_SIGN_TIMEOUT", "60")
    if not re.fullmatch("[1-9][0-9]{0,5}", text):
        raise ConfigurationError(f"SROS_SIGN_TIMEOUT: {text!r} is not a number of seconds")
    return int(text)


def read_orders(options: argparse.Namespace) -> Orders:
    """Return what the command line asks for."""
    return Orders(
        renew=frozenset(options.renew or ()),
        renew_due=options.renew == [],
        revoke=frozenset(options.revoke),
        reason=options.reason or "cessationOfOperation",
    )


def check_orders(
    orders: Orders, keys: str, entries: Sequence[Entry], now: datetime, report: Report
) -> None:
    """Check the names of --renew and --revoke. Raises ConfigurationError."""
    unknown = orders.renew - {entry.name for entry in entries}
    # A record that can't be read is an error when the CA's turn comes.
    with suppress(OSError):
        paths = recorded(keys, entries)
        unknown |= orders.revoke - paths.keys()
        for name in sorted(orders.revoke & paths.keys()):
            if all(has_expired(path, now) for path in paths[name]):
                text = f"{name}: all its certificates have expired: there is nothing to revoke"
                report.problem(Problem("warning", text))

    for name in sorted(unknown):
        text = "no entry has this name, or no certificate was made for it"
        if name in [entry.name for entry in entries if entry.issuer is None]:
            text = "signs itself, so no list can revoke it: remove it from what trusts it"
        raise ConfigurationError(f"{name}: {text}")


def recorded(keys: str, entries: Sequence[Entry]) -> dict[str, list[str]]:
    """Return the paths of all certificates that CAs have signed, by name. Raises OSError."""
    paths: dict[str, list[str]] = {}
    for entry in entries:
        # It may not be in the record.
        certificate = os.path.join(keys, entry.name, "cert.pem")
        if entry.issuer is not None and os.path.exists(certificate):
            paths.setdefault(entry.name, []).append(certificate)
        folder = os.path.join(keys, entry.name, "issued")
        if not entry.is_ca:
            continue
        # A link to nowhere is an error when the CA's turn comes.
        if not os.path.lexists(folder) and not os.path.islink(os.path.dirname(folder)):
            continue
        for file_name in sorted(os.listdir(folder)):
            name, _, _ = file_name.rpartition("-")
            # A root's own certificates can't be revoked by a list of its own.
            if file_name.endswith(".pem") and name != entry.name:
                paths.setdefault(name, []).append(os.path.join(folder, file_name))
    return paths


def has_expired(path: str, now: datetime) -> bool:
    """Tell whether a certificate has expired. One that can't be read counts as alive."""
    with suppress(Fault, OSError):
        return load_certificate(path).not_valid_after_utc <= now
    return False


@contextmanager
def without_library_warnings() -> Iterator[None]:
    """Silence what cryptography says about certificates of other software.

    It warns of a commonName of more than 64 octets, but the limit is 64 characters; of a
    serial number that is not positive, which load_certificates refuses; and of a
    Diffie-Hellman key, which check_key refuses.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attribute's length must be")
        warnings.filterwarnings("ignore", "Parsed a .*serial number")
        warnings.filterwarnings("ignore", "Diffie-Hellman")
        yield


REASONS = [flag.value for flag in x509.ReasonFlags if flag.value != "removeFromCRL"]


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's options. Raises SystemExit, with status 2, for wrong ones."""
    parser = argparse.ArgumentParser(prog=SCRIPT, description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "-c", "--config", default="sros_config.yml", help="the configuration (%(default)s)"
    )
    parser.add_argument("-k", "--keys", default="keys", help="the keys folder (%(default)s)")
    add_orders(parser)
    parser.add_argument(
        "-n", "--dry-run", action="store_true", help="say what a run would do; write nothing"
    )
    parser.add_argument(
        "--json", action="store_true", help="print an object per entry, in a line of its own"
    )
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="print errors and warnings only"
    )
    options = parser.parse_args(arguments)
    if options.reason and not options.revoke:
        parser.error("argument --reason: needs --revoke")
    return options


def add_orders(parser: argparse.ArgumentParser) -> None:
    """Add the options that change certificates and lists."""
    change = parser.add_mutually_exclusive_group()
    change.add_argument(
        "--renew",
        metavar="NAME",
        nargs="*",
        help="make new certificates for the NAMEs, or for all that are due",
    )
    change.add_argument(
        "--revoke",
        metavar="NAME",
        nargs="+",
        default=[],
        help="revoke the certificates of the NAMEs",
    )
    parser.add_argument(
        "--reason",
        choices=REASONS,
        metavar="WHY",
        help="why: keyCompromise, … (RFC 5280, 5.3.1)",
    )


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # End quietly when the output is closed, as by head.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    # The modes of files are chosen one by one.
    os.umask(0o022)
    status = main()
    # Everything is flushed. Keys that are still being made for what failed are not waited for.
    os._exit(status)
