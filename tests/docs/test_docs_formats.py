"""docs/formats.md and docs/api.md against files that the commands wrote, and against the package."""

import json
import re
import shutil
from dataclasses import fields
from pathlib import Path

import pyarrow.parquet as pq

import ltmia
from ltmia.classifier.membership import shipped_classifier
from ltmia.data.recordings import IMPOSSIBLE, RecordedText, RecordingHeader
from ltmia.features.columns import LITE_TOP
from ltmia.features.packing import row_width
from ltmia.lab.evaluate import EVALUATION_FILE, FIGURE_FILE, TABLES_FILE
from ltmia.records import TokenStatistics

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "formats.md").read_text("utf-8")


def first_cells(heading: str, table: int = 0) -> list[tuple[str, str]]:
    """First two cells of a table below a heading, marks taken off."""
    section = re.split(r"\n##+ ", PAGE.split(f"# {heading}\n", 1)[1])[0]
    rows = re.findall(r"(?:^\|.+\n)+", section + "\n", re.M)[table].splitlines()[2:]
    return [(cells[1].strip(), cells[2].strip()) for cells in (row.split("|") for row in rows)]


def names(heading: str, table: int = 0) -> list[str]:
    return [name for first, _ in first_cells(heading, table) for name in re.findall(r"`([^`]+)`", first)]


def test_folder_of_an_audit(materials: Path) -> None:
    said = {name.rstrip("/") for name in names("The folder of an audit")}
    there = {str(path.relative_to(materials / "audit")) for path in (materials / "audit").rglob("*")}
    assert {name for name in there if not name.startswith(("private/store/", "private/gradients/"))} == said - {
        "private/multi_pass",
        "private/auxiliary",
        "private/previous",
        "private/spans.parquet",
        "private/ranks",
        "private/continuations",
        "spans.parquet",
    }


def test_records(materials: Path) -> None:
    schema = pq.read_table(materials / "audit" / "records.parquet").schema
    kinds = dict(first_cells("records.parquet"))
    found = {name: str(schema.field(name).type) for name in schema.names if not name.startswith("score_")}
    said = {name.strip("`"): kind for name, kind in kinds.items()}
    assert said.pop("text") == "string"
    assert said.pop("score_<attack>") == str(schema.field("score_loss").type)
    assert said == found


def test_groups(materials: Path) -> None:
    schema = pq.read_table(materials / "audit" / "groups.parquet").schema
    assert {name.strip("`"): kind for name, kind in first_cells("groups.parquet")} == {
        name: str(schema.field(name).type) for name in schema.names
    }


def test_tokens(materials: Path) -> None:
    schema = pq.read_table(materials / "audit" / "private" / "tokens.parquet").schema
    said = {name.strip("`"): kind for name, kind in first_cells("tokens.parquet")}
    assert said.pop("token") == "list<element: string>"
    assert said == {name: str(schema.field(name).type) for name in schema.names}


def test_store(materials: Path) -> None:
    store = materials / "audit" / "private" / "store"
    # The journal is gone once the store is whole, and nobody asked for what only `lite` reads.
    assert {path.name for path in store.iterdir()} == set(names("A store")) - {"journal.jsonl", "expected_lite.f16"}
    assert set(json.loads((store / "manifest.json").read_text("utf-8"))) == set(names("A store", 1))
    columns = pq.read_table(store / "texts.parquet").column_names
    expected = ["id", "truncated", "start", "n_tokens", "reason"]
    assert [name for name in columns if not name.startswith("score_")] == expected


def test_rows_of_tokens() -> None:
    rows = [(name.strip("`"), places) for name, places in first_cells("A store", 2)]
    assert [name for name, _ in rows] == [field.name for field in fields(TokenStatistics)]
    for k in (1, 20):
        assert sum(k if places == "k" else int(places) for _, places in rows) == row_width(k)


def test_classifier(tmp_path: Path) -> None:
    shipped_classifier().save_pretrained(tmp_path / "classifier")
    assert {path.name for path in (tmp_path / "classifier").iterdir()} == set(names("A classifier"))
    shutil.rmtree(tmp_path / "classifier")


def test_recording() -> None:
    assert names("A recording") == list(RecordingHeader.model_fields)
    assert names("A recording", 1) == list(RecordedText.model_fields)
    assert dict(first_cells("A recording"))["`format_version`"] == str(
        RecordingHeader.model_fields["format_version"].default
    )
    assert f"{IMPOSSIBLE:g} stands for it" in PAGE
    assert f"of the target at least {LITE_TOP}" in PAGE


def test_evaluation() -> None:
    assert {EVALUATION_FILE, TABLES_FILE, FIGURE_FILE} == set(names("The folder of an evaluation"))


def test_every_public_name_is_on_the_page_of_the_interface() -> None:
    page = (DOCS / "api.md").read_text("utf-8")
    for name in ltmia.__all__:
        home = ltmia._HOMES[name]
        assert f"::: {home}.{name}\n" in page or f"`ltmia.{name}`" in page, name
