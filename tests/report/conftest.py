"""Audits that all tests of reports read, made once for all processes; nobody may change them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ltmia.data.embedded import demo_base_path
from ltmia.models.loading import load_pair
from ltmia.models.pair import Pair
from ltmia.report import figures
from quick import SHIPPED_DRAWING
from report_samples import real_audit, tune
from sharing import made_once

HOSTILE_NAME = "<img src=x onerror=document.title='ran'>\u202e\"'"
"""Of the model's folder: it tries to run as well; a slash it cannot have."""


@pytest.fixture(autouse=True, scope="module")
def _whole_figures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "_svg", SHIPPED_DRAWING)
        yield


@pytest.fixture(scope="session")
def tuned(shared_folder: Path) -> Path:
    """The embedded base, fine-tuned on the members."""
    return made_once(shared_folder / "tuned", lambda folder: tune(folder / HOSTILE_NAME)) / HOSTILE_NAME


@pytest.fixture(scope="module")
def pair(tuned: Path) -> Pair:
    return load_pair(tuned, demo_base_path(), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def audited(pair: Pair, shared_folder: Path) -> Path:
    return made_once(shared_folder / "audited", lambda folder: real_audit(pair, folder))


@pytest.fixture(scope="module")
def revealed(pair: Pair, shared_folder: Path) -> Path:
    """The same audit, with texts and tokens written."""
    return made_once(shared_folder / "revealed", lambda folder: real_audit(pair, folder, reveal=True))
