"""What a command has written, for whoever opens the folder."""

from collections.abc import Mapping
from pathlib import Path

from isomax_evaluation.output.files import write_whole

GUIDE = "README.md"


def write_guide(
    output: Path,
    command: str,
    files: Mapping[str, Mapping[str, str]],
    others: Mapping[str, str],
) -> None:
    """``README.md`` in an output folder, of the files that there are.

    :param command: that made the folder
    :param files: file -> column, or key of each object -> what it means
    :param others: file -> what it is
    """

    def there(name: str) -> bool:
        pattern = name.replace("MODEL-seedN", "*").replace("SET", "*").rstrip("/")
        return name == GUIDE or next(output.glob(pattern), None) is not None

    lines = ["# What is in this folder", "", f"Made by `isomax {command}`.", ""]
    lines += [f"- `{name}`: {text}" for name, text in others.items() if there(name)]
    for name, columns in files.items():
        if not there(name):
            continue
        what = "key" if name.endswith((".json", ".jsonl")) else "column"
        lines += ["", f"## {name}", "", f"| {what} | |", "|---|---|"]
        lines += [f"| {column} | {text} |" for column, text in columns.items()]
    text = "\n".join(lines) + "\n"
    write_whole(output / GUIDE, lambda partial: partial.write_text(text, encoding="utf-8"))
