"""The tables of a comparison as a page, plots, and lines in a terminal."""
