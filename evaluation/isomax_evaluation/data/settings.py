"""What is asked for of images: how they are found and read, and what their pixels become."""

from dataclasses import dataclass
from typing import Any

from isomax_evaluation.output.settings import numbers, setting

CONTRADICTIONS = ("refuse", "drop", "keep")


def _sides(text: str) -> int | tuple[int, int]:
    sides: Any = numbers(int, most=2)(text)
    return sides[0] if len(set(sides)) == 1 else sides


def _grey_range(text: str) -> tuple[int, int] | str:
    if text == "auto":
        return text
    ends: Any = numbers(int)(text)
    if len(ends) != 2:
        raise ValueError(f"is {text!r}; expected LOW,HIGH or auto")
    return ends


@dataclass(frozen=True)
class Preprocessing:
    """What pixels become before a model sees them; what is not given is the model's own."""

    image_size: int | tuple[int, int] | None = setting(
        None, "Input size: one number, or height and width as H,W.", "[1, inf)", parse=_sides
    )
    in_chans: int | None = setting(
        None,
        "Read images as 1 channel (grey), 3 (RGB, the default) or 4 (RGB and a fourth band).",
        *(1, 3, 4),
    )
    grey_range: tuple[int, int] | str | None = setting(
        None,
        "Smallest and largest value of grey images of more than 8 bits, as LOW,HIGH, or auto for "
        "the training images' own; what their depth allows by default.",
        parse=_grey_range,
    )
    crop_mode: str | None = setting(
        None,
        "How images become the input size: center, squash or border (all of it).",
        *("center", "squash", "border"),
    )
    crop_pct: float | None = setting(
        None, "Share of the image that the centre crop keeps.", "(0, 1]"
    )
    orientation: str | None = setting(
        None,
        "Read photographs as stored, as timm does, or upright: turned as EXIF says.",
        *("stored", "upright"),
    )
    interpolation: str | None = setting(
        None, "Of resizing: bicubic or bilinear.", *("bicubic", "bilinear")
    )

    def __post_init__(self) -> None:
        size = self.image_size
        if not isinstance(size, (int, type(None))) and len(set(size)) == 1:
            object.__setattr__(self, "image_size", size[0])

    @property
    def of_a_model(self) -> dict[str, Any]:
        """What is other than a model's own, by timm's names; ``None`` leaves it."""
        names = ("in_chans", "crop_mode", "crop_pct", "interpolation")
        return {"img_size": self.image_size} | {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Reading:
    """How images are found and read, and which of them are taken."""

    data_root: str | None = setting(None, "Folder that named datasets are read from.")
    group_by: str | None = setting(
        None,
        "Images that no split may part (one patient, camera, day): how many characters their file "
        "names begin with alike, or a column of the table.",
    )
    class_map: str | None = setting(None, "timm's file of class names, in their order.")
    skip_bad_images: bool = setting(
        False, "Leave out images that do not decode.", flags=["--skip-bad-images"]
    )
    drop_duplicates: bool = setting(
        False,
        "Of images that are there more than once, whatever their files are called, keep one.",
        flags=["--drop-duplicates"],
    )
    on_contradiction: str = setting(
        "refuse",
        "Where an image is there under several labels: refuse, drop it, or keep.",
        *CONTRADICTIONS,
    )
    workers: int = setting(2, "Processes that decode images.", "[0, inf)")
