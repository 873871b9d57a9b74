"""The pytest plugin, as a project that uses taskbus sees it."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

USING_ALL = """
    import threading

    from taskbus.testing import until

    def test_nodes_hear_one_another(taskbus_run):
        learner = taskbus_run.node(labels="learner")
        collector = taskbus_run.node(labels="collector")
        heard = []
        learner.on("sample", heard.append)
        collector.emit("sample", 1)
        taskbus_run.settle()
        assert heard == [1]
        assert [event.args for event in taskbus_run.emitted("sample")] == [(1,)]

    def test_nodes_can_be_hurt(taskbus_run):
        learner, collector = taskbus_run.node(), taskbus_run.node()
        heard = []
        learner.on("sample", heard.append)
        learner.cut()
        collector.emit("sample", 1)
        learner.heal()
        taskbus_run.settle()
        assert heard == [1]
        collector.freeze()
        collector.emit("sample", 2)
        collector.kill()
        until(lambda: len(learner.nodes()) == 1, what="its lease has run out")
        collector.revive()
        taskbus_run.settle()
        assert heard == [1]

    def test_nothing_is_left_of_the_tests_before(taskbus_run, taskbus_url):
        until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("taskbus-")])
        if not taskbus_url.startswith("memory://"):
            import redis
            with redis.Redis.from_url(taskbus_url) as client:
                assert not list(client.scan_iter("taskbus:*"))
"""


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess("-p", "no:valkey", "-p", "no:cacheprovider", "-W", "error", *arguments)


@pytest.mark.parametrize("arguments", [(), ("--taskbus-redis",), ("-n", "2"), ("--taskbus-redis", "-n", "2")])
def test_the_run_fixture_over_every_kind_of_bus(pytester: pytest.Pytester, arguments: tuple[str, ...]) -> None:
    pytester.makepyfile(USING_ALL)
    if "-n" in arguments and "--taskbus-redis" not in arguments:
        pytester.makepyfile(**{f"test_more{number}": USING_ALL for number in range(2)})
        run(pytester, *arguments).assert_outcomes(passed=9)
    else:
        run(pytester, *arguments).assert_outcomes(passed=3)


def test_the_run_fixture_over_a_server_that_is_there(pytester: pytest.Pytester, real_redis_url: str) -> None:
    pytester.makepyfile(USING_ALL.partition("    def test_nothing")[0])
    run(pytester, "--taskbus-url", real_redis_url).assert_outcomes(passed=2)


def test_a_listener_that_fails_fails_its_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from taskbus.testing import until

        def listen(taskbus_run):
            node = taskbus_run.node()
            node.on("sample", lambda: 1 / 0)
            node.emit("sample")
            return node

        def test_that_settles(taskbus_run):
            listen(taskbus_run)
            taskbus_run.settle()

        def test_that_does_not(taskbus_run):
            node = listen(taskbus_run)
            until(lambda: node.errors.kept)

        def test_that_ends_at_once(taskbus_run):
            listen(taskbus_run)
        """
    )
    run(pytester).assert_outcomes(failed=1, passed=2, errors=2)


def test_every_test_has_a_bus_in_process_of_its_own(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        seen = set()

        def test_one(taskbus_url):
            assert taskbus_url.startswith("memory://")
            seen.add(taskbus_url)

        def test_two(taskbus_url):
            assert taskbus_url not in seen
        """
    )
    run(pytester).assert_outcomes(passed=2)


def test_the_bus_can_be_named_on_the_command_line(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_one(taskbus_url):
            assert taskbus_url == "redis://example:6379/0"
        """
    )
    run(pytester, "--taskbus-url", "redis://example:6379/0").assert_outcomes(passed=1)
    both = run(pytester, "--taskbus-url", "redis://example:6379/0", "--taskbus-redis")
    both.stderr.fnmatch_lines(["*not both*"])


def test_settings_of_all_nodes_are_a_fixture_to_override(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def taskbus_settings():
            return {"lease": 4.0, "retention_events": 7}

        def test_one(taskbus_run):
            config = taskbus_run.node(heartbeat=0.1).config
            assert (config.lease, config.retention_events, config.heartbeat) == (4.0, 7, 0.1)
        """
    )
    run(pytester).assert_outcomes(passed=1)


def test_a_run_without_the_fixtures_imports_nothing_of_ours(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_one():
            assert not {"taskbus", "redis", "fakeredis", "orjson", "hiredis"} & set(sys.modules)
            assert "taskbus_pytest" in sys.modules
        """
    )
    run(pytester).assert_outcomes(passed=1)


def test_the_fixtures_are_told_with_what_they_are_for(pytester: pytest.Pytester) -> None:
    told = run(pytester, "--fixtures")
    told.stdout.fnmatch_lines(["taskbus_url*", "*The URL of a bus*", "taskbus_run*", "*A run of this test's own*"])
