"""One pass over images: what a model makes of them."""
