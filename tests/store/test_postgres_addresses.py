"""The address of a store on a server: what it may hold, what is refused before anything is reached, what is shown."""

from __future__ import annotations

import ssl
import string
import traceback
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest
from tests import postgres

from mainspring import Engine, EngineConfig, StoreConfig
from mainspring.errors import InvalidInput, StoreRefused, StoreUnavailable, TaskError
from mainspring.store.postgres.address import Server, parse
from mainspring.store.postgres.connection import translated
from mainspring.testing import check_history

pytestmark = pytest.mark.anyio
SECRET = "s3cr3t"
NEARLY = [
    f"postgresql:/me:{SECRET}@host/db",
    f"postgres:me:{SECRET}@host/db",
    f"postgresql//me:{SECRET}@host/db",
    f"postgresql+asyncpg:/me:{SECRET}@host/db",
    f"postgresql+asyncpg://me:{SECRET}@host/db",
    f"jdbc:postgresql://host/db?user=me&password={SECRET}",
    f"me:{SECRET}@host/db",
    f"me:{SECRET}@host:5432",
    f"me:a/{SECRET}@host/db",
    f"//me:{SECRET}@host/db",
    f"host/db?password={SECRET}",
    f"host/db?%70assword={SECRET}",
    f"host=h user=me password={SECRET} dbname=db",
    f"password = {SECRET}",
    f"host=h sslpassword={SECRET}",
]
SPLIT = [
    f"postgresql://me:12/{SECRET}@host/db",
    f"postgresql://me:12?{SECRET}@host/db",
    f"postgresql://me:12?a={SECRET}@host/db",
    f"postgresql://me:12#{SECRET}@host/db",
    f"postgresql://me:12@{SECRET}@host/db",
    f"postgresql://me:[{SECRET}@host/db",
    f"postgresql://me:12%00{SECRET}@host/db",
    f"postgresql://me:pw@host/db?{SECRET}",
    f"postgresql://me:pw@host/db?pasword={SECRET}",
    f"postgresql://me:pw@host/db?password={SECRET}",
    f"postgresql://me:{SECRET}@host/db?user=you",
    f"postgresql://me@host/db?password={SECRET}&password={SECRET}",
    f"postgresql://me@host/db?%70assword={SECRET}&connect_timeout=x",
    f"postgresql://me@host/db?sslpassword={SECRET}&sslcert=/nowhere",
    f"postgresql://me:{SECRET}@host/db?sslmode=bogus",
    f"postgresql://me:{SECRET}@host:70000/db",
    f"postgresql://me:{SECRET}@host/db?schema=A",
]
UNREACHED = [
    f"postgresql://me:{SECRET}@127.0.0.1:1/db",
    f"postgresql://me@127.0.0.1:1/db?password={SECRET}",
    f"postgresql://me@127.0.0.1:1/db?%70assword={SECRET}",
    f"postgresql://me:{SECRET}@/db?host=/nowhere",
]


def all_of(exc: BaseException) -> str:
    """Return whatever may be shown of an error: also of those that it came from."""
    values = repr(vars(exc)) if isinstance(exc, TaskError) else ""
    return "".join(traceback.format_exception(exc, chain=True)) + repr(exc) + values


@pytest.mark.parametrize("store", [*NEARLY, *SPLIT])
def test_what_is_no_address_is_refused_without_its_password(store: str, tmp_path: Path, monkeypatch: Any) -> None:
    """However it is written, nothing is made for it, and nothing of the error shows it."""
    monkeypatch.chdir(tmp_path)
    for call in (Engine, check_history):
        with pytest.raises(InvalidInput) as caught:
            call(store)
        assert SECRET not in all_of(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_address_that_became_a_path_is_none() -> None:
    with pytest.raises(InvalidInput, match="is no address of a store") as caught:
        Engine(Path(f"postgresql://me:{SECRET}@host/db"))
    assert SECRET not in all_of(caught.value)


@pytest.mark.parametrize("url", UNREACHED)
async def test_who_can_t_be_reached_is_named_without_a_password(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    engine = Engine(url, worker=False)
    with pytest.raises(StoreUnavailable) as caught:
        await engine.__aenter__()
    store: Any = engine.manager.store
    shown = [all_of(caught.value), caplog.text, engine.address, repr(store.server), repr(vars(store))]
    assert not [text for text in shown if SECRET in text]


@pytest.mark.parametrize("sign", string.punctuation)
def test_a_sign_in_a_password(sign: str) -> None:
    """Quoted it is what it is. Written plainly it is that too, or it is refused: nothing is taken for another part."""
    password = f"a{sign}{SECRET}"
    quoted = parse(f"postgresql://me:{quote(password, safe='')}@host:7/db")
    assert unquote(urlsplit(quoted.url).password or "") == password
    assert quoted.shown == "postgresql://me@host:7/db"
    plain = f"postgresql://me:{password}@host:7/db"
    if sign in "#/?@[]":
        with pytest.raises(InvalidInput) as caught:
            parse(plain)
        assert SECRET not in all_of(caught.value)
    else:
        assert (parse(plain).shown, urlsplit(parse(plain).url).password) == (quoted.shown, password)


@pytest.mark.parametrize(
    ("url", "written"),
    [
        (f"postgresql://me:a%2F{SECRET}@host/db", f"a%2F{SECRET}"),
        (f"postgresql://me:a%2F{SECRET}@host/db", f"a/{SECRET}"),
        (f"postgresql://me@host/db?password=a%2F{SECRET}", f"a/{SECRET}"),
        (f"postgresql://me@host/db?sslpassword=a%2F{SECRET}", f"a/{SECRET}"),
    ],
)
def test_what_a_driver_quotes_is_veiled(url: str, written: str) -> None:
    """However it has read the password."""
    error = translated(parse(url), OSError(f"can't use {written!r}"))
    assert isinstance(error, StoreUnavailable)
    assert SECRET not in str(error)
    assert "can't use '...'" in str(error)


@pytest.mark.parametrize(
    ("query", "field", "words"),
    [
        ("conect_timeout=3", "conect_timeout", "use connect_timeout"),
        ("statement_timeout=5", "statement_timeout", "options=-c"),
        ("application_name=mine", "application_name", "leave it out"),
        ("channel_binding=require", "channel_binding", "leave it out"),
        ("service=mine", "service", "leave it out"),
        ("connect_timeout=abc", "connect_timeout", "'abc'"),
        ("connect_timeout=0", "connect_timeout", "'0'"),
        ("connect_timeout=-1", "connect_timeout", "'-1'"),
        ("sslmode=bogus", "sslmode", "verify-full"),
        ("sslnegotiation=bogus", "sslnegotiation", "direct"),
        ("ssl_min_protocol_version=9", "ssl_min_protocol_version", "TLSv1.2"),
        ("target_session_attrs=master", "target_session_attrs", "read-write"),
        ("gsslib=bogus", "gsslib", "sspi"),
        ("sslrootcert=/nowhere", "sslrootcert", "/nowhere"),
        ("sslrootcert={file}", "sslrootcert", "PEM"),
        ("sslcrl={file}", "sslcrl", "PEM"),
        ("sslcert={file}", "sslcert", "sslkey"),
        ("sslkey=/nowhere", "sslkey", "/nowhere"),
        ("passfile=/nowhere", "passfile", "/nowhere"),
        ("port=abc", "port", "'abc'"),
        ("port=0", "port", "65535"),
        ("port=70000", "port", "65535"),
        ("port=1,2", "port", "one port for each"),
        ("host=h&port=1,2", "port", "one port for each"),
        ("host=h:1&port=2", "port", "leave one out"),
        ("host=a,,b", "host", "HOST:PORT"),
        ("host=", None, ""),
        (f"host={'a' * 70}", "host", "no name of a host"),
        (f"user={'a' * 64}", "user", "63 bytes"),
        (f"dbname={'ä' * 32}", "dbname", "63 bytes"),
        ("sslmode=require&sslmode=disable", "sslmode", "twice"),
        ("dbname=a&database=b", "database", "twice"),
    ],
)
def test_what_a_parameter_can_t_be(query: str, field: str | None, words: str, tmp_path: Path) -> None:
    """It is named, with its value and what to do; one without a value is none, as with other programs."""
    (tmp_path / "file").write_text("no certificate")
    url = f"postgresql://?{query.format(file=tmp_path / 'file')}"
    if field is None:
        Engine(url)
        return
    with pytest.raises(InvalidInput) as caught:
        Engine(url)
    assert caught.value.field == field
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("url", "field"),
    [
        (f"postgresql://h/{'x' * 64}", "dbname"),
        (f"postgresql://{'x' * 64}@h/", "user"),
        (f"postgresql://{'x' * 64}/db", "host"),
        ("postgresql://h:0/db", "port"),
        ("postgresql://h:1,i:99999/db", "port"),
        ("postgresql://h/db?host=i", "host"),
        ("postgresql://h/db?dbname=other", "dbname"),
        ("postgresql://me@h/db?user=you", "user"),
        ("postgresql://a,,b/db", "store"),
        ("postgresql://h/db/other", "store"),
        ("postgresql://h/db?user=me@corp", "store"),
    ],
)
def test_what_an_address_can_t_be(url: str, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Engine(url)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("url", "shown", "netloc", "options"),
    [
        ("postgres://h", "postgresql://h", "h", {}),
        ("postgresql:///db", "postgresql://localhost/db", "", {}),
        ("postgresql://me@:7/db", "postgresql://me@localhost:7/db", "me@", {"port": "7"}),
        ("postgresql://H:7/db", "postgresql://h:7/db", "H:7", {}),
        ("postgresql://[::1]:7/db", "postgresql://[::1]:7/db", "[::1]:7", {}),
        ("postgresql:///db?host=::1&port=7", "postgresql://[::1]:7/db", "", {"host": "[::1]", "port": "7"}),
        ("postgresql://?dbname=db&user=me", "postgresql://me@localhost/db", "", {"dbname": "db", "user": "me"}),
        ("postgresql://h/?database=db", "postgresql://h/db", "h", {"dbname": "db"}),
        ("postgresql://%2FRun%2fpg:7/db", "postgresql://%2FRun%2Fpg:7/db", "%2FRun%2fpg:7", {}),
        ("postgresql://?host=/Run/pg&port=7", "postgresql://%2FRun%2Fpg:7", "", {"host": "/Run/pg", "port": "7"}),
        ("postgresql://h/?user=a/b&dbname=c%40d", "postgresql://a%2Fb@h/c%40d", "h", {"user": "a/b", "dbname": "c@d"}),
        (
            "postgresql:///db?host=h,i&port=7&target_session_attrs=any",
            "postgresql://h:7,i:7/db",
            "",
            {"host": "h,i", "port": "7", "target_session_attrs": "any"},
        ),
        ("postgresql://h:1,i:2/db", "postgresql://h:1,i:2/db", "h:1,i:2", {"target_session_attrs": "read-write"}),
        (
            "postgresql:///db?host=h,/run/pg&port=1,2&target_session_attrs=primary",
            "postgresql://h:1,%2Frun%2Fpg:2/db",
            "",
            {"host": "h,/run/pg", "port": "1,2", "target_session_attrs": "primary"},
        ),
    ],
)
def test_what_the_driver_is_given(url: str, shown: str, netloc: str, options: dict[str, str]) -> None:
    """One form for all ways to write it, which it reads as it is meant. Of several servers one that takes writes."""
    found = parse(url)
    parts = urlsplit(found.url)
    assert (found.shown, parts.netloc) == (shown, netloc)
    assert parse(shown).shown == shown
    assert {name: value for name, (value,) in parse_qs(parts.query).items()} == options
    assert parts.path != "/"


async def test_parameters_that_have_a_meaning(tmp_path: Path) -> None:
    """Of several hosts the one that is there is taken; settings hold in each session."""
    parts = urlsplit(postgres.address_of(tmp_path))
    host = parse_qs(parts.query)["host"][0] if "host" in parse_qs(parts.query) else parts.hostname
    port = parse_qs(parts.query).get("port", [str(parts.port or 5432)])[0]
    query = f"host=127.0.0.1,{host}&port=1,{port}&connect_timeout=7&options=-c%20work_mem%3D5MB"
    login = parts.netloc.rpartition("@")[0]
    url = f"postgresql://{login}@{parts.path}?{query}&schema={postgres.schema_of(tmp_path)}"
    assert parse(url).connect_s == 7.0
    async with Engine(url, EngineConfig(store=StoreConfig(blobs=tmp_path)), worker=False) as engine:
        store: Any = engine.manager.store
        assert await store.view(lambda view: view.execute("SHOW work_mem")) == [("5MB",)]
    postgres.drop(postgres.schema_of(tmp_path))


@pytest.mark.parametrize("options", ["-c nosuch=1", "bogus", "-c work_mem=abc", "-c max_connections=5"])
async def test_settings_that_the_server_does_not_take(options: str, tmp_path: Path) -> None:
    engine = Engine(
        f"{postgres.address_of(tmp_path)}&options={quote(options)}", EngineConfig(store=StoreConfig(blobs=tmp_path))
    )
    with pytest.raises(InvalidInput) as caught:
        await engine.__aenter__()
    assert caught.value.field == "options"


@pytest.mark.parametrize("what", ["port", "passwords"])
async def test_what_stands_beside_the_address_can_be_wrong_too(what: str, tmp_path: Path, monkeypatch: Any) -> None:
    """What the driver reads from the environment or a file is refused as the address itself is."""
    passwords = tmp_path / "passwords"
    passwords.write_text(f"host:{SECRET}\n" if what == "passwords" else "")
    passwords.chmod(0o600)
    if what == "port":
        monkeypatch.setenv("PGPORT", "abc")
    with pytest.raises(InvalidInput, match="beside it") as caught:
        await Engine(f"postgresql://me@127.0.0.1/db?passfile={passwords}", worker=False).__aenter__()
    assert SECRET not in all_of(caught.value)


def test_a_certificate_that_is_not_trusted() -> None:
    """Trying again does not help."""
    error = translated(parse("postgresql://h/db"), ssl.SSLCertVerificationError("certificate verify failed"))
    assert isinstance(error, StoreRefused)
    assert "sslrootcert" in str(error)


@pytest.mark.parametrize("schema", ["pg_mine", "public", "information_schema", "x" * 49, "Mine", 'a"b', "a;b", "ä", ""])
def test_what_a_schema_can_t_be_called(schema: str) -> None:
    """Refused before anything is reached, by the address as by the settings."""
    for engine in (
        lambda: Engine(f"postgresql://h/db?schema={quote(schema)}"),
        lambda: Engine("postgresql://h/db", EngineConfig(store=StoreConfig(schema=schema))),
    ):
        with pytest.raises(InvalidInput) as caught:
            engine()
        assert caught.value.field == "schema"


def test_a_schema_is_named_by_text() -> None:
    with pytest.raises(InvalidInput, match="schema"):
        StoreConfig(schema=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("schema", ["user", "select", "left"])
async def test_a_schema_that_is_a_word_of_sql(schema: str) -> None:
    """It is refused before anything is written, and whoever looks is told the same."""
    with pytest.raises(InvalidInput, match="word of SQL") as caught:
        await Engine(f"{postgres.url()}&schema={schema}").__aenter__()
    assert caught.value.field == "schema"
    assert postgres.ask("SELECT 1 FROM pg_namespace WHERE nspname = $1", schema) == []
    with pytest.raises(InvalidInput, match="word of SQL"):
        check_history(f"{postgres.url()}&schema={schema}")


def test_a_server_is_shown_as_it_may_be() -> None:
    server = parse(f"postgresql://me:{SECRET}@pool/db?pooler=transaction&direct=h:7&schema=mine")
    assert repr(server) == "Server(postgresql://me@pool/db?schema=mine&pooler=transaction&direct=h:7)"
    assert isinstance(server, Server)
    assert parse(server.named).named == server.named
