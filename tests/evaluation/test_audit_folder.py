"""The folder of an audit without any audit: whose files lie there, and what is left of revealed ones."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from ltmia.auditing.folder import hold_for
from ltmia.auditing.question import JudgeConfig
from ltmia.auditing.text_sets import as_texts
from ltmia.cli.loading import pair_to_load
from ltmia.cli.options import Dtype
from ltmia.errors import ConfigError
from ltmia.evaluation.audit_folder import GROUPS_FILE, MARKED, RECORDS_FILE, REPORT_FILE, RESULTS_FILE, run_in
from ltmia.evaluation.files import forget_revealed, write_groups, write_records
from ltmia.ownership import Marker

MARKER = Marker(kind=MARKED["audit"], settings={"seed": 0})


def finish(folder: Path, *, text: Sequence[str] = ()) -> None:
    """Write files such as a run writes."""
    with run_in(folder, MARKER) as run:
        run.begin_scoring()
        write_records({"id": ["a"]} | ({"text": list(text)} if text else {}), folder, run.run_id)
        write_groups({"group": ["b"]}, folder, run.run_id)
        (folder / RESULTS_FILE).write_text(json.dumps({"run_id": run.run_id}), "utf-8")
        (folder / REPORT_FILE).write_text(f'<meta name="ltmia-run" content="{run.run_id}">', "utf-8")
        if not text:
            forget_revealed(run)


@pytest.mark.parametrize("name", [RESULTS_FILE, RECORDS_FILE, GROUPS_FILE, REPORT_FILE])
def test_a_users_own_file_under_a_name_of_ours_stays(tmp_path: Path, name: str) -> None:
    finish(tmp_path / "out")
    (tmp_path / "out" / name).write_text("my thesis", "utf-8")
    for overwrite in (False, True):
        with (
            pytest.raises(ConfigError, match=rf"{name}: ltmia did not write this"),
            run_in(tmp_path / "out", MARKER, overwrite=overwrite),
        ):
            pass
        assert (tmp_path / "out" / name).read_text("utf-8") == "my thesis"
        assert len([path for path in (tmp_path / "out").iterdir() if path.is_file()]) == 6, "nothing was moved"


def test_a_run_killed_before_its_results_does_not_cost_the_older_ones(tmp_path: Path) -> None:
    finish(tmp_path)
    names = (RESULTS_FILE, RECORDS_FILE, GROUPS_FILE, REPORT_FILE)
    old = {name: (tmp_path / name).read_bytes() for name in names}
    with run_in(tmp_path, MARKER) as run:  # killed between its records and its results
        write_records({"id": ["a"]}, tmp_path, run.run_id)
    with run_in(tmp_path, MARKER):
        assert not [name for name in names if (tmp_path / name).exists()]
    assert {name: (tmp_path / "private" / "previous" / name).read_bytes() for name in names} == old


def test_setting_aside_that_was_killed_is_completed(tmp_path: Path) -> None:
    finish(tmp_path)
    finish(tmp_path)
    names, previous = (RESULTS_FILE, RECORDS_FILE, GROUPS_FILE, REPORT_FILE), tmp_path / "private" / "previous"
    last = {name: (tmp_path / name).read_bytes() for name in names}
    for name in names:  # what is left of the run before is deleted first
        (previous / name).unlink()
    (tmp_path / RESULTS_FILE).rename(previous / RESULTS_FILE)
    with run_in(tmp_path, MARKER):
        pass
    assert {name: (previous / name).read_bytes() for name in names} == last


def test_a_run_that_reveals_nothing_leaves_nothing_that_was_revealed(tmp_path: Path) -> None:
    finish(tmp_path, text=["a secret"])
    finish(tmp_path)
    assert not list((tmp_path / "private" / "previous").iterdir())
    finish(tmp_path)
    assert len(list((tmp_path / "private" / "previous").iterdir())) == 4, "what reveals nothing is kept"


def test_a_dtype_that_is_named_is_a_setting_of_the_folder(tmp_path: Path) -> None:
    texts, options = (as_texts(["a"]), as_texts(["b"])), {"device": "cpu"}

    def begin(dtype: Dtype, *, overwrite: bool = False) -> None:
        config = JudgeConfig(overwrite=overwrite)
        with (
            pair_to_load("target", "base", dtype=dtype, **options) as pair,
            hold_for(tmp_path / "out", "audit", pair, texts, config) as run,
        ):
            run.begin_scoring()

    begin(Dtype.auto)
    with pytest.raises(ConfigError, match=r'other settings: dtype \(none there, "bfloat16" now\)'):
        begin(Dtype.bfloat16)
    begin(Dtype.bfloat16, overwrite=True)
    with pytest.raises(ConfigError, match="dtype"):
        begin(Dtype.auto)
