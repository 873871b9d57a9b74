"""until() and RedisServer: what the other suites stand on."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest
import redis

from taskbus.errors import BusUnavailable, ConfigError, NotStarted, WaitTimeout
from taskbus.testing import RedisServer, until


def test_until_returns_the_first_true_value() -> None:
    values = iter([0, None, "", "there"])
    assert until(lambda: next(values)) == "there"


def test_until_looks_at_once_even_without_time() -> None:
    assert until(lambda: 1, timeout=0) == 1
    with pytest.raises(WaitTimeout):
        until(lambda: False, timeout=0)


def test_until_says_what_did_not_come() -> None:
    began = time.monotonic()
    with pytest.raises(WaitTimeout, match=r"not within 0\.05 s: b hears finish"):
        until(lambda: False, timeout=0.05, what="b hears finish")
    assert 0.05 <= time.monotonic() - began < 2


def test_until_sees_what_another_thread_does() -> None:
    event = threading.Event()
    timer = threading.Timer(0.05, event.set)
    timer.start()
    until(event.is_set, what="the timer")
    timer.join()


def test_until_lets_errors_of_the_condition_through() -> None:
    with pytest.raises(ZeroDivisionError):
        until(lambda: 1 // 0)


def test_a_server_answers_at_its_url_and_is_gone_after_stop(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        assert client.ping()
        assert client.client_info()["addr"].startswith("127.0.0.1:")
    port = redis_server.port
    redis_server.stop()
    redis_server.stop()
    assert not redis_server.alive
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        pass
    with pytest.raises(NotStarted):
        _ = redis_server.url


def test_a_server_on_a_unix_socket() -> None:
    with RedisServer(unix=True) as server, server.client() as client:
        assert server.url.startswith("unix:///")
        assert server.port == 0
        assert client.ping()


def test_a_frozen_server_accepts_but_does_not_answer_until_thawed(redis_server: RedisServer) -> None:
    redis_server.freeze()
    assert redis_server.alive
    with (
        redis.Redis.from_url(redis_server.url, socket_timeout=0.1) as client,
        pytest.raises(redis.TimeoutError),
    ):
        client.ping()
    redis_server.thaw()
    with redis_server.client() as client:
        assert client.ping()


def test_a_killed_server_comes_back_empty_on_the_same_address(redis_server: RedisServer) -> None:
    url, pid = redis_server.url, redis_server.pid
    with redis_server.client() as client:
        client.set("key", "value")
    redis_server.kill()
    assert not redis_server.alive
    redis_server.start()
    assert (redis_server.url, redis_server.pid == pid) == (url, False)
    with redis_server.client() as client:
        assert client.get("key") is None


def test_with_appendonly_what_was_written_survives_a_kill() -> None:
    with RedisServer("--appendfsync", "always", appendonly=True) as server:
        with server.client() as client:
            client.set("key", "value")
        server.kill()
        server.start()
        with server.client() as client:
            assert client.get("key") == b"value"
        server.restart(empty=True)
        with server.client() as client:
            assert client.get("key") is None


def test_a_restart_keeps_the_data_unless_told_otherwise(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        client.set("key", "value")
    redis_server.restart()
    with redis_server.client() as client:
        assert client.get("key") == b"value"
    redis_server.restart(empty=True)
    with redis_server.client() as client:
        assert client.get("key") is None


def test_what_a_restart_kept_does_not_come_back_after_a_kill(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        client.set("key", "value")
    redis_server.restart()
    redis_server.kill()
    redis_server.start()
    with redis_server.client() as client:
        assert client.get("key") is None


def test_more_settings_reach_the_server() -> None:
    with RedisServer("--maxmemory", "7mb") as server, server.client() as client:
        assert client.config_get("maxmemory") == {"maxmemory": str(7 * 1024 * 1024)}


def test_debug_commands_are_there(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        assert client.execute_command("DEBUG", "SLEEP", "0")


def test_a_server_that_ends_early_shows_its_log() -> None:
    with pytest.raises(BusUnavailable, match="no-such-setting"):
        RedisServer("--no-such-setting", "1").start()


def test_a_named_binary_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKBUS_TEST_REDIS_SERVER", "/nowhere/redis-server")
    with pytest.raises(ConfigError, match="/nowhere/redis-server"):
        RedisServer().start()


def test_many_servers_side_by_side_do_not_meet() -> None:
    with RedisServer() as one, RedisServer() as two:
        assert one.port != two.port
        assert one.pid != two.pid


def test_nothing_of_a_server_stays_on_disk() -> None:
    with RedisServer() as server, server.client() as client:
        directory = Path(client.config_get("dir")["dir"])
        assert directory.is_dir()
    assert not directory.exists()
