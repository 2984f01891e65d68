"""From a recipe and a loss to a model folder."""
