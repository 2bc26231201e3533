"""The address of a store on a server: read once, and refused before anything is reached where it can lead nowhere.

What may be a part of the password is never shown: signs that stand where an address has none may come from one.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Final
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

import msgspec

from mainspring.errors import InvalidInput, invalid

CONNECT_S: Final = 10.0
_LONGEST_NAME: Final = 63
"""Bytes of a user's or a database's name: the server cuts off the rest."""
_TLS: Final = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
_ONE_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslnegotiation": ("postgres", "direct"),
    "ssl_min_protocol_version": _TLS,
    "ssl_max_protocol_version": _TLS,
    "target_session_attrs": ("any", "primary", "standby", "read-write", "read-only", "prefer-standby"),
    "gsslib": ("gssapi", "sspi"),
}
_FILES: Final = ("sslrootcert", "sslcrl", "sslcert", "sslkey", "passfile")
_OURS: Final = ("schema", "pooler", "direct", "connect_timeout")
_KNOWN: Final = (
    "host", "port", "dbname", "database", "user", "password", "sslpassword", "krbsrvname", "options",
    *_ONE_OF, *_FILES, *_OURS,
)  # fmt: skip
_HOST: Final = re.compile(
    r"(?:(?P<name>[^:/\[\]@?#,]+)|(?P<folder>/[^:,]*)|\[(?P<v6>[0-9A-Fa-f:.]+)\])(?::(?P<port>\d*))?"
    r"|(?P<bare>[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)"
)
_SCHEMA: Final = re.compile(r"(?!pg_)[a-z_][a-z0-9_]{0,47}")
FORM: Final = (
    "use postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with signs such as / and @ in the password as %2F and %40"
)


class Server(msgspec.Struct, frozen=True):
    """Where a store is."""

    url: str  # of the server itself, with the password: never shown
    shown: str  # an address without a password, of the same server
    schema: str
    pooler: str | None = None  # the address of a transaction pooler before it, likewise
    connect_s: float = CONNECT_S
    direct: str = ""  # HOST:PORT behind that pooler

    def __repr__(self) -> str:
        return f"Server({self.named})"

    @property
    def named(self) -> str:
        """The address of the store as it may be shown: what is not as usual stands in it, but for the password."""
        unusual = {} if self.schema == "mainspring" else {"schema": self.schema}
        if self.pooler is not None:
            unusual |= {"pooler": "transaction", "direct": self.direct}
        return self.shown + (f"?{urlencode(unusual, safe='/:[]')}" if unusual else "")

    @property
    def database(self) -> str:
        return urlsplit(self.url).path.strip("/") or "postgres"

    def veiled(self, text: str) -> str:
        """Return what a driver or a server says without the passwords of the address, however they are written."""
        parts = urlsplit(self.url)
        options = dict(parse_qsl(parts.query))
        known = [parts.password, options.get("password"), options.get("sslpassword")]
        written = {form for secret in known if secret for form in (secret, unquote(secret))}
        for form in sorted(written, key=len, reverse=True):
            text = text.replace(form, "...")
        return text


def parse(url: str, schema: str = "mainspring") -> Server:
    """Read the address of a store: a URL as libpq knows it, and `?schema=` for another schema than ours.

    With `?pooler=transaction&direct=HOST:PORT` it leads to a pooler, and `direct` to the server behind that. Files of
    certificates have to be there.

    Raises: InvalidInput.
    """
    parts = _parts(url)
    options = _options(parts)
    schema = options.pop("schema", schema)
    if _SCHEMA.fullmatch(schema) is None or schema in ("public", "information_schema"):
        remedy = "use up to 48 of a-z, 0-9 and _, beginning with no digit, and neither `public` nor pg_..."
        raise invalid("schema", schema, "is no name of a schema of our own", remedy)
    direct = _direct(options)
    connect_s = _connect_s(options.pop("connect_timeout", ""))
    options = {name: value for name, value in options.items() if value}
    _check_values(options)
    login, at, _ = parts.netloc.rpartition("@")
    hosts, shown_hosts = _hosts(parts.netloc[len(login + at) :], options)
    path = "" if "dbname" in options else parts.path  # the driver takes / for a name
    user = quote(options.get("user", ""), safe="") or login.partition(":")[0]
    for field, name in (("user", unquote(user)), ("dbname", options.get("dbname") or unquote(path[1:]))):
        if len(name.encode()) > _LONGEST_NAME:
            raise invalid(field, name, f"is longer than {_LONGEST_NAME} bytes", "check the address")
    database = f"/{quote(options['dbname'], safe='')}" if "dbname" in options else path
    shown = f"postgresql://{f'{user}@' if user else ''}{shown_hosts}{database}"
    given = _address(login + at + hosts, path, options)
    if direct is None:
        return Server(given, shown, schema, None, connect_s)
    there = {name: value for name, value in options.items() if name not in ("host", "port")} | direct
    behind = ":".join(direct.values())
    return Server(_address(login + at, path, there), shown, schema, given, connect_s, behind)


def _none() -> InvalidInput:
    return invalid("store", "postgresql://...", "is no address of a server", FORM)


def _parts(url: str) -> SplitResult:
    """Take it apart. A sign of a password that is written plainly would end it somewhere else."""
    try:
        parts = urlsplit(url)
    except ValueError:  # its text may quote the password
        raise _none() from None
    is_split_elsewhere = url.count("@") > parts.netloc.count("@") or parts.netloc.count("@") > 1 or "#" in url
    if parts.scheme not in ("postgres", "postgresql") or is_split_elsewhere or "/" in parts.path[1:]:
        raise _none()
    if re.search(r"[\x00-\x1f]", url) or "\0" in unquote(url):
        raise _none()
    return parts


def _options(parts: SplitResult) -> dict[str, str]:
    query = parts.query.strip("&")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        raise _none() from None
    options: dict[str, str] = {}
    for name, value in pairs:
        if name not in _KNOWN:
            raise _unknown(name)
        known = "dbname" if name == "database" else name
        if known in options:
            raise invalid(name, "...", "stands twice in the address", "leave one out")
        options[known] = value
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    for name, before in (("user", user), ("password", password), ("dbname", parts.path[1:])):
        if before and options.get(name):
            raise invalid(name, "...", "stands twice in the address, before the ? and after it", "leave one out")
    return options


def _unknown(name: str) -> InvalidInput:
    """The value may be a password, where its name is mistyped."""
    if re.fullmatch(r"[A-Za-z_]\w{0,62}", name) is None:
        return _none()
    nearest = get_close_matches(name, _KNOWN, 1, 0.8)
    known = f"there are {', '.join(_KNOWN)}; settings of sessions go into options=-c%20NAME=VALUE"
    remedy = f"use {nearest[0]}" if nearest else f"leave it out: {known}"
    return invalid(name, "...", "is no parameter that the address of a store has", remedy)


def _direct(options: dict[str, str]) -> dict[str, str] | None:
    """Return host and port of the server behind a pooler; None where there is none between."""
    kind, direct = options.pop("pooler", ""), options.pop("direct", "")
    if not kind and not direct:
        return None
    if kind != "transaction":
        raise invalid("pooler", kind, "is no kind of pooler", "use `transaction`, for PgBouncer in any mode")
    if not direct:
        why = (
            "names no server behind the pooler, and wake-ups, heartbeats and the lock of who leads need sessions of it"
        )
        raise invalid("direct", direct, why, "add &direct=HOST:PORT")
    host, port = _host("direct", direct)
    return {"host": host} | ({"port": port} if port else {})


def _connect_s(text: str) -> float:
    if not text:
        return CONNECT_S
    if re.fullmatch(r"\d{1,6}", text) is None or int(text) == 0:
        raise invalid("connect_timeout", text, "is no whole number of seconds from 1", "use about 10")
    return float(text)


def _hosts(hosts: str, options: dict[str, str]) -> tuple[str, str]:
    """Check where it leads; returns what is to stand before the path, for the driver and as it is shown."""
    if re.fullmatch(r":\d*", hosts) and "port" not in options:  # the usual host, or those after the ?
        options |= {"port": hosts[1:]} if hosts[1:] else {}
        hosts = ""
    if hosts and "host" in options:
        raise invalid("host", options["host"], "is a second host", "leave one out, or name several as HOST,HOST")
    found = [_host("store", host, is_quoted=True) for host in hosts.split(",")] if hosts else []
    if "host" in options:
        found = [_host("host", host) for host in options["host"].split(",")]
        options["host"] = ",".join(f"{host}:{port}" if port else host for host, port in found)
    ports = options["port"].split(",") if "port" in options else []
    for port in ports:
        _check_port(port)
    if ports and any(port for _, port in found):
        raise invalid("port", options["port"], "is a second port", "leave one out")
    if len(ports) > 1 and len(ports) != len(found):
        raise invalid("port", options["port"], f"does not fit {len(found)} hosts", "use one port for each, or for all")
    if len(found) > 1:  # all connections of an engine have to lead to the one that takes writes
        options.setdefault("target_session_attrs", "read-write")
    found = found or [("localhost", "")]
    behind = ports * len(found) if len(ports) == 1 else ports or [""] * len(found)
    return hosts, ",".join(_shown_host(host, own or port) for (host, own), port in zip(found, behind, strict=True))


def _shown_host(host: str, port: str) -> str:
    """Write it as an address has it before its path: the folder of a socket is quoted there."""
    name = quote(host if host.startswith("/") else host.lower(), safe="[]:")
    return f"{name}:{port}" if port else name


def _host(field: str, text: str, *, is_quoted: bool = False) -> tuple[str, str]:
    """Return a host, without quotes, and its port."""
    found = _HOST.fullmatch(text)
    if found is None:
        raise _none() if field == "store" else invalid(field, text, "is no HOST:PORT", f"add &{field}=HOST:PORT")
    if found["port"]:
        _check_port(found["port"])
    name = unquote(found["name"] or "") if is_quoted else found["name"]
    if name:
        try:
            name.encode("idna")
        except UnicodeError:
            if not name.startswith("/"):
                raise invalid("host", name, "is no name of a host", "check the address") from None
    v6 = found["v6"] or found["bare"]
    return f"[{v6}]" if v6 else name or found["folder"], found["port"] or ""


def _check_port(text: str) -> None:
    if re.fullmatch(r"\d{1,5}", text) is None or not 0 < int(text) < 1 << 16:
        raise invalid("port", text, "is no port", "use 1 to 65535; 5432 is the usual one")


def _check_values(options: Mapping[str, str]) -> None:
    for name, allowed in _ONE_OF.items():
        if options.get(name, allowed[0]) not in allowed:
            raise invalid(name, options[name], "is unknown", f"use {', '.join(allowed[:-1])} or {allowed[-1]}")
    for name in _FILES:
        if name in options and not os.access(options[name], os.R_OK):
            raise invalid(name, options[name], "can't be read on this machine", "check the path, or leave it out")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for name in ("sslrootcert", "sslcrl"):
        if name in options:
            try:
                context.load_verify_locations(cafile=options[name])
            except OSError as exc:
                raise invalid(name, options[name], f"holds no certificates ({exc})", "name a file in PEM") from exc
    if "sslcert" in options:
        try:
            context.load_cert_chain(options["sslcert"], options.get("sslkey"), lambda: options.get("sslpassword", ""))
        except OSError as exc:
            why = f"is no certificate with its key ({exc})"
            raise invalid("sslcert", options["sslcert"], why, "check sslcert, sslkey and sslpassword") from exc


def _address(netloc: str, path: str, options: Mapping[str, str]) -> str:
    query = urlencode(options)
    return f"postgresql://{netloc}{path}" + (f"?{query}" if query else "")


__all__ = ["CONNECT_S", "FORM", "Server", "parse"]
