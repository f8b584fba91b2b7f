"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference data: TFF_SHARED, or ../shared beside the repository."""
    folder = Path(os.environ.get("TFF_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip("no reference data: set TFF_SHARED to its folder")
    return folder
