"""Models x detectors x OOD sets, in one tidy table; its report."""
