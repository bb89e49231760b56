"""The file of a recording, written from lines that no model made."""

from pathlib import Path

import pytest

from ltmia.data.recordings import RecordedText, RecordingHeader
from ltmia.errors import ConfigError
from ltmia.progress import silent
from ltmia.records import Texts
from ltmia.scoring.recording import RecordingWork, write_resumably

HEADER = RecordingHeader(model="m", vocab_size=50, n_top=3, recorded_by="a test", fingerprint="0" * 64)
TEXTS = Texts(texts=("one", "two"), ids=("a", "b"))


def record(out: Path, *, overwrite: bool = False) -> None:
    lines = [(row, RecordedText(id=name, tokens=[], reason="empty")) for row, name in enumerate(TEXTS.ids)]
    write_resumably(
        out,
        TEXTS,
        HEADER.fingerprint,
        lambda _: RecordingWork(header=HEADER, batches=(batch for batch in [lines])),
        overwrite=overwrite,
        report=silent,
    )


@pytest.mark.parametrize("change", ["edited", "cut", "emptied"])
def test_a_recording_that_was_changed_is_made_again_only_when_asked(tmp_path: Path, change: str) -> None:
    out = tmp_path / "r.jsonl"
    record(out)
    whole = out.read_text("utf-8")
    lines = whole.splitlines(keepends=True)
    changed = {"edited": whole.replace('"b"', '"c"'), "cut": whole[:-5], "emptied": lines[0]}[change]
    out.write_text(changed, "utf-8")
    with pytest.raises(ConfigError, match=r"r\.jsonl.* Nothing was changed\. Make it again with `overwrite=True`"):
        record(out)
    assert out.read_text("utf-8") == changed
    record(out, overwrite=True)
    assert out.read_text("utf-8") == whole
    record(out)
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]
