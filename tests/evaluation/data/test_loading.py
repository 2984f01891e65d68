"""What goes wrong where images are decoded is one line, whichever process it happens in."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from isomax_evaluation import data
from isomax_evaluation.data.images import Transformed
from isomax_evaluation.data.loading import decoding_errors, loader_of
from isomax_evaluation.output.errors import InputError

from ...image_folders import make_folder


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_vanishes_is_named_with_the_way_out(workers, tmp_path):
    make_folder(tmp_path, ("a", "b [old]"), 6)
    images = data.open_images(str(tmp_path))
    (tmp_path / "b [old]" / "003.jpg").unlink()
    loader = DataLoader(Transformed(images, lambda image: image.size), 3, num_workers=workers)
    with pytest.raises(InputError) as error, decoding_errors():
        list(loader)
    text = str(error.value)
    assert text.startswith(f"{tmp_path}/b [old]/003.jpg cannot be read: FileNotFoundError")
    assert text.endswith("which goes on from what is finished")
    assert "\n" not in text


def test_large_images_come_few_at_a_time(tmp_path):
    # detectors that take gradients keep all that a network computes of a batch
    make_folder(tmp_path, ("a", "b"), 50)
    images = data.open_images(str(tmp_path))
    sizes = {}
    for side in (32, 224, 384):
        loader = loader_of(lambda _, side=side: torch.zeros(3, side, side), 0, images, images)
        batches = [len(batch) for batch, _ in loader]
        assert sum(batches) == 200
        sizes[side] = batches[0]
    assert sizes[32] == 64
    assert sizes[32] > sizes[224] > sizes[384] >= 1
    assert 224**2 * sizes[224] < 2**19


class Killed(Dataset):
    """One of its images takes the process with it."""

    def __len__(self):
        return 30

    def __getitem__(self, position):
        if position == 17:
            os.kill(os.getpid(), signal.SIGKILL)
        return position


def run_into_a_kill():
    with decoding_errors():
        list(DataLoader(Killed(), 2, num_workers=2))


def test_a_process_that_is_killed_is_one_line_and_no_noise():
    # in an interpreter of its own: PyTorch's signal handler may speak up at any time
    code = (
        "from tests.evaluation.data import test_loading as here; import sys\n"
        "from isomax_evaluation.output.errors import InputError\n"
        "try: here.run_into_a_kill()\n"
        "except InputError as error: print(error); sys.exit(2)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stdout.startswith("a process that decodes images has ended (")
    assert "fewer --workers" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


@pytest.mark.parametrize("workers", [0, 1])
def test_tensors_of_several_sizes_are_said_to_be_that(workers):
    loader = DataLoader([torch.zeros(3, 8, 8 + at % 3) for at in range(6)], 3, num_workers=workers)
    said = r"have different sizes, got \[3, 8, 8\] .*transform"
    with pytest.raises(InputError, match=said), decoding_errors():
        list(loader)


class Broken(Dataset):
    """Its transform does not work."""

    def __len__(self):
        return 4

    def __getitem__(self, position):
        raise RuntimeError("the transform does not work")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_transform_that_does_not_work_is_not_called_a_full_memory(workers):
    with pytest.raises(RuntimeError, match="the transform does not work"), decoding_errors():
        list(DataLoader(Broken(), 2, num_workers=workers))


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), EOFError(), OSError(28, "x")])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as found, decoding_errors():
        raise error
    assert found.value is error
