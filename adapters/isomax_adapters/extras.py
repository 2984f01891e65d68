"""The parts that isomax is installed in, and one line for whoever lacks one."""

from importlib.util import find_spec

from isomax_adapters.runtime.errors import InputError

#: extra -> modules that its code cannot do without; a served model has no more than these
EXTRAS = {
    "timm": ("torch", "timm", "pytorch_ood", "sklearn"),
    "train": ("accelerate", "pandas", "jinja2"),
    "onnx": ("onnx", "onnxscript"),
    "mlflow": ("mlflow",),
    "report": ("matplotlib", "plotly"),
}
BELOW = {"train": ("timm",), "onnx": ("timm",), "report": ("timm", "train")}  # what each takes
SHOWN = 3  # modules in a message


class MissingExtraError(InputError, ImportError):
    """Something takes packages that are not installed; the message says how to install them."""


def how_to_install(*extras: str) -> str:
    """The command that installs extras; the name alone is another's on the public index."""
    return f"pip install '.[{','.join(extras)}]' in the folder of isomax's sources"


def need(*extras: str, by: str = "this") -> None:
    """Refuse to go on without the packages of some extras.

    :param by: who needs them
    :raises MissingExtraError: naming the packages, and the extras to install
    """
    wanted = dict.fromkeys(one for extra in extras for one in (*BELOW.get(extra, ()), extra))
    missing = {
        extra: lacking
        for extra in wanted
        if (lacking := [module for module in EXTRAS[extra] if find_spec(module) is None])
    }
    if missing:
        modules = [module for lacking in missing.values() for module in lacking]
        chosen = [e for e in missing if not any(e in BELOW.get(other, ()) for other in missing)]
        named = ", ".join(modules[:SHOWN]) + f" and {len(modules) - SHOWN} more" * (
            len(modules) > SHOWN
        )
        raise MissingExtraError(
            f"{by} needs {named}, not installed here; {how_to_install(*chosen)}"
        )
