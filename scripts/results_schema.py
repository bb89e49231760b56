"""Write docs/results.schema.json, the schema of results.json: python scripts/results_schema.py."""

import json
from pathlib import Path

from ltmia.evaluation.results import Results

SCHEMA = Path(__file__).parent.parent / "docs" / "results.schema.json"


def results_schema() -> str:
    """Return the schema as text."""
    return json.dumps(Results.model_json_schema(), indent=1) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(results_schema(), "utf-8")
