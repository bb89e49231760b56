"""Print the schema of results.json: python scripts/results_schema.py > docs/results.schema.json."""

import json

from ltmia.evaluation.results import Results


def results_schema() -> str:
    """Return the schema as text."""
    return json.dumps(Results.model_json_schema(), indent=1)


if __name__ == "__main__":
    print(results_schema())
