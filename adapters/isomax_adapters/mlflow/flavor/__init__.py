"""The model flavour: exported models, saved, logged and loaded as MLflow's own are."""
