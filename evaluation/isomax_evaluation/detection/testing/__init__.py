"""One model under all detectors, on the same images: scores, metrics, costs."""
