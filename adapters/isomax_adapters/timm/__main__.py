"""``python -m isomax_adapters.timm SCRIPT [ARGUMENT ...]``: a script that creates timm models, such
as timm's ``validate.py``, ``inference.py``, ``benchmark.py`` or ``onnx_export.py``, with ours among
them (``--model isomax_resnet18``)."""

import runpy
import sys
from pathlib import Path

import isomax_adapters.timm  # noqa: F401  (registers the models)


def main() -> None:
    """Run the script as ``python SCRIPT ARGUMENT ...`` would."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    script = Path(sys.argv[1])
    if not script.is_file():
        sys.exit(f"there is no script {script}")
    del sys.argv[0]
    sys.path[0] = str(script.resolve().parent)
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
