"""A dataset by name or folder, as images with labels and class names."""
