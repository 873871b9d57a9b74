"""``taskbus doctor``: what a Redis means for the promises."""

from __future__ import annotations

import re
from pathlib import Path

from taskbus.cli.examine import COMMANDS
from taskbus.testing import RedisServer
from tests.cli.conftest import Shell

BUS = Path(__file__).parents[2] / "src" / "taskbus" / "bus"


def told(text: str) -> dict[str, tuple[str, str]]:
    """What was looked at, how it is, and what it means."""
    lines = [line.split(maxsplit=2) for line in text.splitlines()]
    return {what: (word, meaning) for word, what, meaning in lines}


def test_a_good_redis_is_told_line_by_line(shell: Shell) -> None:
    found = told(shell.ok("doctor"))
    assert list(found) == [
        *("url", "reachable", "version", "rights", "role", "persistence", "eviction", "memory", "clients", "clock"),
        "secret",
    ]
    assert {found[what][0] for what in ("reachable", "version", "rights", "role", "eviction", "clock")} == {"ok"}
    assert not shell.keys()


def test_settings_that_break_promises_are_bad(redis_server: RedisServer) -> None:
    shell = Shell(redis_server.url)
    with redis_server.client() as client:
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("appendonly", "yes")
        client.config_set("appendfsync", "everysec")
    done = shell.run("doctor")
    found = told(done.stdout)
    assert done.returncode == 1
    assert found["eviction"][0] == "bad" and "allkeys-lru" in found["eviction"][1]
    assert found["persistence"] == (
        "ok",
        "append-only log, appendfsync everysec: a crash of Redis loses up to a second of events",
    )


def test_each_missing_right_is_named(redis_server: RedisServer) -> None:
    shell = Shell(redis_server.url)
    with redis_server.client() as client:
        client.execute_command(
            *("ACL", "SETUSER", "narrow", "on", ">geheim", f"~taskbus:{{{shell.run_id}}}:*", "resetchannels"),
            *(f"&taskbus:{{{shell.run_id}}}:*", "+@all", "-@admin", "-xadd", "-info", "-subscribe"),
        )
        client.execute_command("ACL", "SETUSER", "astray", "on", ">geheim", "~other:*", "&*", "+@all")
    address = redis_server.url.partition("//")[2]
    shell.url = f"redis://narrow:geheim@{address}"
    done = shell.run("doctor")
    found = told(done.stdout)
    assert done.returncode == 1 and "geheim" not in done.stdout
    assert found["rights"][0] == "bad"
    assert re.findall(r"\b[A-Z]{3,}\b", found["rights"][1].partition(";")[0]) == ["XADD", "SUBSCRIBE"]
    assert found["settings"][0] == "?"
    shell.url = f"redis://astray:geheim@{address}"
    astray = told(shell.run("doctor").stdout)["rights"][1]
    assert "SET, GET, EXISTS" in astray and astray.count("(on this run's keys)") == 1


def test_a_user_without_any_command_is_told_all_that_are_missing(redis_server: RedisServer) -> None:
    shell = Shell(redis_server.url)
    with redis_server.client() as client:
        prefix = f"taskbus:{{{shell.run_id}}}:*"
        client.execute_command("ACL", "SETUSER", "alice", "on", ">pw", f"~{prefix}", "resetchannels", f"&{prefix}")
    done = shell.run("doctor", "--url", f"redis://alice:pw@{redis_server.url.partition('//')[2]}")
    found = told(done.stdout)
    assert done.returncode == 1
    assert found["reachable"][0] == "ok"
    missing = set(re.findall(r"\b[A-Z]{3,}\b", found["rights"][1].partition(";")[0]))
    assert missing == {probe[0] for probe in COMMANDS} - {"WAIT", "CLIENT"} | {"SUBSCRIBE"}
    assert found["clock"] == ("?", "TIME is refused")


def test_a_user_who_sees_only_the_run_has_all_the_rights(redis_server: RedisServer) -> None:
    shell = Shell(redis_server.url)
    with redis_server.client() as client:
        client.execute_command(
            *("ACL", "SETUSER", "narrow", "on", ">geheim", f"~taskbus:{{{shell.run_id}}}:*", "resetchannels"),
            *(f"&taskbus:{{{shell.run_id}}}:*", "-@all", "+hello", "+subscribe", "+xread"),
            *sorted({f"+{probe[0].lower()}" for probe in COMMANDS}),
        )
    shell.url = f"redis://narrow:geheim@{redis_server.url.partition('//')[2]}"
    assert told(shell.run("doctor").stdout)["rights"][0] == "ok"
    node = shell.node(run_ttl=60)
    heard: list[int] = []
    node.on("x", heard.append)
    shell.ok("emit", "x", "[1]")
    assert "node 0" in shell.ok("check")
    shell.close()


def test_a_user_of_one_run_sees_it_among_others_and_who_has_no_password_is_told_so(redis_server: RedisServer) -> None:
    shell, other = Shell(redis_server.url), Shell(redis_server.url)
    other.node()
    shell.node()
    with redis_server.client() as client:
        client.execute_command(
            *("ACL", "SETUSER", "narrow", "on", ">geheim", f"~taskbus:{{{shell.run_id}}}:*", "resetchannels"),
            *(f"&taskbus:{{{shell.run_id}}}:*", "+@all"),
        )
        address = redis_server.url.partition("//")[2]
        shell.url = f"redis://narrow:geheim@{address}"
        done = shell.run("runs")
        assert done.returncode == 0, done.stderr
        assert [line.split()[0] for line in done.stdout.splitlines()] == ["RUN", shell.run_id]
        assert done.stderr == f"# this user may not look into 1 other runs: {other.run_id}\n"
        client.execute_command("ACL", "SETUSER", "default", "resetpass", ">secret")
        shell.url = redis_server.url
        said = shell.run("nodes").stderr
        client.execute_command("ACL", "SETUSER", "default", "nopass")
    assert "needs a password, as in redis://:PASSWORD@HOST" in said and said.count("\n") == 1
    shell.close()
    other.close()


def test_every_command_that_the_bus_sends_is_probed() -> None:
    sent: set[str] = set()
    for script in (BUS / "scripts").glob("*.lua"):
        sent |= set(re.findall(r"redis\.p?call\('([A-Z]+)'", script.read_text()))
    for module in BUS.glob("*.py"):
        if module.name not in ("runs.py",):  # for whoever looks after a whole Redis, not for a node
            text = re.sub(r'"""[\s\S]*?"""', "", module.read_text())
            sent |= set(re.findall(r"""(?:call|pack|pack_value)\(\s*\(?b?"([A-Z]+)\"""", text))
    asked_but_not_needed = {"HELLO", "INFO", "UNSUBSCRIBE"}
    assert sent - {"SUBSCRIBE"} - asked_but_not_needed <= {probe[0] for probe in COMMANDS}
    assert {"XADD", "XREAD", "PUBLISH", "PEXPIRE", "SUBSCRIBE"} <= sent
