"""The documentation: guides and a reference made from the code, as HTML.

``tox -e docs``, or ``python evaluation/docs/build.py OUTPUT``. A warning is an error.
"""

import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import plane
from pages import PAGES
from sphinx.cmd.build import build_main

from isomax_adapters.runtime.metadata import FIELDS, METADATA_KEY, OUTPUTS
from isomax_evaluation.cli.terminal import STATUSES
from isomax_evaluation.comparison import columns as comparison
from isomax_evaluation.data.benchmarks import BENCHMARKS
from isomax_evaluation.data.datasets import named_sets
from isomax_evaluation.deployment.rows import MEANINGS
from isomax_evaluation.detection.catalogue import catalogue
from isomax_evaluation.training import columns as training
from isomax_evaluation.training.recipes import RECIPES

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
#: what users import
MODULES = (
    *("isomax", "isomax.functional", "isomax.calibration", "isomax.starting", "isomax.fitting"),
    *("isomax.doubts", "isomax_adapters.timm", "isomax_adapters.pytorch_ood"),
    *("isomax_adapters.onnx.exporting", "isomax_adapters.runtime.scorer"),
    *("isomax_adapters.runtime.resizing", "isomax_adapters.mlflow"),
    *("isomax_evaluation.training.train", "isomax_evaluation.comparison.compare"),
    *("isomax_evaluation.deployment", "isomax_evaluation.detection.fitting"),
    *("isomax_evaluation.detection.scoring", "isomax_evaluation.data"),
)
INDEX = """# isomax

Image classifiers that say "unknown": IsoMax, IsoMax+ and DisMax on timm's models, every detector of
pytorch-ood beside them, one ONNX file at the end, MLflow all along.

```{{toctree}}
:caption: Guides
{guides}
```

```{{toctree}}
:caption: Reference
{reference}
```
"""


def guide(path: str) -> str:
    """A guide, with links to other pages of the documentation; those to files lose their link."""
    text, folder = (ROOT / path).read_text(encoding="utf-8"), (ROOT / path).parent
    pages = {(ROOT / place).resolve(): f"{name}.md" for name, place in PAGES.items()}

    def linked(found: re.Match[str]) -> str:
        label, target = found.groups()
        if target.startswith("http"):
            return found[0]
        page = pages.get((folder / target).resolve())
        return f"[{label}]({page})" if page else label

    text = re.sub(r"\[([^\]]+)\]\(([^)#\s]+)\)", linked, text)
    # made when the documentation is, so that no picture is kept
    return re.sub(r"<!-- picture (\S+): (.*?) -->", r"![\2](\1)\n\n*\2*", text, flags=re.DOTALL)


def table(frame: pd.DataFrame) -> str:
    """Markdown; an empty cell stays empty."""
    lines = [list(frame.columns), ["---"] * len(frame.columns)]
    lines += [[str(cell).replace("|", "\\|") for cell in row] for row in frame.to_numpy()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def detectors() -> str:
    """What there is to choose from."""
    return f"# Detectors\n\n{table(catalogue())}\n"


def recipes() -> str:
    """Every recipe with all of its values."""
    parts = fields(RECIPES["scratch"])
    rows = [
        {"option": f"`--{part.name.replace('_', '-')}`"}
        | {name: getattr(recipe, part.name) for name, recipe in RECIPES.items()}
        | {"what it is": part.metadata["help"]}
        for part in parts
    ]
    frame = pd.DataFrame(rows).astype(object)
    return f"# Recipes\n\n{table(frame.where(frame.notna(), ''))}\n"


def names() -> str:
    """Data sets and benchmarks."""
    sets = pd.DataFrame(named_sets().items(), columns=["dataset", "whose"])
    benchmarks = pd.DataFrame({"benchmark of pytorch-ood": BENCHMARKS})
    return f"# Data sets and benchmarks\n\n{table(sets)}\n\n{table(benchmarks)}\n"


def meanings(named: Mapping[Any, str], what: str) -> str:
    """A table of names and what they mean."""
    rows = [(f"`{name}`", text) for name, text in named.items()]
    return table(pd.DataFrame(rows, columns=[what, "meaning"]))


def files() -> str:
    """What commands write, column by column."""
    parts = ["# Output files"]
    for command, one in (("compare", comparison), ("train", training)):
        parts += [f"## `isomax {command}`", meanings(one.OTHERS | training.TRACKED, "file")]
        for name, columns in one.FILES.items():
            what = "key" if name.endswith((".json", ".jsonl")) else "column"
            parts += [f"### `{name}` of `isomax {command}`", meanings(columns, what)]
    outputs = pd.DataFrame(
        [(f"`{name}`", kind, rank) for name, (kind, rank) in OUTPUTS.items()],
        columns=["output", "type", "dimensions"],
    )
    parts += ["## `isomax score --out`", meanings(MEANINGS, "column")]
    parts += ["## `isomax export`", "The graph's outputs:", table(outputs)]
    parts += [f"Its metadata, JSON under the key `{METADATA_KEY}`:", meanings(FIELDS, "key")]
    return "\n\n".join(parts) + "\n"


def statuses() -> str:
    """What a command says to the shell."""
    return f"# Exit statuses\n\n{meanings(STATUSES, 'status')}\n"


def api(module: str) -> str:
    """Of a module all that is public."""
    return f"# {module}\n\n```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n```\n"


def main() -> int:
    output = Path(sys.argv[1] if len(sys.argv) > 1 else "docs-out").absolute()
    reference = {make.__name__: make for make in (detectors, recipes, names, files, statuses)}
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch)
        for name in ("conf.py", "mathml.py", "style.css"):
            shutil.copy(HERE / name, source)
        pages = {name: guide(path) for name, path in PAGES.items()}
        pages |= {name: make() for name, make in reference.items()}
        pages |= {module: api(module) for module in MODULES}
        pages["index"] = INDEX.format(
            guides="\n".join(PAGES), reference="\n".join([*reference, *MODULES])
        )
        plane.main(source / "plane.png")
        for name, text in pages.items():
            (source / f"{name}.md").write_text(text, encoding="utf-8")
        return build_main(["-W", "--keep-going", "-q", "-b", "html", scratch, str(output)])


if __name__ == "__main__":
    sys.exit(main())
