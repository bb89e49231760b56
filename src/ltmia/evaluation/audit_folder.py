"""The folder of an audit: files that may be passed on, and the folder `private`, which may not.

All files of a run carry its random id, so that files of two runs are not taken for one audit.
"""

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ltmia.errors import ConfigError, StoreError
from ltmia.folders import claim_folder, make_folder, mark_folder, named_errors, write_whole
from ltmia.ownership import Marker, differing, read_marker, refuse_stranger

MARKED = {"audit": "an audit", "score": "a score of candidates"}
"""Kind written into the folder's marker, by kind of results."""
RESULTS_FILE, RECORDS_FILE, GROUPS_FILE = "results.json", "records.parquet", "groups.parquet"
SPANS_FILE, REPORT_FILE = "spans.parquet", "report.html"
SHAREABLE = (RESULTS_FILE, RECORDS_FILE, GROUPS_FILE, SPANS_FILE, REPORT_FILE)
SIGNS = {
    RESULTS_FILE: '"run_id"', RECORDS_FILE: "ltmia_run", GROUPS_FILE: "ltmia_run", SPANS_FILE: "ltmia_run",
    REPORT_FILE: 'name="ltmia-run"',
}  # fmt: skip
"""Text that each of these files contains if a run wrote it."""
PRIVATE_FOLDER = "private"
TOKENS_FILE, SALT_FILE, RUN_FILE, README_FILE = "tokens.parquet", "salt", "run.json", "README.md"
RANKS_FILE, CONTINUATIONS_FILE = "ranks", "continuations"
STORE_FOLDER, REJECTED_FOLDER, MULTI_PASS_FOLDER, GRADIENTS_FOLDER, AUXILIARY_FOLDER, PREVIOUS_FOLDER = (
    "store", "rejected", "multi_pass", "gradients", "auxiliary", "previous",
)  # fmt: skip
SALT_BYTES = 32
README = """# Private: do not pass on

Anyone who has this folder and both models can reconstruct the audited texts word for word.

| name | holds |
|---|---|
| `store/` | statistics of every token under both models |
| `tokens.parquet` | two numbers per token, for the records with the highest scores |
| `spans.parquet` | exact figures on each secret |
| `ranks` | ranks of secrets, written as soon as they are known |
| `rejected/` | statistics of every token of the rejected completions of preference pairs |
| `continuations` | token ids of what both models wrote after the beginnings of texts |
| `multi_pass/` | scores of attacks that take several passes |
| `gradients/` | gradients of each text at some coordinates of the weights |
| `salt` | random bytes in ids and hashes of groups; with them, a guess at a text or a group can be confirmed |
| `run.json` | the last run that began here, and hashes of its texts |
| `trained.jsonl` | token ids that a Trainer trained on |
| `model/` | the model when its audit began; removed when the audit is done |
| `checkpoints/` | states of a model in training; removed when the last audit is done |
| `auxiliary/` | model that was fine-tuned on synthetic texts |
| `previous/` | the results of the run before |

The files in the folder above do not need it. A later run resumes from it, so
keep it where the texts are kept. It may be deleted; the next run then starts from nothing, with other ids.
"""


@dataclass(frozen=True, slots=True)
class PrivateFolder:
    """The private part of an audit's folder."""

    path: Path

    @classmethod
    def of(cls, folder: Path) -> "PrivateFolder":
        """Return the private part of an audit's folder; made if it is missing, readable by its owner only.

        Raises:
            ConfigError: If it, or something in it, is a link.
            StoreError: If there is no room, or no right to write.
        """
        private = cls(folder / PRIVATE_FOLDER)
        if private.path.is_symlink() or private.path.is_file():
            kind = "link" if private.path.is_symlink() else "file"
            raise ConfigError(f"{private.path}: a {kind}; expected a folder: remove it, or use another folder")
        with named_errors(private.path):
            private.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            private.path.chmod(0o700)
        _refuse_links(private.path.rglob("*"))
        write_whole(private.path / README_FILE, lambda part: part.write_text(README, "utf-8"))
        return private

    @property
    def store(self) -> Path:
        """Folder of the statistics of each token."""
        return self.path / STORE_FOLDER

    @property
    def rejected(self) -> Path:
        """Folder of the statistics of each token of the rejected texts of preference pairs."""
        return self.path / REJECTED_FOLDER

    @property
    def multi_pass(self) -> Path:
        """Folder of the scores of attacks that take several passes."""
        return self.path / MULTI_PASS_FOLDER

    @property
    def gradients(self) -> Path:
        """Folder of the gradients of each text."""
        return self.path / GRADIENTS_FOLDER

    @property
    def ranks(self) -> Path:
        """File of the ranks of secrets, from which a run that was killed goes on."""
        return self.path / RANKS_FILE

    @property
    def continuations(self) -> Path:
        """File of the continuations of texts, from which a run that was killed goes on."""
        return self.path / CONTINUATIONS_FILE

    def salt(self) -> bytes:
        """Return the random salt of this folder; it is made once, so that later runs give the same ids.

        Raises:
            StoreError: If the file does not hold one.
        """
        path = self.path / SALT_FILE
        if not path.exists():
            write_whole(path, lambda part: part.write_text(secrets.token_hex(SALT_BYTES), "utf-8"))
        try:
            salt = bytes.fromhex(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: not readable ({error}); delete it, and the ids will be new ones") from error
        if len(salt) != SALT_BYTES:
            raise StoreError(
                f"{path}: {len(salt)} bytes; expected {SALT_BYTES}: delete it, and the ids will be new ones"
            )
        return salt


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of an audit or a score, in a folder that this process has locked."""

    folder: Path
    run_id: str
    begun: str
    private: PrivateFolder
    marker: Marker
    """What the folder will hold."""
    hashes: Mapping[str, str]
    """Hashes of the texts, of their ids, of their groups, and of the file of spans if there is one."""

    def begin_scoring(self) -> None:
        """Note the settings and texts of the folder, because it will now hold work worth keeping."""
        mark_folder(self.folder, self.marker)
        self.note(self.hashes)

    def note(self, hashes: Mapping[str, str]) -> None:
        """Note this run as the last one, and the hashes of what the folder's results are about."""
        note = {"run_id": self.run_id, "begun": self.begun, "sha256": dict(hashes)}
        write_whole(self.private.path / RUN_FILE, lambda part: part.write_text(json.dumps(note), "utf-8"))


@contextmanager
def run_in(
    folder: Path, marker: Marker, hashes: Mapping[str, str] | None = None, *, overwrite: bool = False
) -> Iterator[Run]:
    """Lock a folder for a run, and set older results aside.

    The folder holds no results until the run writes its own, so that nobody takes an older verdict for the new one.

    Args:
        folder: Missing, empty, or one that ltmia made for results of this kind.
        marker: Kind and settings of the run.
        hashes: Hashes of its texts, their ids, their groups and the file of spans; None takes the folder of an audit of
            any texts.
        overwrite: Take a folder with any settings and texts.

    Raises:
        ConfigError: If the folder is not ours, holds results with other settings or texts, is locked by another
            process, or has a link or somebody else's file in place of a file of ours.
        StoreError: If there is no room, or no right to write.
    """
    with claim_folder(folder, marker, overwrite=overwrite):
        earlier = None if overwrite else last_run(folder)
        known: Mapping[str, str] = {} if earlier is None else earlier["sha256"]
        if known and hashes and (other := differing(known, hashes)):
            raise ConfigError(
                f"{folder}: holds {marker.kind} of other {', '.join(other)}. Nothing was changed. Choose "
                "another folder, or replace what is there with `overwrite=True`."
            )
        _refuse_links(folder / name for name in SHAREABLE)
        for name, sign in SIGNS.items():
            refuse_stranger(folder / name, sign)
        private = PrivateFolder.of(folder)
        run = Run(
            folder=folder,
            run_id=secrets.token_hex(8),
            begun=datetime.now(UTC).isoformat(timespec="seconds"),
            private=private,
            marker=marker,
            hashes=hashes or {},
        )
        _move_results(folder, private.path / PREVIOUS_FOLDER)
        run.note(known)
        yield run


def _move_results(folder: Path, previous: Path) -> None:
    """Set the files of the last run aside, its results first.

    Without results they are of a run that was killed while it wrote, or while it set files aside. What was set aside
    before then stays: it may be the only verdict.
    """
    there = [name for name in SHAREABLE if (folder / name).exists()]
    if not there:
        return
    make_folder(previous)
    with named_errors(previous):
        if RESULTS_FILE in there:
            for name in SHAREABLE:
                (previous / name).unlink(missing_ok=True)
        for name in there:
            if (previous / name).exists():
                (folder / name).unlink()
            else:
                (folder / name).replace(previous / name)


def _refuse_links(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_symlink():
            raise ConfigError(f"{path}: a link, which ltmia did not make: remove it, or use another folder")


@contextmanager
def set_aside_on_failure(folder: Path) -> Iterator[None]:
    """Set older results in a folder of ours aside if the input of a new run cannot be read.

    Raises:
        ConfigError: If another process is at work there.
    """
    try:
        yield
    except BaseException:
        found = read_marker(folder)
        if found is not None and found.kind in MARKED.values():
            with run_in(folder, found):
                pass
        raise


def last_run(folder: Path) -> dict[str, Any] | None:
    """Return `run_id`, `begun` and `sha256` (hashes of texts, ids and groups) of the last run that began in a folder.

    None if the private folder is missing or belongs to another account, as after passing on the public files.

    Raises:
        StoreError: If the file is damaged.
    """
    path = folder / PRIVATE_FOLDER / RUN_FILE
    try:
        note = json.loads(path.read_text("utf-8"))
        return {"run_id": note["run_id"], "begun": note["begun"], "sha256": dict(note["sha256"])}
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise StoreError(f"{path}: not readable ({error}); run the audit again with `overwrite=True`") from error


def are_of_same_texts(first: Path, second: Path) -> bool | None:
    """Say whether the audits in two folders have the same texts in the same order; None if a private folder is missing.

    Raises:
        StoreError: If the note of a run is damaged.
    """
    hashes = [run["sha256"].get("texts") if run else None for run in map(last_run, (first, second))]
    return None if None in hashes else hashes[0] == hashes[1]


def why_no_results(folder: Path) -> str:
    """Say why a folder holds no results: a run did not finish, or it is not the folder of an audit."""
    run = last_run(folder)
    if run is None:
        return "expected the folder of an audit or a score"
    return (
        f"no finished audit here; one was begun at {run['begun']} and did not finish: run it again. Older results, if "
        f"there were any, are in {folder / PRIVATE_FOLDER / PREVIOUS_FOLDER}"
    )


def refuse_other_run(path: Path, run_id: object, expected: str) -> None:
    """Refuse a file that another run wrote.

    Raises:
        StoreError: Naming the file and both runs.
    """
    if run_id != expected:
        said = "of no run" if run_id is None else f"of run {str(run_id)[:40]!r}"
        raise StoreError(
            f"{path}: {said}, but {RESULTS_FILE} beside it is of run {expected!r}: files of two audits are mixed; "
            "put the files of one run together, or run the audit again"
        )
