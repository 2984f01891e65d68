"""``isomax export``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from isomax_evaluation.cli.options import ClassNames, class_names_of, settings_of, with_settings
from isomax_evaluation.cli.terminal import Bars, one_line_errors, print_table, status
from isomax_evaluation.data.settings import Reading
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.output.files import check_target


@with_settings(
    (
        Reading,
        *("data_root", "skip_bad_images", "drop_duplicates", "on_contradiction", "workers"),
    )
)
def export(
    model_folder: Annotated[
        Path,
        typer.Argument(
            help="A model folder: the output of isomax train, or what calibrate or import wrote."
        ),
    ],
    path: Annotated[Path, typer.Argument(help="The ONNX file to write.")] = Path("model.onnx"),
    precision: Annotated[
        str, typer.Option(help="Of the backbone: fp32, fp16, or int8 (needs --id).")
    ] = "fp32",
    id: Annotated[
        str | None,
        typer.Option(help="The model's classes: ranges of int8; what the precision costs on it."),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="Images that the model has not seen, one subfolder per class: they judge and "
            "calibrate fp16 and int8 (with --id); by default those that training held out."
        ),
    ] = None,
    ood: Annotated[
        list[str] | None, typer.Option(help="OOD data for AUROC: a folder or a name; repeatable.")
    ] = None,
    class_names: ClassNames = None,
    test_images: Annotated[
        int | None, typer.Option(help="Measure on at most N images of each dataset.")
    ] = None,
    **settings: Any,
) -> None:
    """Export a model folder to one ONNX file: raw pixels in, verdict out.

    With --id the file's accuracy, false alarms and threshold are measured, beside float32.
    """
    with one_line_errors("train", "onnx"):
        check_target(path)
        if id is None and (ood or calibration or precision == "int8"):
            option = "--ood" if ood else "--calibration" if calibration else "int8"
            raise InputError(
                f"{option} takes --id too: in-distribution data, a folder with one subfolder per "
                "class"
            )
        if calibration and precision == "fp32":
            raise InputError(
                "--calibration is for fp16 and int8; fp32 keeps what the model folder was "
                "calibrated on"
            )
        with status("loading PyTorch"):
            from isomax_adapters.onnx import export as export_onnx
            from isomax_adapters.timm.sources import model_folder_of

        model_folder = model_folder_of(str(model_folder)) or model_folder
        names = class_names_of(class_names)
        if id is None:
            with status("exporting"):
                export_onnx(model_folder, path, precision, class_names=names)
        else:
            _export_and_measure(
                model_folder=model_folder,
                path=path,
                precision=precision,
                id=id,
                ood=ood or [],
                test_images=test_images,
                reading=settings_of(Reading, settings),
                calibration=calibration,
                class_names=names,
            )
        from isomax_adapters.runtime import Scorer

        metadata = Scorer(path).metadata
        guarantee = metadata["guarantee"]
        typer.echo(f"wrote {path}, verified against PyTorch; its guarantee is {guarantee}")
        typer.echo(
            f"p-values: of {metadata['samples']} scores that {metadata['scored_by']} computed; "
            f"scores that differ by at most {metadata['tolerance']:.2g} tie"
        )
        _warn_of(model_folder, metadata)
        if precision != "fp32" and guarantee == "not established":
            typer.echo(
                f"guarantee: not established; the threshold is the model folder's, and {precision} "
                "has other scores: give --id, whose images training held out, or images that the "
                "model has not seen with --calibration",
                err=True,
            )


def _warn_of(folder: Path, metadata: dict[str, Any]) -> None:
    from isomax.calibration import Calibration
    from isomax_adapters.timm import load_model
    from isomax_evaluation.extraction.doubts import doubts_without_images

    model: Any = load_model(folder)
    calibration = Calibration.from_dict(metadata)  # the file's own
    for doubt in doubts_without_images(model, calibration, model.num_classes):
        typer.echo(f"warning: {doubt}", err=True)


def _export_and_measure(**arguments: Any) -> None:
    from isomax_evaluation.cli.tables import of_precision
    from isomax_evaluation.deployment.precision import export_and_measure

    with Bars() as progress:
        table = export_and_measure(**arguments, progress=progress)
    print_table(of_precision(table))
