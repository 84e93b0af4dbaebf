#!/usr/bin/env python3
"""Do the Python SPIFFE libraries (py-spiffe, spiffe-tls) work against Passant?

Prints the same JSON as the Go and Rust peers; ../README.md describes it. The
Workload API's address comes from SPIFFE_ENDPOINT_SOCKET.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
import warnings
from datetime import datetime, timezone
from typing import Any, Callable

import jwt
from cryptography import x509
from OpenSSL import SSL, crypto
from spiffe import JwtSvid, SpiffeId, WorkloadApiClient, X509BundleSet, X509Source, X509Svid
from spiffe.errors import PySpiffeError
from spiffe.workloadapi.x509_context import X509Context
from spiffetls import create_ssl_context
from spiffetls.tlsconfig.authorize import authorize_id

# spiffe-tls itself still uses the deprecated X509Source.svid.
warnings.filterwarnings("ignore", category=DeprecationWarning)

PEERS = ["spiffe", "spiffe-tls", "grpcio"]
CALL_TIMEOUT_SECONDS = 15


class InteropError(Exception):
    """A judgement that was not passed."""


def main() -> int:
    arguments = parse_arguments()
    try:
        arguments.run(arguments)
    except (InteropError, PySpiffeError, SSL.Error, OSError) as error:
        print(f"interop {arguments.command}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Python peer of Passant's interoperability tests")
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], None], summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary)
        command.set_defaults(run=run)
        return command

    add("version", run_version, "name the peer libraries and their versions")

    fetch = add("fetch", run_fetch, "fetch and verify every kind of document once")
    fetch.add_argument("--audience", required=True)

    watch = add("watch", run_watch, "log each update of an X.509 watch")
    watch.add_argument("--log", required=True, help="file the JSON lines are appended to")
    watch.add_argument("--duration", type=seconds, default=60.0, help="how long to watch, such as 90s")
    watch.add_argument("--jwt-audience", help="also fetch a JWT-SVID for this audience again and again")
    watch.add_argument("--jwt-interval", type=seconds, default=3.0)

    server = add("mtls-server", run_mtls_server, "accept mutual TLS by SVID and echo lines")
    server.add_argument("--listen", default="127.0.0.1:0")
    server.add_argument("--authorize", required=True, help="SPIFFE ID a client must have")
    server.add_argument("--count", type=int, default=1, help="connections to handle, refused ones included")

    client = add("mtls-client", run_mtls_client, "connect by mutual TLS by SVID and send one line")
    client.add_argument("--addr", required=True)
    client.add_argument("--authorize", required=True, help="SPIFFE ID the server must have")
    client.add_argument("--line", default="hello from python")

    return parser.parse_args()


def seconds(text: str) -> float:
    """Reads a duration as the Go peer does: a number of ms, s or m."""
    for unit, factor in (("ms", 0.001), ("s", 1.0), ("m", 60.0)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    raise argparse.ArgumentTypeError(f"{text!r} has no unit (ms, s, m)")


def emit(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


def run_version(_: argparse.Namespace) -> None:
    for peer in PEERS:
        print(peer, importlib.metadata.version(peer))


# fetch


def run_fetch(arguments: argparse.Namespace) -> None:
    report: dict[str, Any] = {"verified": []}
    with WorkloadApiClient(default_timeout=CALL_TIMEOUT_SECONDS) as client:
        fetch_x509(client, report)
        fetch_jwt(client, arguments.audience, report)
    emit(report)


def fetch_x509(client: WorkloadApiClient, report: dict[str, Any]) -> None:
    context = client.fetch_x509_context()
    for svid in context.x509_svids:
        verify_x509(svid, context.x509_bundle_set)
    report["verified"].append("x509_svid")

    svid = context.default_svid
    bundles = client.fetch_x509_bundles()
    verify_x509(svid, bundles)
    report["verified"].append("x509_bundles")

    own = context.x509_bundle_set.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
    assert own is not None, "verify_x509 found it"
    report.update(
        describe_x509(svid),
        svids=len(context.x509_svids),
        chain=len(svid.cert_chain),
        bundle_authorities=len(own.x509_authorities),
        x509_trust_domains=sorted(bundle.trust_domain.name for bundle in bundles.bundles),
    )


def verify_x509(svid: X509Svid, bundles: X509BundleSet) -> None:
    """Verifies a chain with OpenSSL against the bundle of its own trust domain only."""
    bundle = bundles.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
    if bundle is None:
        raise InteropError(f"no bundle for the trust domain of {svid.spiffe_id}")
    store = crypto.X509Store()
    store.set_flags(crypto.X509StoreFlags.X509_STRICT)
    for authority in bundle.x509_authorities:
        store.add_cert(crypto.X509.from_cryptography(authority))
    chain = [crypto.X509.from_cryptography(cert) for cert in svid.cert_chain]
    try:
        crypto.X509StoreContext(store, chain[0], chain[1:]).verify_certificate()
    except crypto.X509StoreContextError as error:
        raise InteropError(f"X509-SVID of {svid.spiffe_id} does not verify against its bundle: {error}") from error
    if uri_sans(svid.leaf) != [str(svid.spiffe_id)]:
        raise InteropError(f"X509-SVID of {svid.spiffe_id} carries {uri_sans(svid.leaf)}")


def uri_sans(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def describe_x509(svid: X509Svid) -> dict[str, Any]:
    return {
        "spiffe_id": str(svid.spiffe_id),
        "serial": format(svid.leaf.serial_number, "x"),
        "not_before": instant(svid.leaf.not_valid_before_utc),
        "not_after": instant(svid.leaf.not_valid_after_utc),
    }


def fetch_jwt(client: WorkloadApiClient, audience: str, report: dict[str, Any]) -> None:
    svid = client.fetch_jwt_svid({audience})
    bundles = client.fetch_jwt_bundles()
    report["verified"].append("jwt_bundles")

    validated = client.validate_jwt_svid(svid.token, audience)
    if validated.spiffe_id != svid.spiffe_id:
        raise InteropError(f"validation says {validated.spiffe_id}, the JWT-SVID is of {svid.spiffe_id}")
    must_fail(
        lambda: client.validate_jwt_svid(svid.token, audience + "-other"),
        "the Workload API validated a JWT-SVID for an audience it was not issued for",
    )
    report["verified"].append("jwt_workload_api")

    bundle = bundles.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
    if bundle is None:
        raise InteropError(f"no JWT bundle for the trust domain of {svid.spiffe_id}")
    JwtSvid.parse_and_validate(svid.token, bundle, {audience})
    must_fail(
        lambda: JwtSvid.parse_and_validate(svid.token, bundle, {audience + "-other"}),
        "a JWT-SVID validated for an audience it was not issued for",
    )
    report["verified"].append("jwt_offline")

    report.update(
        jwt_trust_domains=sorted(each.trust_domain.name for each in bundles.bundles),
        jwt_authorities=len(bundle.jwt_authorities),
        jwt=describe_jwt(svid),
    )


def must_fail(call: Callable[[], object], otherwise: str) -> None:
    try:
        call()
    except PySpiffeError:
        return
    raise InteropError(otherwise)


def describe_jwt(svid: JwtSvid) -> dict[str, Any]:
    """Reads what py-spiffe does not keep out of a token that was parsed before."""
    claims = jwt.decode(svid.token, options={"verify_signature": False})
    audience = svid.audience
    return {
        "spiffe_id": str(svid.spiffe_id),
        "audience": [audience] if isinstance(audience, str) else sorted(audience),
        "key_id": jwt.get_unverified_header(svid.token)["kid"],
        "issued_at": instant(datetime.fromtimestamp(claims["iat"], timezone.utc)) if "iat" in claims else "",
        "expires_at": instant(datetime.fromtimestamp(svid.expiry, timezone.utc)),
    }


def instant(at: datetime) -> str:
    return at.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


# watch


class WatchLog:
    """Appends JSON lines, each by one write so that a reader never sees half of one."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o644)
        self._lock = threading.Lock()

    def write(self, kind: str, line: dict[str, Any]) -> None:
        received = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        text = json.dumps({"kind": kind, "received": received, **line}) + "\n"
        with self._lock:
            os.write(self._file, text.encode())

    def x509(self, context: X509Context) -> None:
        svid = context.default_svid
        bundle = context.x509_bundle_set.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
        try:
            verify_x509(svid, context.x509_bundle_set)
            verified = True
        except InteropError:
            verified = False
        self.write(
            "x509",
            describe_x509(svid)
            | {
                "svids": len(context.x509_svids),
                "bundle_authorities": len(bundle.x509_authorities) if bundle else 0,
                "verified": verified,
            },
        )

    def failed(self, of: str, error: Exception) -> None:
        cause = error.__cause__
        code = cause.code().name if cause is not None and hasattr(cause, "code") else "UNKNOWN"
        self.write("error", {"of": of, "code": code, "error": str(error)})


def run_watch(arguments: argparse.Namespace) -> None:
    log = WatchLog(arguments.log)
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    deadline = time.monotonic() + arguments.duration
    broken: list[Exception] = []

    def on_error(error: Exception) -> None:
        # The library calls this when it gives up; what it retries it keeps to itself.
        log.failed("x509", error)
        broken.append(error)
        over.set()

    with WorkloadApiClient(default_timeout=CALL_TIMEOUT_SECONDS) as client:
        watcher = client.stream_x509_contexts(log.x509, on_error)
        while not over.is_set() and time.monotonic() < deadline:
            pause = deadline - time.monotonic()
            if arguments.jwt_audience:
                pause = min(pause, arguments.jwt_interval)
                try:
                    log.write("jwt", describe_jwt(client.fetch_jwt_svid({arguments.jwt_audience})))
                except PySpiffeError as error:
                    log.failed("jwt", error)
            over.wait(max(pause, 0))
        watcher.cancel()
    if broken:
        raise InteropError(f"the watch gave up: {broken[0]}")


# mutual TLS. The client sends one line, the server answers with the client's
# SPIFFE ID, a space and the line.


def run_mtls_server(arguments: argparse.Namespace) -> None:
    with X509Source(timeout_in_seconds=CALL_TIMEOUT_SECONDS) as source:
        context = create_ssl_context(SSL.TLS_SERVER_METHOD, source, authorize_id(SpiffeId(arguments.authorize)))
        listener = socket.create_server(split_address(arguments.listen))
        emit({"address": "%s:%d" % listener.getsockname()[:2]})
        for _ in range(arguments.count):
            accepted, _ = listener.accept()
            try:
                emit(serve_line(context, accepted))
            except (SSL.Error, OSError) as error:
                emit({"error": f"{type(error).__name__}: {error}"})
            finally:
                accepted.close()


def serve_line(context: SSL.Context, accepted: socket.socket) -> dict[str, Any]:
    connection = secure(context, accepted)
    connection.set_accept_state()
    connection.do_handshake()
    line = read_line(connection)
    peer = peer_id(connection)
    connection.sendall(f"{peer} {line}\n".encode())
    connection.shutdown()
    return {"peer_id": peer, "line": line}


def run_mtls_client(arguments: argparse.Namespace) -> None:
    with X509Source(timeout_in_seconds=CALL_TIMEOUT_SECONDS) as source:
        own = str(source.get_x509_context().default_svid.spiffe_id)
        context = create_ssl_context(SSL.TLS_CLIENT_METHOD, source, authorize_id(SpiffeId(arguments.authorize)))
        with socket.create_connection(split_address(arguments.addr), CALL_TIMEOUT_SECONDS) as connected:
            connection = secure(context, connected)
            connection.set_connect_state()
            connection.do_handshake()
            connection.sendall(arguments.line.encode() + b"\n")
            reply = read_line(connection)
            peer = peer_id(connection)
    if reply != f"{own} {arguments.line}":
        raise InteropError(f"server answered {reply!r}")
    emit({"peer_id": peer, "own_id": own, "echo": arguments.line})


def secure(context: SSL.Context, stream: socket.socket) -> SSL.Connection:
    """Wraps a socket that blocks, but not for ever: OpenSSL cannot use Python's timeouts."""
    stream.setblocking(True)
    bound = struct.pack("ll", CALL_TIMEOUT_SECONDS, 0)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, bound)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, bound)
    return SSL.Connection(context, stream)


def read_line(connection: SSL.Connection) -> str:
    received = b""
    while not received.endswith(b"\n"):
        received += connection.recv(1024)
    return received.decode().removesuffix("\n")


def peer_id(connection: SSL.Connection) -> str:
    certificate = connection.get_peer_certificate(as_cryptography=True)
    if certificate is None:
        raise InteropError("the peer showed no certificate")
    names = uri_sans(certificate)
    if len(names) != 1:
        raise InteropError(f"the peer's certificate carries the URIs {names}")
    return str(SpiffeId(names[0]))


def split_address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


if __name__ == "__main__":
    sys.exit(main())
