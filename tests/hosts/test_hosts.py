"""What ``scripts/hosts`` says where it cannot run, and what it runs elsewhere; ``scripts/test`` runs it as a step."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOSTS = ROOT / "scripts" / "hosts"
COMPOSE = (ROOT / "docker" / "compose.yml").read_text()


def _run(path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HOSTS], env={"PATH": path}, capture_output=True, text=True, timeout=30, check=False)


def test_a_machine_without_the_tools_is_told_what_is_missing_and_nothing_is_tried(tmp_path: Path) -> None:
    for tool in ("bash", "dirname", "uname"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    ended = _run(str(tmp_path))
    assert ended.returncode == 77
    assert "ip is not installed" in ended.stderr
    assert "nothing was tried" in ended.stderr


def test_a_kernel_that_refuses_is_no_failure_of_the_run(tmp_path: Path) -> None:
    unshare = tmp_path / "unshare"
    unshare.write_text("#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2; exit 1\n")
    unshare.chmod(0o755)
    ended = _run(f"{tmp_path}:{os.environ['PATH']}")
    assert (ended.returncode, ended.stdout) == (77, "")
    assert "nothing was tried" in ended.stderr


@pytest.mark.parametrize("role", ["learner", "evaluator", "collector"])
def test_the_containers_of_a_role_run_it_and_carry_its_label(role: str) -> None:
    found = re.search(rf"^  {role}:\n(?:    .*\n)*?    command: (.*)$", COMPOSE, re.MULTILINE)
    assert found
    command = shlex.split(found[1])
    assert command == ["taskbus", "run", f"taskbus.demo.{role}:main", "--labels", role]
    assert callable(import_module(f"taskbus.demo.{role}").main)
