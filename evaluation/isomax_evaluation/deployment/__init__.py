"""Exported files at work: folders scored into files, what precision costs."""
