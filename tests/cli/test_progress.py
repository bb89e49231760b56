"""Progress of the command line."""

import re

from ltmia.cli.progress import progress


def test_lines_tell_the_time_left_of_each_run_of_a_task(monkeypatch, capsys) -> None:
    now = 0.0
    monkeypatch.setattr("ltmia.cli.progress.time.monotonic", lambda: now)
    with progress(quiet=False) as report:
        for start in (100.0, 1000.0):  # as many seconds a step in both
            for done in range(4):
                now = start + 20 * done
                report("reading", done, 3)
    left = re.findall(r"reading: (\d)/3(?:, about (\d+) s left)?$", capsys.readouterr().err, re.MULTILINE)
    assert left == 2 * [("0", ""), ("1", "40"), ("2", "20"), ("3", "")]
