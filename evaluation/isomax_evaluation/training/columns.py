"""What each file of a training's output folder holds, column by column."""

IMAGE = {
    "path": "the file; `image N` where the set has no files",
    "class": "its true class; empty for OOD images",
}
SPLITS = {
    "set": "the data set",
    "split": "`train` (the model, or only its detectors, were fitted on it), `validation` "
    "(held out: chooses epochs and hyperparameters), `calibration` (held out: sets temperature "
    "and threshold), `test`, `ood`, `tuning`",
    **IMAGE,
}
CLASSES = {
    "class": "an ID class",
    "images": "how many of the whole ID test set are of it",
    "recall": "share of these that the model classifies right",
    "false_alarm_rate": "share of these that lie above the model's threshold; empty if it has none",
}

#: file -> column, or key of each object -> what it means
FILES: dict[str, dict[str, str]] = {
    "summary.json": {
        "kept": "which weights were chosen on the validation images; absent with `--keep last`",
        "val_accuracy": "accuracy on the validation images",
        "temperature": "what logits are divided by before the softmax, chosen on the calibration "
        "images",
        "guarantee": "whether the false-alarm rate is promised: see the guide *Decide*",
        "test_accuracy": "accuracy on the test images",
        "test_ECE": "expected calibration error on them, 15 bins",
        "test_false_alarm_rate": "share of them that lie above the threshold",
        "classes": "the rows of `classes.csv`",
    },
    "metrics.jsonl": {
        "epoch": "counted from 1; those of the head alone come first",
        "time": "when it ended, seconds since 1970",
        "head_seconds": "of an epoch of the head alone: how long it took",
        "head_train_loss": "its training loss",
        "head_val_accuracy": "accuracy on the validation images; of its last epoch",
        "train_loss": "of an epoch of the whole network: mean training loss",
        "lr": "learning rate at its end",
        "images_per_second": "how fast it was",
        "val_accuracy": "accuracy on the validation images",
    },
    "classes.csv": CLASSES,
    "splits.csv": SPLITS,
}

#: of a run that is tracked
TRACKED = {
    "mlflow.db": "MLflow's record of the run, with `mlartifacts/`, where no server was given",
    "tracking.json": "what of the folder MLflow has",
    "system.jsonl": "processor, memory and disk while it ran, a line for each look",
}
OTHERS = {
    "README.md": "what each file holds, column by column",
    "model/": "the model folder: weights, configuration, calibration and model card, for "
    "`isomax export`, `isomax compare --models` and `timm.create_model('local-dir:...')`",
    "model.onnx": "the model as a file, with `--register`",
    "settings.json": "what was trained, on what, with which recipe",
    "provenance.json": "what it was made from: data sets with digests, versions, command",
    "checkpoint.pt": "weights, optimiser and schedule of the last epoch, to go on from",
    "best.pt": "the weights that the validation images chose so far",
    "outputs/": "features of the pretrained network, that the head was trained on; may be deleted, "
    "and are then computed again",
}
