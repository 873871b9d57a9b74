"""The mix of faults, for a short time; ``scripts/soak`` runs it for longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.conftest import scaled
from tests.faults.soak import Soak


@pytest.mark.timeout(900)
def test_a_mix_of_faults_loses_nothing(tmp_path: Path) -> None:
    soak = Soak(seed=1, seconds=scaled(20, 600), directory=tmp_path)
    assert soak.run(), "\n".join((soak.report(), *(f"{name}: {verdict}" for name, verdict in soak.verdicts.items())))
