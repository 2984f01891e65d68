"""``python -m isomax_evaluation``, for launchers such as torchrun and ``accelerate launch``."""

from isomax_evaluation.cli import main

if __name__ == "__main__":  # a process that tracks or decodes imports this file again
    main()
