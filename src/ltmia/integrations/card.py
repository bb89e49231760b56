"""Writes an audit into a model card: a section of text, and metrics in the `model-index` of its front matter.

Everything else in the file stays the same, byte for byte.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.repocard_data import eval_results_to_model_index

from ltmia.errors import ConfigError, DataError
from ltmia.evaluation.files import read_verdict
from ltmia.evaluation.results import Results
from ltmia.evaluation.shown import markdown
from ltmia.evaluation.wording import figure as written
from ltmia.folders import write_whole
from ltmia.integrations.figures import figures
from ltmia.report.words import (
    CONTROL,
    FPR_NAMES,
    LIGHTS,
    attack_order,
    headline,
    named_checks,
    not_shown,
    observer_lines,
)

BEGIN, END = "<!-- ltmia audit: begin -->", "<!-- ltmia audit: end -->"
"""Lines before and after the section."""
DATASET_TYPE = "ltmia-audit"
"""Marks our results in a `model-index`."""
KEY = "model-index"
BOM = "\ufeff"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a card; joined, they are the card."""

    opening: str
    """The first line of the front matter; empty if there is none."""
    front: str
    """YAML between its two lines."""
    closing: str
    text: str
    newline: str


def write_card(folder: Path, card: Path) -> None:
    """Write the audit of a folder into a model card, which is made if it is missing.

    Args:
        folder: Folder of an audit or a score.
        card: The README.md of the model.

    Raises:
        StoreError: If the folder holds no audit.
        ConfigError: If the card is a link.
        DataError: If the card cannot be read, or is not a model card; it is not changed.
    """
    results = read_verdict(folder)
    content = with_audit(_read(card), results, card)
    card.parent.mkdir(parents=True, exist_ok=True)
    write_whole(card, lambda part: part.write_bytes(content.encode("utf-8")))


def drift(folder: Path, card: Path) -> list[str]:
    """Return descriptions of the parts of a card that differ from the audit in a folder; empty if none differ.

    Raises:
        StoreError: If the folder holds no audit.
        DataError: If the card cannot be read, or is not a model card.
    """
    results = read_verdict(folder)
    if not card.is_file():
        raise DataError(f"{card}: not there; write it first, with `ltmia card`")
    parts = take_apart(_read(card), card)
    place = _section_place(parts.text, card)
    found = []
    if place is None:
        found.append('there is no section "Memorisation audit"')
    elif parts.text[slice(*place)].replace("\r\n", "\n") != section(results):
        found.append('the section "Memorisation audit" differs')
    _, ours = _split((_yaml(parts.front, card) or {}).get(KEY) or [], card)
    if ours != _new_results(results):
        found.append(f"the metrics in its {KEY} differ" if ours else f"there are no metrics of the audit in its {KEY}")
    return found


def with_audit(content: str, results: Results, card: Path) -> str:
    """Return a card with the audit in it; an older audit is replaced.

    Args:
        content: Current content of the card; empty for a new card.
        results: Results of the audit.
        card: Path of the card, for messages and for the model's name.

    Raises:
        DataError: If it is not a model card, or the rest of its front matter could not be kept unchanged.
    """
    parts = take_apart(content, card)
    front = _with_index(parts, results, card)
    place = _section_place(parts.text, card)
    written = section(results).replace("\n", parts.newline)
    if place is None:
        gap = "" if not parts.text.strip() else parts.newline * (1 if parts.text.endswith("\n") else 2)
        text = parts.text + gap + written + parts.newline
    else:
        text = parts.text[: place[0]] + written + parts.text[place[1] :]
    new = parts.opening + front + parts.closing + text
    try:
        ModelCard(new.removeprefix(BOM))
    except ValueError as error:
        raise DataError(
            f"{card}: not a model card that huggingface_hub reads ({error}). Nothing was changed."
        ) from error
    return new


def take_apart(content: str, card: Path) -> Parts:
    """Find the front matter of a card as `huggingface_hub` does.

    Raises:
        DataError: If the front matter is not a YAML mapping.
    """
    newline = "\r\n" if "\r\n" in content else "\n"
    bom = BOM if content.startswith(BOM) else ""
    content = content.removeprefix(BOM)
    match = REGEX_YAML_BLOCK.search(content)
    if match is None:
        return Parts(
            opening=f"{bom}---{newline}", front="", closing=f"---{newline}{newline}", text=content, newline=newline
        )
    if not isinstance(_yaml(match[2], card), dict | None):
        raise DataError(f"{card}: the front matter is not a mapping of keys to values. Nothing was changed.")
    closing, text = match[3], content[match.end() :]
    if not match[4]:  # the file ends with the front matter
        closing += newline
    return Parts(opening=bom + content[: match.start(2)], front=match[2], closing=closing, text=text, newline=newline)


def section(results: Results) -> str:
    """Write the section; it holds no id, no text and no path."""
    data = results.data
    judged = f"{data.n_members} members" if results.kind == "audit" else f"{data.n_candidates} candidates"
    lines = [
        BEGIN,
        "## Memorisation audit",
        "",
        f"**{markdown(headline(results))}.**",
        "",
        f"{judged} were judged against {data.n_nonmembers} non-members on {results.created:%Y-%m-%d} by "
        f"ltmia {markdown(results.ltmia_version)} (run `{results.run_id}`). Hash of the audited weights: "
        f"`{markdown(results.target.sha256)}`.",
        "",
        *([] if results.subject is None else [markdown(results.subject), ""]),
        *_table(results),
        *_checks(results),
        "What this does not show:",
        "",
        *(f"- {markdown(line)}" for line in not_shown(results)),
        END,
    ]
    return "\n".join(lines)


def _table(results: Results) -> list[str]:
    if not results.attacks:
        return [*(f"{markdown(line)}\n" for line in observer_lines(results))]
    lines = [
        "| attack | AUC | " + " | ".join(f"TPR at {name} FPR" for name in FPR_NAMES.values()) + " |",
        "|---" * 5 + "|",
    ]
    for name in attack_order(results):
        attack = results.attacks[name]
        shown = [attack.auc, *(attack.tpr(fpr) for fpr in FPR_NAMES)]
        lines.append(f"| {markdown(name)} | " + " | ".join(markdown(written(m)) for m in shown) + " |")
    note = f"With 95 % intervals. `{CONTROL}` is a control: it never sees the model."
    observed = [markdown(line) for line in observer_lines(results)]
    return [*lines, "", " ".join([note, *observed]), ""]


def _checks(results: Results) -> list[str]:
    doubts = [
        f"- {LIGHTS[check.status].word}: {name}. {markdown(check.sentence)}"
        for name, check in named_checks(results.validity)
        if check.status != "ok"
    ]
    return ["Checks that did not pass:", "", *doubts, ""] if doubts else ["All validity checks passed.", ""]


def _new_results(results: Results) -> list[dict[str, Any]]:
    """Return what is ours in the list of results of a `model-index`."""
    entries = [
        EvalResult(
            task_type="text-generation",
            task_name="Memorisation audit",
            dataset_type=DATASET_TYPE,
            dataset_name=f"{_data_name(results)} (not published)",
            metric_type=figure.name,
            metric_name=figure.title,
            metric_value=figure.measure.value,
            metric_args={"low": figure.measure.low, "high": figure.measure.high}
            if figure.measure.low is not None
            else None,
        )
        for figure in figures(results)
        if figure.measure.value is not None
    ]
    return eval_results_to_model_index("", entries)[0]["results"]


def _data_name(results: Results) -> str:
    if results.canaries is not None:
        return "Canaries in the training data and canaries left out"
    if results.synthetic is not None:
        return "Synthetic texts, training data of their model and held-out texts"
    return "Training data and held-out texts"


def _with_index(parts: Parts, results: Results, card: Path) -> str:
    """Return the front matter with our metrics in its `model-index`; the rest is unchanged."""
    key, value = _index_node(parts.front, card)
    old = _yaml(parts.front, card) or {}
    index, _ = _split(old.get(KEY) or [], card)
    if not index:
        index = [{"name": card.absolute().parent.name or "model", "results": []}]
    index[0]["results"] += _new_results(results)
    dumped = yaml.safe_dump({KEY: index}, sort_keys=False, allow_unicode=True, width=1_000_000).rstrip("\n")
    dumped = dumped.replace("\n", parts.newline)
    if key is None:
        front = f"{parts.front}{parts.newline}{dumped}" if parts.front.strip() else dumped
        front += "" if parts.closing.startswith(("\n", "\r")) else parts.newline
    else:
        rest = parts.front[_last_sign(value) :]
        gap = parts.newline if rest.strip() and not rest.lstrip(" ").startswith(("\n", "\r", "#")) else ""
        front = parts.front[: key.start_mark.index] + dumped + gap + rest
    try:
        new = yaml.safe_load(front)
    except yaml.YAMLError:
        new = None
    if not isinstance(new, dict) or {**new, KEY: None} != {**old, KEY: None} or new[KEY] != index:
        raise DataError(
            f"{card}: the {KEY} cannot be replaced on its own; write it without anchors. Nothing was changed."
        )
    return front


def _split(index: Any, card: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a `model-index` without our results, and our results."""
    try:
        ours = [result for model in index for result in model["results"] if _is_ours(result)]
        others = [
            {**model, "results": [result for result in model["results"] if result not in ours]} for model in index
        ]
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{card}: {KEY}: expected a list of models, each with a list of `results` that name a `dataset`. "
            "Nothing was changed."
        ) from error
    return others, ours


def _is_ours(result: Any) -> bool:
    return bool(result["dataset"].get("type") == DATASET_TYPE)


def _index_node(front: str, card: Path) -> tuple[yaml.Node | None, yaml.Node | None]:
    """Return key and value of `model-index` with their places in the front matter; None twice if there is none."""
    root = yaml.compose(front, Loader=yaml.SafeLoader)
    pairs = [(key, value) for key, value in (root.value if root is not None else []) if key.value == KEY]
    if len(pairs) > 1:
        raise DataError(f"{card}: {KEY} occurs twice; keep one. Nothing was changed.")
    return pairs[0] if pairs else (None, None)


def _last_sign(node: Any) -> int:
    """Return the end of a value; comments after a block belong to the next value."""
    while not isinstance(node, yaml.ScalarNode) and not node.flow_style and node.value:
        node = node.value[-1][1] if isinstance(node, yaml.MappingNode) else node.value[-1]
    return int(node.end_mark.index)


def _section_place(text: str, card: Path) -> tuple[int, int] | None:
    """Return the start and end of our section; None if there is none."""
    marks = [(m.start(), m.end(), m[0]) for m in re.finditer(f"{re.escape(BEGIN)}|{re.escape(END)}", text)]
    if not marks:
        return None
    if [name for *_, name in marks] != [BEGIN, END]:
        raise DataError(
            f"{card}: expected one {BEGIN!r} and one {END!r} after it, found {len(marks)} such marks; remove them, "
            "and a new section is written. Nothing was changed."
        )
    return marks[0][0], marks[1][1]


def _yaml(front: str, card: Path) -> Any:
    try:
        return yaml.safe_load(front)
    except yaml.YAMLError as error:
        raise DataError(f"{card}: the front matter is not YAML ({error}). Nothing was changed.") from error


def _read(card: Path) -> str:
    if card.is_symlink():
        raise ConfigError(f"{card}: a link; name the file that it leads to")
    try:
        return card.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{card}: not readable as UTF-8 text ({error})") from error
