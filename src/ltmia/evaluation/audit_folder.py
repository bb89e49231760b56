"""The folder of an audit: files that may be handed on, and the folder `private` that may not.

Every finished set of files carries one random run id, so that files of two runs are not taken for one audit.
"""

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ltmia.errors import ConfigError, StoreError
from ltmia.folders import hold_folder, write_whole

RESULTS_FILE, RECORDS_FILE, GROUPS_FILE = "results.json", "records.parquet", "groups.parquet"
REPORT_FILE = "report.html"
SHAREABLE = (RESULTS_FILE, RECORDS_FILE, GROUPS_FILE, REPORT_FILE)
PRIVATE_FOLDER = "private"
TOKENS_FILE, SALT_FILE, RUN_FILE, README_FILE = "tokens.parquet", "salt", "run.json", "README.md"
STORE_FOLDER, MULTI_PASS_FOLDER, GRADIENTS_FOLDER, PREVIOUS_FOLDER = "store", "multi_pass", "gradients", "previous"
SALT_BYTES = 32
README = """# Private: do not hand on

Whoever has this folder and both models can read the audited texts out of it, word for word.

| name | holds |
|---|---|
| `store/` | what both models say of every token |
| `tokens.parquet` | the same in short, of the records that stand out |
| `multi_pass/` | scores of attacks with passes of their own |
| `gradients/` | gradients of each text at some coordinates of the weights |
| `salt` | what ids and hashes of groups are made with: it lets a guess at a text or a group be confirmed |
| `run.json` | the last run that began here, with a hash of its texts |
| `previous/` | the results that stood here before that run |

The files in the folder above do not need it. A later run goes on from it, so
keep it where the texts are kept. It may be deleted; the next run then starts from nothing, with other ids.
"""


@dataclass(frozen=True, slots=True)
class PrivateFolder:
    """What an audit keeps and nobody else may see."""

    path: Path

    @classmethod
    def of(cls, folder: Path) -> "PrivateFolder":
        """Return the private part of an audit's folder, made where it is missing, for the owner alone.

        Raises:
            ConfigError: If it, or something in it, is a link: what it leads to is not ours to read or write.
        """
        private = cls(folder / PRIVATE_FOLDER)
        if private.path.is_symlink() or private.path.is_file():
            kind = "link" if private.path.is_symlink() else "file"
            raise ConfigError(f"{private.path}: a {kind}; expected a folder: remove it, or use another folder")
        private.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        private.path.chmod(0o700)
        for path in private.path.iterdir():
            if path.is_symlink():
                raise ConfigError(f"{path}: a link; private files are not linked: remove it, or use another folder")
        write_whole(private.path / README_FILE, lambda part: part.write_text(README, "utf-8"))
        return private

    @property
    def store(self) -> Path:
        """What the models say of each token."""
        return self.path / STORE_FOLDER

    @property
    def multi_pass(self) -> Path:
        """Scores of attacks with passes of their own."""
        return self.path / MULTI_PASS_FOLDER

    @property
    def gradients(self) -> Path:
        """Gradients of each text, for what reads the weights."""
        return self.path / GRADIENTS_FOLDER

    def salt(self) -> bytes:
        """Return the random salt of this folder, made once: later runs give the same ids.

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
    """One run of an audit or a score in its folder, which this process holds."""

    folder: Path
    run_id: str
    begun: str
    private: PrivateFolder

    def note_texts(self, texts_sha256: str | None) -> None:
        """Write down that this run has begun, and the hash of its texts once they are known."""
        note = {"run_id": self.run_id, "begun": self.begun, "texts_sha256": texts_sha256}
        write_whole(self.private.path / RUN_FILE, lambda part: part.write_text(json.dumps(note), "utf-8"))


@contextmanager
def run_in(folder: Path) -> Iterator[Run]:
    """Hold a folder for a run that begins: results that stand there are set aside.

    Until its own are written the folder holds none: no verdict of an older audit is taken for the new one's.

    Raises:
        ConfigError: If another process holds the folder, it cannot be written, or its private part is a link or holds
            one.
    """
    with hold_folder(folder):
        private = PrivateFolder.of(folder)
        there = [name for name in SHAREABLE if (folder / name).exists() or (folder / name).is_symlink()]
        if there:
            previous = private.path / PREVIOUS_FOLDER
            previous.mkdir(exist_ok=True)
            for name in SHAREABLE:
                (previous / name).unlink(missing_ok=True)
            for name in there:
                (folder / name).replace(previous / name)
        begun = datetime.now(UTC).isoformat(timespec="seconds")
        run = Run(folder=folder, run_id=secrets.token_hex(8), begun=begun, private=private)
        run.note_texts(None)
        yield run


def set_results_aside(folder: Path) -> None:
    """Set aside what an older run left, before a command reads its input: if that fails, nobody judges the old results.

    Raises:
        ConfigError: See `run_in`.
    """
    if any((folder / name).exists() for name in SHAREABLE):
        with run_in(folder):
            pass


def last_run(folder: Path) -> dict[str, Any] | None:
    """Return `run_id`, `begun` and `texts_sha256` of the last run that began in a folder.

    None where the private folder is not there, or another account's: only what may be handed on was handed on.

    Raises:
        StoreError: If the file is damaged.
    """
    path = folder / PRIVATE_FOLDER / RUN_FILE
    try:
        note = json.loads(path.read_text("utf-8"))
        return {name: note[name] for name in ("run_id", "begun", "texts_sha256")}
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise StoreError(f"{path}: not readable ({error}); run the audit again") from error


def are_of_same_texts(first: Path, second: Path) -> bool | None:
    """Say whether the audits in two folders are of the same texts in one order; None where a private folder is missing.

    Raises:
        StoreError: If the note of a run is damaged.
    """
    hashes = [run["texts_sha256"] if run else None for run in map(last_run, (first, second))]
    return None if None in hashes else hashes[0] == hashes[1]


def why_no_results(folder: Path) -> str:
    """Say why a folder holds no results: another run began there, or it is no folder of an audit."""
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
