"""Where a model that is to be trained comes from."""

from dataclasses import dataclass

from isomax_evaluation.output.settings import setting


@dataclass(frozen=True)
class Source:
    """An architecture, and the weights that it starts from."""

    model: str = setting(
        "resnet18",
        "A timm architecture (resnet18), one with the tag of its weights for --pretrained "
        "(resnet18.a1_in1k), hf-hub:USER/NAME, or local-dir:FOLDER.",
    )
    pretrained: bool = setting(
        False, "Start from timm's pretrained weights.", flags=["--pretrained"]
    )
    weights: str | None = setting(
        None,
        "Start from a checkpoint file, .safetensors or .pth, whatever classes it is for; "
        "--initial-checkpoint, as timm's scripts call it, is the same.",
        flags=["--weights", "--initial-checkpoint"],
    )
    small_images: bool = setting(
        False, "3x3 stride-1 stem without pooling, 32x32 inputs (CIFAR).", flags=["--small-images"]
    )

    @property
    def starts_trained(self) -> bool:
        """Whether the backbone has been trained before."""
        return self.pretrained or self.weights is not None or ":" in self.model


def source_of(given: str | Source) -> Source:
    """A source as it is, or of the name of an architecture."""
    return Source(given) if isinstance(given, str) else given
