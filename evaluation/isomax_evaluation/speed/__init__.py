"""What detectors and exported files cost."""
