"""What ltmia did not write is never deleted or changed, and what it wrote is replaced only when asked."""

import contextlib
import os
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disks import mounted
from ltmia.errors import ConfigError, LtmiaError, StoreError
from ltmia.folders import (
    claim_folder,
    make_folder,
    move_into_place,
    remove_files,
    remove_work_folder,
    work_folder,
    work_path,
    write_folder,
    write_whole,
)
from ltmia.ownership import MARKER_FILE, PART_ENDING, Marker, read_marker, refuse_inputs

ONE, TWO = (Marker(kind="a model", settings={"seed": seed, "texts": f"{seed}" * 64}) for seed in (1, 2))


def fill(*names: str):
    def write(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"ours: {name}")

    return write


def tree(folder: Path) -> dict[str, str]:
    """Say what every file and link of a folder holds."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file():
            found[name] = path.read_text()
    return found


def test_a_folder_that_is_not_ours_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "out" / ".git").mkdir(parents=True)
    (tmp_path / "out" / ".git" / "HEAD").write_text("ref")
    (tmp_path / "out" / "thesis.txt").write_text("years")
    before = tree(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"out: holds '\.git', and no \.ltmia\.json"):
            write_folder(tmp_path / "out", fill("model"), ONE, overwrite=overwrite)
        with (
            pytest.raises(ConfigError, match=r"holds '\.git'"),
            claim_folder(tmp_path / "out", ONE, overwrite=overwrite),
        ):
            pass
    assert tree(tmp_path) == before


def test_an_empty_folder_is_filled_and_the_same_settings_go_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_folder(out, fill("a", "sub/b"), ONE)
    write_folder(out, fill("a", "c"), ONE)
    assert set(tree(out)) == {"a", "c", MARKER_FILE}
    hashes = tuple(sorted(sha256(f"ours: {name}".encode()).hexdigest() for name in ("a", "c")))
    assert read_marker(out) == ONE.model_copy(update={"files": ("a", "c"), "sha256": hashes})
    assert not (out / "sub").exists()


def test_other_settings_are_named_and_need_a_word(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_folder(out, fill("a"), ONE)
    before = tree(out)
    with pytest.raises(ConfigError, match=r"other settings: seed \(1 there, 2 now\), texts\. .*`overwrite=True`"):
        write_folder(out, fill("a"), TWO)
    with pytest.raises(ConfigError, match=r"holds a model, not an audit"), claim_folder(out, Marker(kind="an audit")):
        pass
    assert tree(out) == before
    write_folder(out, fill("b"), TWO, overwrite=True)
    assert set(tree(out)) == {"b", MARKER_FILE}


def test_files_beside_ours_stay_and_are_not_written_over(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_folder(out, fill("a", "sub/b"), ONE)
    (out / "sub" / "notes.txt").write_text("mine")
    (out / "c").write_text("mine too")
    with pytest.raises(ConfigError, match=r"out/c: ltmia did not write this"):
        write_folder(out, fill("a", "c"), TWO, overwrite=True)
    assert set(tree(out)) == {"a", "sub/b", "sub/notes.txt", "c", MARKER_FILE}
    assert read_marker(out).settings == ONE.settings
    write_folder(out, fill("d"), TWO, overwrite=True)
    assert tree(out) == {
        "c": "mine too",
        "d": "ours: d",
        "sub/notes.txt": "mine",
        MARKER_FILE: (out / MARKER_FILE).read_text(),
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("change", ["edited", "a link"])
def test_a_file_of_ours_that_was_changed_is_not_replaced(tmp_path: Path, change: str) -> None:
    out, card = tmp_path / "out", tmp_path / "out" / "sub" / "README.md"
    write_folder(out, fill("a", "sub/README.md"), ONE)
    if change == "edited":
        card.write_text("ours: sub/README.md, and mine")
    else:
        (tmp_path / "README.md").write_text("ours: sub/README.md")
        card.unlink()
        card.symlink_to(tmp_path / "README.md")
    before = tree(tmp_path)
    for marker in (ONE, TWO):
        with pytest.raises(
            ConfigError, match=r"README\.md: was changed since ltmia wrote it\. Nothing was changed now"
        ):
            write_folder(out, fill("a"), marker, overwrite=True)
        with pytest.raises(ConfigError, match="was changed since"):  # by somebody while the new files were made
            move_into_place(tmp_path / "out" / "sub", out, marker)
        assert tree(tmp_path) == before
    card.rename(tmp_path / "mine")
    write_folder(out, fill("a"), TWO, overwrite=True)
    assert set(tree(out)) == {"a", MARKER_FILE}


def test_a_folder_of_an_older_version_has_no_hashes_and_is_still_ours(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_folder(out, fill("a"), ONE)
    (out / MARKER_FILE).write_text(ONE.model_copy(update={"files": ("a",)}).model_dump_json())
    write_folder(out, fill("b"), TWO, overwrite=True)
    assert set(tree(out)) == {"b", MARKER_FILE}


class Killed(BaseException):
    """The process is dead: from now on it changes no file."""


def kill_after(n_changes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a process change names of files so many times; later changes, also those of clean-up, do not happen."""
    left = iter(range(n_changes))

    def mortal(change):
        def changed(*given, **named):
            if next(left, None) is None:
                raise Killed
            return change(*given, **named)

        return changed

    for name in ("unlink", "rename", "replace", "rmdir"):
        monkeypatch.setattr(Path, name, mortal(getattr(Path, name)))
    monkeypatch.setattr("shutil.rmtree", mortal(shutil.rmtree))


def test_overwriting_that_is_killed_at_any_moment_is_completed_by_the_same_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_changes, alive = 0, False
    while not alive:
        out = tmp_path / str(n_changes) / "out"
        write_folder(out, fill("a", "old/b", "c"), ONE)
        (out / "old" / "notes").write_text("mine")
        alive = True
        with monkeypatch.context() as patched:
            kill_after(n_changes, patched)
            try:
                write_folder(out, fill("c", "new/d"), TWO, overwrite=True)
            except Killed:
                alive = False
        assert (out / "old" / "notes").read_text() == "mine"
        marker = read_marker(out)
        assert marker is not None
        if marker.settings == TWO.settings:  # what stands there is not taken for the old work
            with pytest.raises(ConfigError, match="other settings"):
                write_folder(out, fill("a", "old/b", "c"), ONE)
            write_folder(out, fill("c", "new/d"), TWO)
        else:  # nothing was replaced yet
            assert {name: tree(out).get(name) for name in ("a", "old/b", "c")} == {
                name: f"ours: {name}" for name in ("a", "old/b", "c")
            }
            write_folder(out, fill("c", "new/d"), TWO, overwrite=True)
        found = {name: held for name, held in tree(out).items() if not name.endswith(PART_ENDING)}
        assert found == {
            "c": "ours: c",
            "new/d": "ours: new/d",
            "old/notes": "mine",
            MARKER_FILE: (out / MARKER_FILE).read_text(),
        }
        n_changes += 1
    assert n_changes > 8, "every step was tried"


def test_a_marker_cannot_point_out_of_its_folder(tmp_path: Path) -> None:
    out, precious = tmp_path / "out", tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis").write_text("years")
    write_folder(out, fill("a"), ONE)
    (out / "link").symlink_to(precious)
    names = ("../precious/thesis", str(precious / "thesis"), "link/thesis", "link", "a")
    (out / MARKER_FILE).write_text(ONE.model_copy(update={"files": names}).model_dump_json())
    write_folder(out, fill("b"), ONE)
    remove_files(out, names)
    assert (precious / "thesis").read_text() == "years"


def test_notes_of_other_programs_are_not_taken_for_ours(tmp_path: Path) -> None:
    for name, content in ((".lock", "pid 7"), (".holder", "me"), (MARKER_FILE, "{}")):
        out = tmp_path / name
        out.mkdir()
        (out / name).write_text(content)
        with pytest.raises(ConfigError, match="ltmia made this folder"), claim_folder(out, ONE):
            pass
        assert (out / name).read_text() == content


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, message in (("file", "not to be used as a folder"), ("link", "a link that leads nowhere")):
        with pytest.raises(ConfigError, match=message):
            write_folder(tmp_path / name, fill("a"), ONE)
    assert (tmp_path / "file").read_text() == "mine"


def test_an_output_is_no_input_under_any_name(tmp_path: Path) -> None:
    base, texts = tmp_path / "base", tmp_path / "texts.jsonl"
    base.mkdir()
    texts.write_text("{}")
    (tmp_path / "soft").symlink_to(base)
    os.link(texts, tmp_path / "hard.jsonl")
    inputs = ["gpt2", base, str(texts), "x\0", ""]
    wrong = ("base", "soft", "base/inside/deep", "soft/new", "texts.jsonl", "hard.jsonl", "base/../base")
    for name in wrong:
        with pytest.raises(ConfigError, match=r"which is read here"):
            refuse_inputs(tmp_path / name, inputs)
    refuse_inputs(tmp_path / "other", inputs)
    refuse_inputs(Path("new"), ["", "memory"])
    refuse_inputs(tmp_path, inputs)  # an input may lie inside the output: nothing of it is touched


def test_a_link_in_place_of_a_folder_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="store: a link"):
        make_folder(tmp_path / "store")


def test_hidden_work_is_swept_only_where_it_is_ours(tmp_path: Path) -> None:
    out = tmp_path / "out"
    work_path(out).mkdir()
    (work_path(out) / "settings.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"\.out\.work: holds 'settings.json'"), work_folder(out, {"seed": 1}):
        pass
    remove_work_folder(out)
    assert tree(work_path(out)) == {"settings.json": "{}"}, "and no lock either"
    (work_path(out) / "settings.json").unlink()
    with work_folder(out, {"seed": 1}) as work:
        (work / "checkpoint").touch()
    with work_folder(out, {"seed": 1}) as work:
        assert (work / "checkpoint").exists()
    with work_folder(out, {"seed": 2}) as work:
        assert not (work / "checkpoint").exists()
    remove_work_folder(out)
    assert not work_path(out).exists()


@pytest.mark.parametrize("kind", ["a file", "a link to an empty folder", "a link to itself"])
def test_what_stands_in_place_of_hidden_work_stays(tmp_path: Path, kind: str) -> None:
    out, elsewhere = tmp_path / "out.jsonl", tmp_path / "elsewhere"
    elsewhere.mkdir()
    if kind == "a file":
        work_path(out).write_text("mine")
    else:
        work_path(out).symlink_to(elsewhere if kind.endswith("folder") else work_path(out).name)
    before = tree(tmp_path)
    with pytest.raises(LtmiaError, match=r"\.out\.jsonl\.work"), work_folder(out, {"seed": 1}):
        pass
    remove_work_folder(out)
    assert tree(tmp_path) == before


def test_a_full_disk_is_named_by_the_path(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=64k") as disk:
        with pytest.raises(StoreError, match=r"disk/file: cannot be written \(No space left on device\)"):
            write_whole(disk / "file", lambda part: part.write_bytes(bytes(10**6)))
        with pytest.raises(StoreError, match=r"disk/out: cannot be written \(No space left on device\)"):
            write_folder(disk / "out", lambda folder: (folder / "a").write_bytes(bytes(10**6)), ONE)


NAMES = st.lists(st.sampled_from(["a", "b", ".lock", ".holder", ".git", MARKER_FILE, "store"]), min_size=1, max_size=3)
TREES = st.dictionaries(NAMES.map("/".join), st.sampled_from(["", "7", "{}", "mine"]), min_size=1, max_size=5)


@given(files=TREES, ours=st.booleans(), overwrite=st.booleans())
@settings(deadline=None, max_examples=100)
def test_no_file_of_others_is_ever_lost(files, ours, overwrite, tmp_path_factory) -> None:
    out = tmp_path_factory.mktemp("t") / "out"
    if ours:
        write_folder(out, fill("a", "sub/b"), ONE)
    foreign = {}
    for name, content in files.items():
        path = out / name
        if not os.path.lexists(path) and all(p.is_dir() for p in path.parents if p.exists()):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
            foreign[name] = content
    for write in (
        lambda: write_folder(out, fill("b", "sub/c"), TWO, overwrite=overwrite),
        lambda: claim_folder(out, TWO, overwrite=overwrite).__enter__(),
        lambda: remove_files(out, ("x", "sub/b")),
    ):
        with contextlib.suppress(LtmiaError):
            write()
        kept = tree(out) if out.exists() else {}
        empty_notes = {name for name in (".lock", ".holder") if foreign.get(name) in ("", "7")}
        assert {name: kept.get(name) for name in foreign if name not in empty_notes} == {
            name: content for name, content in foreign.items() if name not in empty_notes
        }


def test_an_unfinished_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    for name in ("results.json.part", "model.safetensors.part", ".results.json.part", "results.json.tmp"):
        (tmp_path / name).write_text("mine")
    before = tree(tmp_path)
    write_whole(tmp_path / "results.json", lambda part: part.write_text("new"))
    write_whole(tmp_path / "model.safetensors", lambda part: part.write_text("new"))
    assert tree(tmp_path) == before | {"results.json": "new", "model.safetensors": "new"}


def test_a_write_that_fails_leaves_the_old_file_and_no_half_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")

    def fail(part: Path) -> None:
        part.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match="No space left"):
        write_whole(tmp_path / "file", fail)
    assert tree(tmp_path) == {"file": "old"}


def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "README.md").touch(mode=0o600)
    write_whole(tmp_path / "README.md", lambda part: part.write_text("new"))
    assert (tmp_path / "README.md").stat().st_mode & 0o777 == 0o600
