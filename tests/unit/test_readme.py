"""Every snippet of the README is run, as it stands there, and its output is compared; ``...`` stands for anything."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import pytest

from taskbus.config import RouterConfig
from taskbus.testing import RedisServer

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
NOT_RUN = 2  # the two commands of the checkout, and the installation


class Snippet(NamedTuple):
    """A block of code, the mark in the comment above it, and the heading it stands under."""

    section: str
    mark: str
    language: str
    text: str


def snippets() -> list[Snippet]:
    """All of them, in order."""
    found = []
    pattern = r"^## (?P<section>[^\n]*)$|^(?:<!-- (?P<mark>[^\n]*) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$"
    section = "the first screen"
    for match in re.finditer(pattern, README, re.M | re.S):
        if match["section"] is not None:
            section = match["section"]
        else:
            found.append(Snippet(section, match["mark"] or "", match["language"], match["text"]))
    return found


ALL = snippets()
SECTIONS = list(dict.fromkeys(one.section for one in ALL if not one.mark.startswith("not run")))


class Reader:
    """Does what a reader of the README does, in a directory of his own, with a Redis where the README has one."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.url = url
        self.background: list[subprocess.Popen[str]] = []
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        run_id = f"readme-{uuid.uuid4().hex[:6]}"
        self.environment = {**os.environ, "PATH": programs, "TASKBUS_RUN_ID": run_id, "PYTHONUNBUFFERED": "1"}

    def follow(self, snippet: Snippet) -> None:
        """Run one snippet, and compare what it says with what the README says."""
        kind, _, rest = snippet.mark.partition(": ")
        text = snippet.text.replace("redis://127.0.0.1:6379/0", self.url)
        if kind == "file":
            (self.directory / rest).write_text(snippet.text)
        elif kind == "python":
            self.run([sys.executable, "-W", "error", "-c", text])
        elif kind == "test":
            (self.directory / "test_readme_snippet.py").write_text(text)
            self.run([sys.executable, "-m", "pytest", "-q", "-p", "no:valkey", "-p", "no:cacheprovider", "."])
        elif kind == "shell" and rest == "background":
            self.background.append(self.start(commands(text)))
        elif kind == "shell":
            compare(expected(text), self.run(["bash", "-c", commands(text)]))
        else:
            pytest.fail(f"the snippet has no mark that says how to run it:\n{snippet.text}")

    def start(self, script: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "-c", script],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def run(self, command: list[str]) -> str:
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def close(self) -> None:
        for process in self.background:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def commands(text: str) -> str:
    """What stands behind the prompts."""
    return "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))


def expected(text: str) -> list[str]:
    """What stands between the prompts."""
    return [line for line in text.splitlines() if not line.startswith("$ ")]


def compare(wanted: list[str], got: str) -> None:
    """Every line wanted is there, in order; what nodes in the background say may stand between them."""
    lines = got.splitlines()
    for line in wanted:
        pattern = re.compile(r"\s+".join(re.escape(word) for word in line.split()).replace(r"\.\.\.", ".*"))
        while lines and not pattern.fullmatch(lines[0]):
            lines.pop(0)
        assert lines, f"{line!r} does not come in this place of:\n{got}"
        lines.pop(0)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.mark.parametrize("section", SECTIONS)
def test_the_section_does_what_it_says(section: str, server: RedisServer, tmp_path: Path) -> None:
    reader = Reader(tmp_path, server.url)
    try:
        for snippet in ALL:
            is_here = snippet.section == section and not snippet.mark.startswith("not run")
            if is_here or snippet.mark.startswith("file: "):  # files are there for all sections
                reader.follow(snippet)
    finally:
        reader.close()


def test_only_what_cannot_be_run_here_is_not_run() -> None:
    assert sum(one.mark.startswith("not run") for one in ALL) == NOT_RUN


def test_the_settings_are_told_with_their_defaults() -> None:
    [snippet] = [one for one in ALL if one.section == "Operating"]
    [call] = [node.value for node in ast.parse(snippet.text).body if isinstance(node, ast.Expr)]
    assert isinstance(call, ast.Call)
    told = {str(word.arg): eval(ast.unparse(word.value)) for word in call.keywords if word.arg != "labels"}
    known = {field.name: field.default for field in fields(RouterConfig)}
    assert told == {name: known[name] for name in told}


def test_every_file_and_heading_that_is_named_is_there() -> None:
    for path in re.findall(r"`((?:scripts|docker)/[\w./-]+)`", README):
        assert (ROOT / path).exists(), path
    headings = {
        re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in re.findall(r"^## (.*)$", README, re.M)
    }
    for anchor in re.findall(r"\]\(#([^)]+)\)", README):
        assert anchor in headings, anchor
