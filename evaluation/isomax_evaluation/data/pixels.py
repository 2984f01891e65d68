"""What pixels mean: looked at before anything is trained on them."""

from torch.utils import data as torch_data

from isomax_adapters.runtime.decoding import GreyRange
from isomax_evaluation.data.checking import check_pixels, masks_beside
from isomax_evaluation.data.images import Images
from isomax_evaluation.output.errors import InputError
from isomax_evaluation.output.progress import Progress, shown


def grey_range_of(images: Images, workers: int, progress: Progress) -> GreyRange:
    """The smallest and largest stored value of all grey images of more than 8 bits.

    Images that do not decode are left to whoever reads them.

    :param workers: processes to decode in
    :raises InputError: if there are none, or they are all of one value
    """
    lowest, highest = [], []
    if images.paths:
        paths = [images.name_of(position) for position in range(len(images))]
        loader: torch_data.DataLoader = torch_data.DataLoader(
            _Extremes(paths), batch_size=64, num_workers=workers, collate_fn=list
        )
        with shown(progress, f"grey range of {images.name}", len(paths)) as advance:
            for found in loader:
                lowest += [low for low, _ in filter(None, found)]
                highest += [high for _, high in filter(None, found)]
                advance(len(found))
    if not lowest or min(lowest) == max(highest):
        raise InputError(
            f"{images.name} has no grey image files of more than 8 bits whose values differ, so "
            "that there is no grey range to find; give LOW,HIGH, or leave the grey range out"
        )
    return min(lowest), max(highest)


def warnings_of(images: Images) -> list[str]:
    """What looks wrong in images that decode, and in their names; nothing is said of images without
    files."""
    if not images.paths:
        return []
    paths = [images.name_of(position) for position in range(len(images))]
    said = check_pixels(paths, images.decoding).warnings()
    if masks := masks_beside(paths):
        said.append(
            f"{len(masks)} of {len(paths)} images are masks of others by their names ({masks[0]}), "
            "and are images of their class as the others are; move them out of the folder, or list "
            "the images in a table (labels.csv)"
        )
    return said


class _Extremes(torch_data.Dataset):
    """Smallest and largest value of each file; ``None`` of one that is not deep, or cannot be
    read."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> GreyRange | None:
        try:
            return check_pixels([self.paths[position]]).extremes
        except Exception:  # Pillow's readers raise whatever they please; readable() names the file
            return None
