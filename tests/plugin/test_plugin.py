"""The pytest plugin, as a project that uses taskbus sees it."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]


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
    pytester.runpytest_subprocess("-p", "no:valkey").assert_outcomes(passed=2)


def test_the_bus_can_be_named_on_the_command_line(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_one(taskbus_url):
            assert taskbus_url == "redis://example:6379/0"
        """
    )
    arguments = ("-p", "no:valkey", "--taskbus-url", "redis://example:6379/0")
    pytester.runpytest_subprocess(*arguments).assert_outcomes(passed=1)
