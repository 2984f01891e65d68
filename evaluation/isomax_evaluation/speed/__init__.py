"""What heads, detectors and exported files cost."""
