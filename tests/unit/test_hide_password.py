"""No URL shows its password, however it was mistyped."""

from __future__ import annotations

import pytest

from taskbus.bus.connect import Target
from taskbus.config import RouterConfig, hide_password
from taskbus.errors import ConfigError

MISTYPED = [
    "redis://user:SECRET/SECRET@host:6379/0",
    "redis://user:SECRET?SECRET@host:6379/0",
    "redis://:SECRET#SECRET@host:6379",
    "redis://:SECRET@SECRET@host:6379/0",
    "redis://user:SECRET[@host",
    "redis+sentinel://user:SECRET/SECRET@host:1/service/0",
    "redis+sentinel://user:SECRET?SECRET@host:1/service/0",
    "unix://user:SECRET/SECRET@/tmp/socket",
    "redis:/user:SECRET@host",
    "user:SECRET@host:6379",
    "SECRET@host",
    "redis://host/0?ssl_password=SECRET",
    "redis://host/0?db=1&Token=SECRET#SECRET",
]


@pytest.mark.parametrize("url", MISTYPED)
def test_a_password_is_never_shown(url: str) -> None:
    said = [hide_password(url), repr(RouterConfig(url=url))]
    try:
        said.append(Target(url, 0.1).where)
    except ConfigError as error:
        said.append(str(error))
    assert "SECRET" not in " ".join(said)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:word@host:6379/0", "redis://user:***@host:6379/0"),
        ("redis://host:6379/0?protocol=3&x_secret=word", "redis://host:6379/0?protocol=3&x_secret=***"),
        ("unix:///tmp/a.sock", "unix:///tmp/a.sock"),
        ("", ""),
    ],
)
def test_the_rest_is_shown(url: str, shown: str) -> None:
    assert hide_password(url) == shown


def test_a_login_that_should_have_been_escaped_says_so() -> None:
    with pytest.raises(ConfigError, match="%2F"):
        Target("redis://:1/2@host", 0.1)
