"""pytorch-ood's benchmarks as images."""

import numpy as np
import pytorch_ood.benchmark
from pytorch_ood.benchmark import Benchmark

from isomax_adapters.runtime.decoding import RGB
from isomax_evaluation.data.images import OOD_LABEL, Images
from isomax_evaluation.data.torch_datasets import from_dataset, labels_of
from isomax_evaluation.output.errors import InputError, one_line

BENCHMARKS = tuple(name for name in pytorch_ood.benchmark.__all__ if name != "Benchmark")


def open_benchmark(
    benchmark: Benchmark | str, root: str | None = None
) -> tuple[Images, Images, list[Images]]:
    """Training and test images of a benchmark, and its OOD sets.

    :param benchmark: one whose images are left as they are (``transform=None``, or one that
        returns its argument), or the name of one of pytorch-ood's
    :param root: folder that a named one reads from, or downloads to
    :raises InputError: if there is no such benchmark, its data is missing, or its images are
        tensors already
    """
    if isinstance(benchmark, str):
        if benchmark not in BENCHMARKS:
            raise InputError(
                f"pytorch-ood has no benchmark {benchmark!r}; choose from {', '.join(BENCHMARKS)}"
            )
        made = getattr(pytorch_ood.benchmark, benchmark)
        try:
            benchmark = made(root or ".", transform=RGB)
        except Exception as error:  # of a download: anything
            raise InputError(
                f"cannot open benchmark {benchmark}: {one_line(error)}; give the folder that holds "
                "its data with --data-root"
            ) from error
    assert isinstance(benchmark, Benchmark)
    train_set = benchmark.train_set()
    (test_set,) = benchmark.test_sets(known=True, unknown=False)
    title = type(benchmark).__name__
    train, test = (
        from_dataset(dataset, title, *labels_of(dataset, title, classes=names or None))
        for names in [getattr(train_set, "classes", ())]
        for dataset in (train_set, test_set)
    )
    unknown = [
        from_dataset(dataset, name, np.full(len(dataset), OOD_LABEL), ())
        for name, dataset in zip(
            benchmark.ood_names, benchmark.test_sets(known=False, unknown=True), strict=True
        )
    ]
    return train, test, unknown
