"""The size in which the suite runs every script, and every command that Makefile, README or docs show.

In arguments and copies, {materials} is the folder that the docs speak of, {lab} one with stores to train and to
evaluate on, {kept} a lab that kept its models (its recipe lies beside it), {corpora} a folder of corpora, {many} one
of as many texts as the largest recipe wants; all else is written into the folder where the command runs.
"""

import gzip
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open

from ltmia.data.embedded import demo_texts
from ltmia.evaluation.files import read_results

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallRun:
    """One command in a size of seconds, and how its output is checked."""

    arguments: str
    finds: str
    """A pattern of what it prints."""
    check: Callable[[Path, str], None] = lambda _here, _printed: None
    """Given the folder where it ran, and what it printed."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """By name in the folder where it runs: what is copied there first."""
    is_slow: bool = False
    """Whether it is left to `make torture`."""
    needs: str | None = None
    """An extra that `make test` does not install; `make torture` does."""
    is_fresh: bool = False
    """Whether an interpreter of its own runs it, with two threads: what it starts must not depend on this suite."""


def same_texts(here: Path, _printed: str) -> None:
    """Cut once more, the embedded texts stay as they are."""
    with gzip.open(here / "texts.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    assert {row["id"]: row["text"] for row in rows} == dict(zip(demo_texts().ids, demo_texts().texts, strict=True))


def small_base(here: Path, _printed: str) -> None:
    """The base is one of GPT-2's shape in bfloat16, with a tokenizer beside it."""
    config = json.loads((here / "base" / "config.json").read_text("utf-8"))
    assert (config["model_type"], config["n_layer"], config["n_embd"]) == ("gpt2", 3, 128)
    with safe_open(here / "base" / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118  no dict
    assert (here / "base" / "tokenizer.json").is_file()


def every_reader(_here: Path, printed: str) -> None:
    """Each reader was searched, and held."""
    from fuzz import READERS

    assert re.findall(r"^(\w+): held, [1-9]", printed, re.M) == list(READERS)


def struck(*kinds: str) -> Callable[[Path, str], None]:
    """Return a check that each of these kinds of command was struck, and that no strike left a trace."""

    def check(_here: Path, printed: str) -> None:
        strikes = dict(re.findall(r"^(\w+): (\d+) strikes", printed, re.M))
        assert set(strikes) == set(kinds)
        assert all(int(number) for number in strikes.values())
        assert re.search(r"^inputs changed: [1-9]", printed, re.M)
        assert re.search(r"results differing: 0\nmisbehaved: 0$", printed, re.M)

    return check


def small_png(here: Path, _printed: str) -> None:
    """It is a PNG that a README can show."""
    picture = (here / "picture.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 150_000


def published_schema(_here: Path, printed: str) -> None:
    """It is the page of the docs."""
    assert printed == (ROOT / "docs" / "results.schema.json").read_text("utf-8")


def page_of_commands(here: Path, _printed: str) -> None:
    """It is the page of the docs."""
    assert (here / "page.md").read_text("utf-8") == (ROOT / "docs" / "commands.md").read_text("utf-8")


def two_architectures(here: Path, _printed: str) -> None:
    """The page counts both."""
    assert "2 architectures: 2 work" in (here / "page.md").read_text("utf-8")


def study_tables(here: Path, printed: str) -> None:
    """Each table holds figures between 0 and 1, and the curve is drawn."""
    assert "nan" not in printed
    for title in ("One family", "Regimes", "More combinations", "Shorter", "Longer", "What it leans on"):
        table = re.search(rf"## {title}.*?\n\n((?:\|.*\n?)+)", printed)
        assert table, title
        assert re.search(r"0\.\d{3}", table[1]), title
    assert "</svg>" in (here / "out" / "growth.svg").read_text("utf-8")


def models_table(here: Path, _printed: str) -> None:
    """One row for each way to change a model."""
    rows = (here / "out.md").read_text("utf-8").splitlines()
    assert len(rows) == 9, rows
    assert all(re.search(r"\| [01]\.\d{3} \|", row) for row in rows[2:])


def shipped_anew(here: Path, _printed: str) -> None:
    """The classifier and its evaluation are there."""
    figures = json.loads((here / "out" / "lite-evaluation" / "evaluation.json").read_text("utf-8"))
    assert set(figures) == {"demo.late.quick", "tiny.late.quick"}
    assert "demo.early.quick" in (here / "out" / "lite" / "README.md").read_text("utf-8")


def audited(folder: str, n_members: int) -> Callable[[Path, str], None]:
    """Return a check that an audit of so many members is there, with its page."""

    def check(here: Path, _printed: str) -> None:
        assert read_results(here / folder).data.n_members == n_members
        assert (here / folder / "report.html").is_file()

    return check


def two_audits(here: Path, _printed: str) -> None:
    """Before and after are measured, with the interval of what lies between."""
    [figures] = json.loads((here / "out" / "what_helps.json").read_text("utf-8")).values()
    assert figures["before"]["n_members"] == figures["after"]["n_members"] == 60
    for attack in ("ltmia", "ltmia_weights"):
        value, low, high = figures["auc_difference"][attack]
        assert low <= value <= high
        assert 0 <= figures["after"][attack]["n_flagged"] <= 60


def rising_exposure(_here: Path, printed: str) -> None:
    """Mean exposure rises with repeats, and is what chance gives for non-members and by the base."""
    rows = [[cell.strip() for cell in line.split("|")] for line in printed.splitlines() if line.startswith("| ")]
    means = {row[1]: float(row[2]) for row in rows[1:]}
    planted = [mean for name, mean in means.items() if name.endswith(" x")]
    assert planted == sorted(planted)
    assert means["non-members"] < 3 < planted[-1]
    assert all(float(row[5]) < 3 for row in rows[1:])


def extraction_figures(_here: Path, printed: str) -> None:
    """The figures agree with each other."""
    found = json.loads(printed)
    assert found["n_positions"] < 4 * 7
    overhead = found["total_seconds"] / found["forward_seconds"] - 1
    assert math.isclose(found["overhead"], overhead, rel_tol=0.5, abs_tol=0.5)
    assert 0.1 < found["loaded_rss_gb"] <= found["peak_rss_gb"] < 4
    assert found["ms_per_position_of_full_length"] > 0
    assert found["kernel_ms_per_position"] > 0


def written(*names: str) -> Callable[[Path, str], None]:
    """Return a check that files are there."""

    def check(here: Path, _printed: str) -> None:
        assert all((here / name).exists() for name in names), names

    return check


SCRIPTS: dict[str, SmallRun | None] = {
    "scripts/architectures.py": SmallRun(
        arguments="page.md gpt2 mamba --limit 300",
        finds="mamba: works",
        check=two_architectures,
        is_fresh=True,
        is_slow=True,
    ),
    "scripts/changing_inputs.py": None,
    "scripts/clean_process.py": None,
    "benchmarks/real_target.py": None,
    "scripts/commands_page.py": SmallRun(arguments="page.md", finds=r"\d\d commands", check=page_of_commands),
    "scripts/comparisons.py": None,
    "scripts/deletion_test.py": SmallRun(
        arguments="{materials}/audit/private/store", finds=r"integrated gradients: the logit falls by -?\d"
    ),
    "scripts/fuzz.py": SmallRun(
        arguments="all --cases 10", finds="held", check=every_reader, is_fresh=True, is_slow=True
    ),
    "scripts/fuzz_instrumented.py": None,
    "scripts/fuzz_readers.py": None,
    "scripts/make_demo_base.py": SmallRun(
        arguments="{corpora} --out base --tokens 20000 --held-out 10", finds="held_out", check=small_base
    ),
    "scripts/make_demo_texts.py": SmallRun(
        arguments="{corpora} --out texts.jsonl.gz", finds=f"{len(demo_texts())} texts", check=same_texts
    ),
    "scripts/realised_fdp.py": SmallRun(
        arguments="{lab}/stores --attack difference", finds=r"4 combinations(?s:.*)Mean FDP over 20 splits: 0\.\d"
    ),
    "scripts/report_picture.py": SmallRun(
        arguments="{materials}/audit/report.html picture.png",
        finds="",
        check=small_png,
        needs="playwright",
        is_fresh=True,
    ),
    "scripts/results_schema.py": SmallRun(arguments="", finds="properties", check=published_schema),
    "scripts/run_page.py": SmallRun(arguments="{materials}/../page.md", finds="two and two make 4"),
    "scripts/site_hooks.py": None,
    "scripts/soak.py": SmallRun(arguments="out --texts 2000", finds="faults: 0", is_fresh=True, is_slow=True),
    "scripts/soak_ray.py": SmallRun(
        arguments="out --texts 3000 --kills 1 --every 4", finds="faults: 0", needs="ray", is_fresh=True, is_slow=True
    ),
    "scripts/struck_commands.py": None,
    "scripts/study.py": SmallRun(
        arguments="{lab} out --texts 20 --epochs 1", finds="One family to learn from", check=study_tables
    ),
    "scripts/study_models.py": SmallRun(
        arguments="{kept}.toml {kept} . out.md --combinations demo.early.quick --texts 20",
        finds="rounded to 4 bits",
        check=models_table,
    ),
    "scripts/torture.py": SmallRun(
        arguments="out --kills 2",
        finds="rows lost: 0, rows doubled: 0",
        check=struck("audit", "score", "lab", "train", "report"),
        is_fresh=True,
        is_slow=True,
    ),
    "scripts/train_shipped.py": SmallRun(
        arguments="{lab} {lab}/real out lite --epochs 1 1", finds="epoch 1", check=shipped_anew
    ),
    "benchmarks/extraction.py": SmallRun(
        arguments="out --texts 2 --nonmembers 4 --epochs 1 --repeats 1 60 --max-length 24 --learning-rate 3e-3 "
        "--sample 1 --continuations 2",
        finds=r"\| 1( \| [01]\.\d\d \[[01]\.\d\d, [01]\.\d\d\]){2} \| 0\.00 [^$]*\| 1 \| 60 x \| [01]\.\d \[[01], 1\] "
        r"\| [01] of 1 \|[^$]*\| 1 \| 2 non-members, by the base \|",
        check=written("out/epochs-1/audit/report.html"),
    ),
    "benchmarks/preference.py": SmallRun(
        arguments="out --pairs 60 --epochs 1",
        finds=r"\| premia_pair \| [01]\.\d{3}",
        check=written("out/audit/report.html"),
        needs="trl",
    ),
    "benchmarks/extraction_cost.py": SmallRun(
        arguments="out --texts 3 --audits 1 --attacks difference",
        finds=r"\| difference \| \d+\.\d\d \| 0\.\d{3} \| \d+\.\d%",
        check=written("out/difference-1/report.html"),
    ),
    "benchmarks/exposure.py": SmallRun(
        arguments="out --values 2 --nonmembers 2 --repeats 1 40 --epochs 1 --alternatives 40 --digits 4",
        finds=r"\| 1 x \| \d\.\d \| \d \| \d \|",
        check=written("out/audit/spans.parquet"),
    ),
    "benchmarks/quantised.py": SmallRun(
        arguments="{materials}/my-model {materials}/my-base {materials}/train.jsonl {materials}/held-out.jsonl out "
        "--ways nf4 --attacks difference --group-column document",
        finds=r"difference: nf4-unpacked 0\.\d{4}, nf4-packed 0\.\d{4}: [+-]0\.\d{4}",
        check=written("out/nf4-packed/report.html"),
        needs="bitsandbytes",
    ),
    "benchmarks/plan.py": SmallRun(
        arguments="out --shapes llama-1M --texts 2 --tokens 16 --rounds 1",
        finds=r"\| llama-1M \| 1,229,664 \| \d\.\d+e\+06 \| \d",
        check=written("out/llama-1M/config.json"),
    ),
    "benchmarks/ray_lab.py": SmallRun(
        arguments="out --rounds 1 --seeds 1 --texts 20", finds=r"2 workers over that of 1: \d", needs="ray"
    ),
    "benchmarks/first_minutes.py": SmallRun(arguments="out --steps help", finds=r"--help: \d+\.\d\d s"),
    "benchmarks/real_lm.py": SmallRun(
        arguments="{materials}/my-base {corpora}/speeches.jsonl.gz out --members 30 --nonmembers 60 --lora "
        "--learning-rate 1e-3 --dtype float32",
        finds="fine-tuned: loss",
        check=audited("out/audit", 30),
    ),
    "benchmarks/weights.py": SmallRun(
        arguments="{materials}/my-base {corpora}/speeches.jsonl.gz out --members 20 --nonmembers 30 --batch-size 4 "
        "--learning-rate 1e-3 --coordinates 500 --layers 1 --known 15 --siblings 10",
        finds=r"(?s)other documents \(30\):.*AUC [01]\.\d{3}.*siblings \(10\):.*AUC [01]\.\d{3}",
        check=written("out/target/config.json"),
    ),
    "benchmarks/low_fpr.py": SmallRun(
        arguments="{materials}/my-base {corpora}/speeches.jsonl.gz out --members 20 --nonmembers 30 --learning-rate "
        "1e-3 --max-length 32 --attacks difference",
        finds=r"\| `update` \| [01]\.\d{3} \[.*30 non-members are too few to measure an FPR of 0\.001",
        check=audited("out/audit", 20),
    ),
    "benchmarks/search.py": SmallRun(
        arguments="out {corpora}/speeches.jsonl.gz --model {materials}/my-base --members 20 --candidates 60 "
        "--nonmembers 20 --max-length 16 --learning-rate 1e-3",
        finds=r"(?s)update: AUC [01]\.\d{3}.*flagged \d+, of them used \d+; used in all 20",
        check=written("out/search/report.html"),
    ),
    "benchmarks/long_texts.py": SmallRun(
        arguments="{materials}/my-base {corpora}/speeches.jsonl.gz out --joined 1 --lengths 16 32 --members 20 "
        "--nonmembers 30 --attacks difference --windows",
        finds=r"(?s)\| first 32 tokens \| difference \| [01]\.\d{3}.*\| windows of 128 of 32 \| difference \| [01]",
        check=written("out/audit-32-16/report.html"),
    ),
    "benchmarks/weights_robustness.py": SmallRun(
        arguments="{corpora}/speeches.jsonl.gz out --members 20 --nonmembers 30 --rows 'int8 by row, base alike'",
        finds=r"\| int8 by row, base alike \| 0\.\d{3} \| [01]\.\d{3}",
    ),
    "benchmarks/weights_lab.py": SmallRun(
        arguments="{kept}.toml {kept} out --corpora {corpora} --regimes quick",
        finds=r"(?s)\| demo.early.quick \| 0\.\d{3} \|.*divided by that of ltmia: (\d|ltmia makes).*below the better",
        check=written("out/demo.late.quick.npz"),
        is_slow=True,
    ),
    "benchmarks/synthetic.py": SmallRun(
        arguments="out --members 20 --epochs 0 --texts 20 --tokens 16",
        finds=r"\| 0 \| 20 \| 0\.\d{3} ",
        check=written("out/audit-0-20/report.html"),
        is_slow=True,
    ),
    "benchmarks/altered.py": SmallRun(
        arguments="round {materials}/my-model --to 'int8 by row' -o out", finds="", check=written("out/config.json")
    ),
    "benchmarks/what_helps.py": SmallRun(
        arguments="out --members 60 --changes fewer_epochs",
        finds=r"\| 1 epoch instead of 3 \| log-probabilities \| [01]\.\d{3} \[",
        copies={
            f"out/{folder}{way}": f"{{materials}}/{source}"
            for way in ("plain", "one_epoch")
            for folder, source in (("", "my-model"), ("audit-", "audit"))
        },
        check=two_audits,
    ),
    "examples/materials.py": SmallRun(arguments=".", finds="", check=written("train.jsonl", "my-base/config.json")),
}
"""By file; None for a file that is no command but a part of others."""
SLOW_SCRIPTS = {
    "benchmarks/exposure.py": SmallRun(
        arguments="out --values 6 --nonmembers 24 --epochs 1 --alternatives 500",
        finds=r"\| 64 x \| [89]\.\d \|",
        check=rising_exposure,
        is_slow=True,
    ),
    "benchmarks/what_helps.py": SmallRun(
        arguments="out --members 60 --changes fewer_epochs", finds="--epochs 1", check=two_audits, is_slow=True
    ),
}
"""The same with the work that takes long: every day it is given what was made already, or does less."""

PAIR = "{materials}/my-model --base {materials}/my-base"
SIDES = "--nonmembers {materials}/held-out.jsonl"
WORK = "--texts 4 --tokens 8 --vocab-size 64 --hidden-size 12 --layers 1 --json"
COMMANDS: tuple[SmallRun, ...] = (
    SmallRun(arguments="demo -o demo --members 40", finds="ltmia", check=audited("demo", 40), is_slow=True),
    SmallRun(
        arguments=f"audit {PAIR} --members {{materials}}/train.jsonl {SIDES} --group-column document --attacks loss "
        "--dtype float32 -o audit",
        finds="loss",
        check=audited("audit", 60),
    ),
    SmallRun(
        arguments="finetune {materials}/my-base --texts {materials}/candidates.jsonl -o model --epochs 1 --lora "
        "--learning-rate 8e-4 --seed 0 --batch-size 50",
        finds="",
        check=written("model/adapter_config.json"),
    ),
    SmallRun(
        arguments="finetune {materials}/my-base --texts {materials}/candidates.jsonl -o model --epochs 1 --lora "
        "--epsilon 8",
        finds="",
        check=written("model/adapter_config.json"),
        needs="opacus",
    ),
    SmallRun(
        arguments="canaries make --into {materials}/train.jsonl --model {materials}/my-base -o canaries --count 20 "
        "--tokens 16",
        finds="20 canaries",
        check=written("canaries/train.jsonl", "canaries/private/key.jsonl"),
    ),
    SmallRun(
        arguments=f"canaries audit {PAIR} --canaries {{canaries}} --attacks loss -o audit",
        finds="Copies  Inserted  Left out",
        check=written("audit/report.html"),
    ),
    SmallRun(
        arguments=f"synthetic {{materials}}/candidates.jsonl --members {{materials}}/train.jsonl {SIDES} "
        "--base {materials}/my-base --epochs 1 --max-length 32 --attacks loss -o audit",
        finds="These figures are of synthetic data",
        check=audited("audit", 60),
    ),
    SmallRun(
        arguments="compare {materials}/audit {materials}/audit --html comparison.html",
        finds=r"\+0\.000 \[\+0\.000",
        check=written("comparison.html"),
    ),
    SmallRun(
        arguments="report audit --policy policy.toml",
        finds="report.html",
        copies={"audit": "{materials}/audit"},
        check=written("audit/report.html"),
    ),
    SmallRun(
        arguments="gate {materials}/audit --policy policy.toml --junit gate.xml",
        finds="gate passed",
        check=written("gate.xml"),
    ),
    SmallRun(
        arguments='gate {materials}/audit --max "extractable@1000:60" --max "extractable_share@1000000:1"'
        " --inconclusive pass",
        finds="extractable within 1,000 draws",
    ),
    SmallRun(
        arguments="lab run {root}/recipes/tiny.toml -o lab --corpora {many} --workers 2 --dry-run",
        finds="steps to do",
        is_slow=True,
    ),
    SmallRun(
        arguments="lab run {root}/recipes/real.toml -o lab --corpora {many} --bases {many} --workers 2 --dry-run",
        finds="steps to do",
    ),
    SmallRun(arguments="lab status {kept}", finds="Nothing is left to do"),
    SmallRun(arguments="lab report {kept} -o lab.html", finds="lab.html", check=written("lab.html")),
    SmallRun(
        arguments="lab run {kept}.toml -o lab --engine ray --workers 1", finds="Nothing is left to do", needs="ray"
    ),
    SmallRun(
        arguments=f"score {PAIR} --candidates {{materials}}/candidates.jsonl {SIDES} --engine ray -o claim",
        finds="p = ",
        needs="ray",
    ),
    SmallRun(
        arguments="train {lab}/stores -o model --hold-out late --epochs 1",
        finds="2 combinations, 2 held out",
        check=written("model/model.safetensors"),
    ),
    SmallRun(
        arguments="train {lab}/stores -o model --network published --feature-version published --epochs 1",
        finds="4 combinations",
        check=written("model/model.safetensors"),
    ),
    SmallRun(
        arguments="evaluate lite {lab}/stores -o evaluation",
        finds=r"corpus late \(2\)",
        check=written("evaluation/evaluation.json"),
    ),
    SmallRun(
        arguments=f"bench extract --dtype float32 --mixed-lengths {WORK}",
        finds='"peak_rss_gb": 0',
        check=extraction_figures,
    ),
    SmallRun(arguments=f"bench store {WORK}", finds="{"),
    SmallRun(arguments=f"bench train {WORK}", finds="{", is_slow=True),
    SmallRun(arguments=f"bench weights {WORK} --layers 2", finds='"added"'),
)
"""Those of `ltmia` that are shown but not run where they are shown."""
