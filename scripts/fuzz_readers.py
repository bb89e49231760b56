"""Everything that reads a file, as functions of one case (bytes), for a fuzzer.

Readers of JSON, Parquet and safetensors also get valid files with one place changed, because random bytes are hardly
ever such a file. Used by `fuzz.py` and by the suite.
"""

import contextlib
import copy
import gzip
import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ltmia.classifier.membership import CONFIG_FILE, WEIGHTS_FILE, MembershipClassifier
from ltmia.data.reading import read_texts
from ltmia.data.recordings import Recording
from ltmia.data.rows import stream_rows
from ltmia.errors import LtmiaError
from ltmia.evaluation.audit_folder import PRIVATE_FOLDER, RECORDS_FILE, RESULTS_FILE, TOKENS_FILE
from ltmia.evaluation.files import RUN_KEY, read_records, read_results
from ltmia.evaluation.gate import hold_against
from ltmia.evaluation.limits import Limit, read_policy
from ltmia.evaluation.results import Results
from ltmia.evaluation.token_bands import USUAL
from ltmia.features.journal import StoredText
from ltmia.features.manifest import FORMAT_VERSION, file_sha256, write_manifest
from ltmia.features.packing import EXPECTED_WIDTH, row_width
from ltmia.features.rows import EXPECTED_FILES
from ltmia.features.statistics import empty_statistics, named_statistics
from ltmia.features.store import FeatureStore, StoreWriter
from ltmia.lab.reading import read_recipe
from ltmia.report.page import write_report

ROOT = Path(__file__).parent.parent
RUN_ID = "0" * 16
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, -(2**63), 10**400, 0.5, 1e308, float("nan"), float("inf"), "", "x",
    "../../etc/passwd", "\u202e\x00</script>", "9" * 5000, [], [[]], {}, {"a": {}}, "0..1", "1e999",
)  # fmt: skip
"""What a value is replaced by."""
K, VOCAB_SIZE, N_TOKENS = 2, 9, 3


def places(tree: Any) -> list[tuple[Any, Any]]:
    """List (container, key) of every value in a tree of dicts and lists."""
    pairs = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else []
    found = []
    for key, value in pairs:
        found.append((tree, key))
        found += places(value)
    return found


def changed_tree(tree: Any, case: bytes) -> Any:
    """Replace, remove or add one value of a tree for each two bytes of the case."""
    tree = json.loads(json.dumps(tree))
    for place, what in zip(case[::2], case[1::2], strict=False):
        found = places(tree)
        if not found:
            return tree
        container, key = found[place % len(found)]
        if what == 255:
            del container[key]
        elif what == 254 and isinstance(container, dict):
            container[f"{key}x"] = copy.deepcopy(container[key])
        else:
            container[key] = copy.deepcopy(ODD[what % len(ODD)])
    return tree


def changed_table(table: pa.Table, case: bytes) -> bytes:
    """Replace or remove a column for each two bytes of the case; return a Parquet file."""
    for place, what in zip(case[::2], case[1::2], strict=False):
        n = table.num_rows
        if not table.num_columns:
            break
        index = place % table.num_columns
        odd = [
            pa.nulls(n), pa.array([2**62] * n), pa.array([-1] * n), pa.array([np.nan] * n), pa.array(["x"] * n),
            pa.array([[1]] * n), pa.array([{"a": 1}] * n), pa.array([b"\xff"] * n), pa.array([1e300] * n),
        ]  # fmt: skip
        name = table.column_names[index]
        if what == 255:
            table = table.remove_column(index)
        elif what == 254:
            table = table.append_column(name, table.column(index))
        else:
            table = table.set_column(index, name, odd[what % len(odd)])
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def json_case(tree: Any, case: bytes) -> bytes:
    """Return the case as it stands, or (first byte even) a valid file changed by it."""
    return case[1:] if case and case[0] % 2 else json.dumps(changed_tree(tree, case[1:])).encode()


def table_case(table: pa.Table, case: bytes) -> bytes:
    """Do the same for Parquet; by thirds, the case also overwrites bytes of a valid file."""
    kind = case[0] % 3 if case else 0
    if kind == 0:
        return changed_table(table, case[1:])
    if kind == 1:
        return case[1:]
    return overwritten(changed_table(table, b""), case[1:])


def overwritten(whole: bytes, case: bytes) -> bytes:
    """Overwrite one byte of a file for each three bytes of the case."""
    content = bytearray(whole)
    for high, low, value in zip(case[::3], case[1::3], case[2::3], strict=False):
        content[(256 * high + low) % len(content)] = value
    return bytes(content)


def read_lines(folder: Path, case: bytes, ending: str) -> None:
    """Read a text file."""
    path = folder / f"texts{ending}"
    path.write_bytes(gzip.compress(case[1:], 1) if case[:1] == b"z" and ending.endswith("gz") else case)
    read_texts(path)


def read_conversations(folder: Path, case: bytes) -> None:
    """Read prompts with completions, and messages, of which some values have been changed, or any bytes."""
    asked, answered = ([{"role": role, "content": "a"}] for role in ("user", "assistant"))
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": asked, "completion": answered}, {"messages": asked}]
    changed = changed_tree(rows, case[1:])
    lines = "".join(json.dumps(row) + "\n" for row in changed) if isinstance(changed, list) else "null"
    path = folder / "conversations.jsonl"
    path.write_bytes(case[1:] if case and case[0] % 2 else lines.encode())
    texts = read_texts(
        path, chat=lambda messages, ask, _: "".join(m["role"] + m["content"] for m in messages) + ">" * ask
    )
    assert texts.starts is None or all(0 <= s <= len(t) for s, t in zip(texts.starts, texts.texts, strict=True))


def read_table(folder: Path, case: bytes) -> None:
    """Read texts, ids and groups from a Parquet file."""
    table = pa.table({"text": ["a", "b", None], "id": ["1", "2", "3"], "patient": [1, 2, 3]})
    path = folder / "texts.parquet"
    path.write_bytes(table_case(table, case))
    read_texts(path, group_column="patient")


def read_stream(_folder: Path, case: bytes) -> None:
    """Read standard input."""
    list(stream_rows(io.BytesIO(case), "standard input"))


def read_recording(folder: Path, case: bytes) -> None:
    """Read a recording of which one value has been changed, or any bytes."""
    head = {"format_version": 1, "model": "m", "vocab_size": 9, "n_top": 2, "recorded_by": "hand"}
    line = {"id": "a", "tokens": [1, 2, 3], "logp": [-1.5, None], "rank": [3, 1], "top": [[-0.5, -1], None]}
    line |= {"text_sha256": "0" * 64}
    prompted = line | {"id": "c", "tokens": [4, 1, 2, 3], "start": 2}
    changed = changed_tree([head, line, {"id": "b", "tokens": [], "reason": "why"}, prompted], case[1:])
    lines = "".join(json.dumps(part) + "\n" for part in changed) if isinstance(changed, list) else "null"
    path = folder / "recording.jsonl"
    path.write_bytes(case[1:] if case and case[0] % 2 else lines.encode())
    recording = Recording(path)
    for text in recording:
        text.statistics(recording.header.n_top)


def read_toml_recipe(folder: Path, case: bytes) -> None:
    """Read a recipe."""
    (folder / "recipe.toml").write_bytes(case)
    read_recipe(folder / "recipe.toml")


def read_toml_policy(folder: Path, case: bytes) -> None:
    """Read a policy, and hold an audit against it."""
    (folder / "policy.toml").write_bytes(case)
    policy = read_policy(folder / "policy.toml")
    if policy.limits:
        verdict = hold_against(Results.model_validate(valid_results()), policy.limits, policy.inconclusive)
        verdict.junit()


def read_limit(_folder: Path, case: bytes) -> None:
    """Read a limit as written on the command line, and hold an audit against it."""
    hold_against(Results.model_validate(valid_results()), [Limit.parse(case.decode("utf-8", "replace"))])


def read_audit(folder: Path, case: bytes) -> None:
    """Read results.json."""
    (folder / RESULTS_FILE).write_bytes(json_case(valid_results(), case))
    read_results(folder)


def read_audit_records(folder: Path, case: bytes) -> None:
    """Read records.parquet."""
    (folder / RECORDS_FILE).write_bytes(table_case(valid_records(), case))
    read_records(folder)


def render(folder: Path, case: bytes) -> None:
    """Draw the report of an audit of which one file has been changed."""
    changed, case = case[0] % 3 if case else 0, case[1:]
    results = json.dumps(changed_tree(valid_results(), case if changed == 0 else b""))
    (folder / RESULTS_FILE).write_text(results, "utf-8")
    (folder / RECORDS_FILE).write_bytes(changed_table(valid_records(), case if changed == 1 else b""))
    (folder / PRIVATE_FOLDER).mkdir(exist_ok=True)
    (folder / PRIVATE_FOLDER / TOKENS_FILE).write_bytes(changed_table(valid_tokens(), case if changed == 2 else b""))
    write_report(folder)


def read_manifest(folder: Path, case: bytes) -> None:
    """Open a store with a damaged manifest, and read all of it."""
    open_store(folder, json_case(valid_manifest(), case), changed_table(valid_texts(), b""))


def read_store_texts(folder: Path, case: bytes) -> None:
    """Open a store with a damaged table of texts, and read all of it."""
    open_store(folder, json.dumps(valid_manifest()).encode(), table_case(valid_texts(), case))


def open_store(folder: Path, manifest: bytes, texts: bytes) -> None:
    """Write a store and read all of it."""
    (folder / "manifest.json").write_bytes(manifest)
    (folder / "texts.parquet").write_bytes(texts)
    (folder / "tokens.f16").write_bytes(bytes(2 * N_TOKENS * row_width(K)))
    for file in EXPECTED_FILES.values():
        (folder / file).write_bytes(bytes(2 * N_TOKENS * EXPECTED_WIDTH))
    seal(folder)
    store = FeatureStore(folder)
    for name in store.score_names:
        store.scores(name)
    store.gather(np.arange(len(store)), "logratio")
    _ = store.manifest["fingerprint"], store.texts["n_tokens"].to_numpy(), store.texts["reason"].to_pylist()


def seal(folder: Path) -> None:
    """Correct the hashes if the manifest has any, so that the reader goes on to read the files."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        names = ("tokens.f16", "texts.parquet", *EXPECTED_FILES.values())
        if isinstance(manifest, dict):
            hashes = {name: file_sha256(folder / name) for name in names}
            write_manifest(folder, manifest | {"files": manifest.get("files") and hashes})
    except (ValueError, RecursionError):
        return


def go_on_with_store(folder: Path, case: bytes) -> None:
    """Resume a store whose journal is damaged, as after a crash."""
    rows, journal = folder / "tokens.f16", folder / "journal.jsonl"
    for path in (rows, journal):
        path.unlink(missing_ok=True)
    writer = StoreWriter(folder, fingerprint="f", k=K, vocab_size=VOCAB_SIZE)
    nothing = named_statistics(tuple(np.zeros_like(column) for column in empty_statistics(2, K)))
    writer.append(nothing, [StoredText(row=0, n_tokens=2, scores={"loss": 0.5})])
    writer.close()
    entries = [json.loads(line) for line in journal.read_bytes().splitlines()]
    changed = changed_tree(entries, case[1:]) if case[:1] and case[0] % 2 == 0 else None
    lines = "".join(json.dumps(entry) + "\n" for entry in changed).encode() if isinstance(changed, list) else case[1:]
    journal.write_bytes(lines)
    writer = StoreWriter(folder, fingerprint="f", k=K, vocab_size=VOCAB_SIZE)
    assert all(isinstance(row, int) for row in writer.done)
    writer.close()


def read_classifier_config(folder: Path, case: bytes) -> None:
    """Load a classifier with a damaged config."""
    config, weights = shipped_files()
    (folder / CONFIG_FILE).write_bytes(json_case(json.loads(config), case))
    if not (folder / WEIGHTS_FILE).exists():
        (folder / WEIGHTS_FILE).write_bytes(weights)
    MembershipClassifier.from_pretrained(folder)


def read_classifier_weights(folder: Path, case: bytes) -> None:
    """Load a classifier with damaged weights."""
    config, weights = shipped_files()
    (folder / CONFIG_FILE).write_bytes(config)
    (folder / WEIGHTS_FILE).write_bytes(overwritten(weights, case[1:]) if case[:1] < b"\x80" else case[1:])
    MembershipClassifier.from_pretrained(folder)


@cache
def shipped_files() -> tuple[bytes, bytes]:
    """Return config and weights of the shipped classifier."""
    folder = ROOT / "src" / "ltmia" / "classifier" / "weights" / "full"
    return (folder / CONFIG_FILE).read_bytes(), (folder / WEIGHTS_FILE).read_bytes()


def valid_manifest() -> dict[str, Any]:
    """Return the manifest of a small store."""
    head = {"format_version": FORMAT_VERSION, "fingerprint": "f", "k": K, "vocab_size": VOCAB_SIZE}
    return head | {
        "n_texts": 2,
        "n_tokens": N_TOKENS,
        "expectations": ["full", "lite"],
        "created": "2026-01-01T00:00:00+00:00",
        "files": {"all": "hashed when it is written"},
        "recipe": {"seed": 0},
    }


def valid_texts() -> pa.Table:
    """Return the table of texts of a small store."""
    columns = {"id": ["a", "b"], "label": [1, 0], "start": [0, 1], "n_tokens": [1, 2], "reason": [None, None]}
    columns["score_loss"] = [0.5, -0.5]
    return pa.table(columns).cast(pa.schema({n: _type(n) for n in columns}))


def _type(name: str) -> pa.DataType:
    return pa.string() if name in ("id", "reason") else pa.float64() if name == "score_loss" else pa.int64()


def valid_records() -> pa.Table:
    """Return the records of a small audit."""
    floats = {name: [0.5, -0.5] for name in ("score_loss", "p_value", "q_value")}
    named = {"id": ["a", "b"], "label": [1, 0], "group": ["g", None], "n_tokens": [3, 3]}
    named |= {name: [5, None] for name in USUAL} | {"strongest_third": ["first", None], "flagged": [True, False]}
    table = pa.table(named | floats | {"reason": pa.array([None, "why"], pa.string())})
    return table.replace_schema_metadata({RUN_KEY: RUN_ID})


def valid_tokens() -> pa.Table:
    """Return the tokens of its first record."""
    lists = {name: [[0.5, -0.5]] for name in ("difference", "attribution")}
    return pa.table({"row": [0]} | lists | {"token": [["a", "b"]]}).replace_schema_metadata({RUN_KEY: RUN_ID})


@cache
def valid_results() -> dict[str, Any]:
    """Return the results of a small audit."""
    model = {"source": "m", "sha256": "0", "architecture": "gpt2", "n_parameters": 1, "dtype": "float32"}
    figure = {"value": 0.5, "low": 0.4, "high": 0.6}
    attack = {"auc": figure, "tpr_at_fpr": {"0.1": figure, "0.01": figure}}
    check = {"status": "ok", "sentence": "well", "measure": figure, "details": {"n": 1}}
    checks = ("blind", "near_duplicates", "length_only", "out_of_distribution", "backend", "power")
    tree = {
        "run_id": RUN_ID, "ltmia_version": "0", "kind": "audit",
        "created": "2026-01-01T00:00:00Z", "command": "ltmia", "verdict": "none",
        "settings": {"seed": 0, "reveal": True}, "environment": {"python": "3"}, "target": model, "reference": model,
        "tokenizer": {"sha256": "0", "vocab_size": 9}, "data": {"n_members": 1, "n_nonmembers": 1},
        "attacks": {"loss": attack}, "set_test": {"p_value": 0.5, "effect": figure},
        "decisions": dict.fromkeys(("fdr", "smallest_p"), 0.05)
        | {"attack": "loss", "n_flagged": 0, "n_judged": 1, "n_calibration": 1},
        "validity": dict.fromkeys(checks, check),
        "timing": dict.fromkeys(("seconds", "texts_per_second", "forward_seconds", "feature_seconds"), 1.0),
    }  # fmt: skip
    return json.loads(Results.model_validate(tree).model_dump_json())


READERS: dict[str, Callable[[Path, bytes], None]] = {
    "jsonl": lambda folder, case: read_lines(folder, case, ".jsonl"),
    "jsonl_gz": lambda folder, case: read_lines(folder, case, ".jsonl.gz"),
    "csv": lambda folder, case: read_lines(folder, case, ".csv"),
    "txt": lambda folder, case: read_lines(folder, case, ".txt"),
    "conversations": read_conversations,
    "parquet": read_table,
    "stdin": read_stream,
    "recording": read_recording,
    "recipe": read_toml_recipe,
    "policy": read_toml_policy,
    "limit": read_limit,
    "results": read_audit,
    "records": read_audit_records,
    "report": render,
    "manifest": read_manifest,
    "store_texts": read_store_texts,
    "journal": go_on_with_store,
    "classifier_config": read_classifier_config,
    "classifier_weights": read_classifier_weights,
}
SEEDS: dict[str, tuple[bytes, ...]] = {
    "jsonl": (b'{"id": "a", "text": "b"}\n\n{"text": null}\n',),
    "jsonl_gz": (b'z{"text": "b"}\n', gzip.compress(b'{"text": "b"}\n')),
    "csv": (b'id,text\n1,"a, ""b"""\n', b"text\r\nx\r\n"),
    "stdin": (b'\n{"text": "b"}\n', b"one\ntwo\n"),
    "recipe": tuple(path.read_bytes() for path in sorted((ROOT / "recipes").glob("*.toml"))),
    "policy": (b'inconclusive = "fail"\n[max]\nauc = 0.6\n"tpr@fpr=0.1" = 1\n"loss.auc" = 1\n',),
    "limit": (b"auc:0.6", b"loss.tpr@fpr=0.1:0.05", b"identifiable:3", b"epsilon:1"),
}
"""Where the search begins; other readers begin with nothing changed."""


def feed(reader: str, folder: Path, case: bytes) -> bool:
    """Give one case to a reader; say whether it was taken.

    Anything but our own errors goes through.
    """
    with contextlib.suppress(LtmiaError):
        READERS[reader](folder, case)
        return True
    return False
