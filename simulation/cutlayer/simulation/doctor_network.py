"""The doctor's looks at the network: the host's name, the TCP port, TLS. No MQTT yet."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

from pydantic import JsonValue

from cutlayer.broker.broker_settings import BrokerSettings, is_loopback
from cutlayer.broker.errors import CutlayerError, SettingsError
from cutlayer.broker.mqtt_packets import PacketCounter
from cutlayer.broker.mqtt_reasons import fatal_socket_error, socket_text
from cutlayer.broker.mqtt_version import ask_version
from cutlayer.simulation.doctor_report import EXIT_SETTINGS, Finding, found, problem, seconds, warning

__all__ = ["check_name", "check_port", "check_tls", "speaks_mqtt", "speaks_tls"]

EXPIRES_SOON_DAYS = 21
DAY_S = 86_400
REFUSAL_S = 0.3
"""In TLS 1.3 a server refuses a client's certificate only after the handshake: how long that is waited for."""
HOST_NAME_MISMATCH: Final = {62, 64}
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""
OUT_OF_DATE: Final = {9, 10}
"""X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""


def check_name(settings: BrokerSettings, timeout_s: float) -> Finding:
    """Resolve the host's name."""
    answers: list[list[str]] = []
    errors: list[OSError] = []

    def resolve() -> None:
        try:
            rows = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
        except OSError as error:
            errors.append(error)
        else:
            answers.append(list(dict.fromkeys(str(row[4][0]) for row in rows)))

    started_s = time.perf_counter()
    # A thread, since the system's resolver cannot be given a time limit.
    resolver = threading.Thread(target=resolve, daemon=True)
    resolver.start()
    resolver.join(timeout_s)
    duration_s = time.perf_counter() - started_s
    if answers:
        addresses = answers[0]
        fact = f"{settings.host} is {', '.join(addresses)} ({seconds(duration_s)})"
        return found("name", fact, {"addresses": [*addresses], "duration_s": duration_s})
    reason = socket_text(errors[0]) if errors else f"the name server gives no answer within {timeout_s:g} s"
    return problem(
        "name",
        f"{settings.host} has no address: {reason.lower()}",
        "check the host in --broker and this machine's name server (/etc/resolv.conf), or give the IP address",
    )


def check_port(settings: BrokerSettings, timeout_s: float) -> Finding:
    """Connect to the TCP port."""
    started_s = time.perf_counter()
    where = f"{settings.host} port {settings.port}"
    try:
        with socket.create_connection((settings.host, settings.port), timeout_s) as stream:
            duration_s = time.perf_counter() - started_s
            address = str(stream.getpeername()[0])
    except ConnectionRefusedError:
        fix = "start the broker there (`cutlayer broker start`), or name its port: --broker mqtt://HOST:PORT"
        return problem("port", f"nothing listens on {where}", fix)
    except TimeoutError:
        fix = f"let this machine out to TCP port {settings.port} in the firewalls between, or check the address"
        return problem("port", f"{where} gives no answer within {timeout_s:g} s", fix)
    except OSError as error:
        fix = "check this machine's network and route to the broker"
        return problem("port", f"{where} cannot be reached: {socket_text(error).lower()}", fix)
    return found(
        "port",
        f"{address} port {settings.port} answers in {seconds(duration_s)}",
        {"address": address, "connect_s": duration_s},
    )


def check_tls(settings: BrokerSettings, timeout_s: float) -> Finding:
    """Make a TLS connection, and read the broker's certificate."""
    if not settings.tls:
        if is_loopback(settings.host):
            return found("tls", "not used (mqtt://), and not needed: the broker is on this machine", {"is_used": False})
        return warning(
            "tls",
            "not used (mqtt://): passwords and activations travel readable",
            "use the broker's TLS port: --broker mqtts://HOST:8883",
            {"is_used": False},
        )
    context = settings.tls_context()
    assert context is not None
    try:
        with _handshake(settings, context, timeout_s) as stream:
            certificate: dict[str, Any] = stream.getpeercert() or {}
            version = stream.version() or "TLS"
            _await_refusal(stream)
    except ssl.SSLCertVerificationError as error:
        return _untrusted(settings, error, timeout_s)
    except OSError as error:
        return _failed(settings, error, timeout_s)
    expires_at = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    names, issuer = _names(certificate), _issuer(certificate)
    days = int((expires_at - time.time()) // DAY_S)
    fact = f"{version}; the certificate is for {', '.join(names)}, by {issuer}, for {days:,} more days"
    values: dict[str, JsonValue] = {"version": version, "names": [*names], "issuer": issuer, "expires_at": expires_at}
    if days < EXPIRES_SOON_DAYS:
        return warning("tls", fact, "have the broker's certificate renewed", values)
    return found("tls", fact, values)


def speaks_tls(settings: BrokerSettings, timeout_s: float) -> bool:
    """Tell whether the port makes a TLS handshake, whatever its certificate is worth."""
    return _shown(settings, timeout_s) is not None


def speaks_mqtt(settings: BrokerSettings) -> bool:
    """Tell whether the port answers MQTT in the clear."""
    clear = BrokerSettings(url=f"mqtt://{_authority(settings)}")
    return ask_version(clear, PacketCounter(), PacketCounter()) is not None


@contextlib.contextmanager
def _handshake(settings: BrokerSettings, context: ssl.SSLContext, timeout_s: float) -> Iterator[ssl.SSLSocket]:
    with (
        socket.create_connection((settings.host, settings.port), timeout_s) as plain,
        context.wrap_socket(plain, server_hostname=settings.host) as stream,
    ):
        yield stream


def _await_refusal(stream: ssl.SSLSocket) -> None:
    stream.settimeout(REFUSAL_S)
    with contextlib.suppress(TimeoutError):  # a broker that is content waits for CONNECT
        if not stream.recv(1):
            raise ConnectionResetError("the broker ended the connection after the handshake")


def _shown(settings: BrokerSettings, timeout_s: float) -> bytes | None:
    """Return the certificate (DER) that the broker shows, not trusted for anything; None without a handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent on this connection
    try:
        with _handshake(settings, context, timeout_s) as stream:
            return stream.getpeercert(binary_form=True)
    except OSError:
        return None


def _read(settings: BrokerSettings, timeout_s: float) -> dict[str, Any]:
    """Return the fields of the certificate that the broker shows; empty where it is out of date."""
    shown = _shown(settings, timeout_s)
    if shown is None:
        return {}
    # Python reads the fields of trusted certificates only: so trust this one, to look at it and nothing else.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cadata=shown)
        with _handshake(settings, context, timeout_s) as stream:
            return stream.getpeercert() or {}
    except OSError:
        return {}


def _untrusted(settings: BrokerSettings, error: ssl.SSLCertVerificationError, timeout_s: float) -> Finding:
    certificate = _read(settings, timeout_s)
    issuer = _issuer(certificate) if certificate else "an unknown CA"
    if error.verify_code in HOST_NAME_MISMATCH:
        names = ", ".join(_names(certificate)) or "other names"
        fact = f"the certificate is not for {settings.host} but for {names}"
        fix = f"write one of these names in --broker, or have {settings.host} added to the broker's certificate"
    elif error.verify_code in OUT_OF_DATE:
        fact = f"the certificate is out of date: {error.verify_message}"
        fix = "have the broker's certificate renewed; if it is not, set this machine's clock (timedatectl set-ntp true)"
    else:
        fact = f"the certificate is by {issuer}, which is not trusted here: {error.verify_message}"
        fix = f"give --ca-file with the certificate (PEM) of {issuer}"
        if settings.ca_file is not None:
            fix = f"--ca-file {settings.ca_file} does not hold the CA that signed it: {fix}"
    values: dict[str, JsonValue] = {"issuer": issuer, "names": [*_names(certificate)]}
    return problem("tls", fact, fix, values, exit_code=EXIT_SETTINGS)


def _failed(settings: BrokerSettings, error: OSError, timeout_s: float) -> Finding:
    if speaks_mqtt(settings):
        fix = f"write --broker mqtt://{_authority(settings)}, or use the broker's TLS port (often 8883)"
        return problem("tls", "the port speaks MQTT without TLS", fix, exit_code=EXIT_SETTINGS)
    fatal = fatal_socket_error(error, settings)
    if isinstance(fatal, SettingsError):
        return problem("tls", fatal.problem, fatal.fix, exit_code=EXIT_SETTINGS)
    if isinstance(fatal, CutlayerError):
        fix = "give --client-cert and --client-key with a certificate that the broker's CA has signed"
        return problem("tls", f"the broker refuses this side: {str(error).lower()}", fix)
    if isinstance(error, TimeoutError):
        fact = f"the port does not answer the TLS handshake within {timeout_s:g} s"
    else:
        fact = f"the TLS handshake fails: {socket_text(error)}"
    return problem("tls", fact, "use the broker's TLS port (often 8883); it may also want --client-cert")


def _names(certificate: dict[str, Any]) -> list[str]:
    return [str(value) for _, value in certificate.get("subjectAltName", ())]


def _issuer(certificate: dict[str, Any]) -> str:
    fields = {key: value for entry in certificate.get("issuer", ()) for key, value in entry}
    parts = [fields[key] for key in ("commonName", "organizationName", "organizationalUnitName") if key in fields]
    return ", ".join(map(str, parts[:2])) or "an issuer without a name"


def _authority(settings: BrokerSettings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{host}:{settings.port}"
