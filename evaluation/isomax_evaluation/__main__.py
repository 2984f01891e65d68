"""``python -m isomax_evaluation``, for launchers such as torchrun and ``accelerate launch``."""

from isomax_evaluation.cli import main

main()
