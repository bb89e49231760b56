"""Write texts and a base model to try the commands on: python examples/materials.py FOLDER.

The texts are passages of the embedded public-domain speeches; each speech is in one set only. Fine-tune on train.jsonl.
The texts of held-out.jsonl are never trained on. Half of candidates.jsonl is in train.jsonl too. my-base/ is the
embedded tiny LM.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

import ltmia


def write_materials(folder: Path, *, n_members: int = 500, n_nonmembers: int = 1500) -> None:
    """Write the files; a speech is never divided between trained on and not trained on."""
    pool = ltmia.demo_texts()
    drawn = ltmia.draw_membership(
        pool, n_members=n_members, n_nonmembers=n_nonmembers, n_validation=n_members // 10, seed=0
    )
    folder.mkdir(parents=True, exist_ok=True)
    candidates = np.concatenate([drawn.members[::10], drawn.validation])
    for name, rows in (("train", drawn.members), ("held-out", drawn.nonmembers), ("candidates", candidates)):
        (folder / f"{name}.jsonl").write_text(json_lines(pool.take(rows)), "utf-8")
    shutil.copytree(ltmia.demo_base_path(), folder / "my-base", dirs_exist_ok=True)


def json_lines(texts: "ltmia.Texts") -> str:
    """Lay out texts as JSON lines: id, text, and the speech that each was cut from."""
    groups = texts.groups or texts.ids
    rows = zip(texts.ids, texts.texts, groups, strict=True)
    return "".join(json.dumps({"id": id_, "text": text, "document": group}) + "\n" for id_, text, group in rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write_materials(parser.parse_args().folder)
