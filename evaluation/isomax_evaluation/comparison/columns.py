"""What each file of a comparison's output folder holds, column by column."""

from isomax_evaluation.training.columns import CLASSES, IMAGE, SPLITS, TRACKED

_MODEL = {
    "loss": "the model: the loss it was trained with here, or the name of a given one",
    "seed": "which of the models of this name",
}
_CELL = {
    **_MODEL,
    "detector": "the detector, by the name that `isomax compare --detectors` takes",
    "ood": "the OOD set",
}
_METRICS = {
    "AUROC": "area under the ROC curve, in [0, 1]; 0.5 is chance",
    "AUPR-IN": "area under the precision-recall curve, ID images as the positive class",
    "AUPR-OUT": "the same, OOD images as the positive class",
    "FPR95TPR": "share of ID images rejected at the threshold that rejects 95% of the OOD images",
    "AUTC": "area under the threshold curve, pytorch-ood's; empty where it is not defined",
    "FPR95TPR-IN": "share of OOD images accepted at the threshold that accepts 95% of ID images",
}

#: file -> column -> what it means
FILES: dict[str, dict[str, str]] = {
    "results.csv": {
        **_CELL,
        "accuracy": "share of the whole ID test set that is classified right",
        "ECE": "expected calibration error on it, 15 bins, at the model's temperature if any",
        **_METRICS,
    },
    "intervals.csv": {
        **{name: text for name, text in _CELL.items() if name != "seed"},
        **{
            f"{metric} {end}": f"{end} end of the 95% bootstrap interval of {metric}, over test "
            "images, of the mean over seeds"
            for metric in ("AUROC", "AUPR-IN", "AUPR-OUT", "FPR95TPR")
            for end in ("low", "high")
        },
    },
    "costs.csv": {
        "loss": _MODEL["loss"],
        "detector": _CELL["detector"],
        "fitted": "whether it is fitted on training images",
        "gradients": "whether it takes a backward pass for each image",
        "hyperparameters": "how many it has to be searched",
        "forward": "forward passes through the network for a batch",
        "backward": "backward passes",
        "ms_per_image": "milliseconds per image to classify and score a batch of 8, median",
        "relative_time": "the same as a multiple of plain softmax classification",
        "spread": "half of the 95% interval of that multiple; empty if measured once or twice",
        "fit_images": "on how many of them, where it was fitted on a random sample; empty: on all",
    },
    "errors.csv": {**_CELL, "error": "why this cell of the table has no value"},
    "classes.csv": {**_MODEL, **CLASSES},
    "left_out.csv": {
        "loss": _MODEL["loss"],
        "detector": _CELL["detector"],
        "reason": "why it cannot work on the model",
    },
    "deployable.csv": {
        "loss": _MODEL["loss"],
        "detector": _CELL["detector"],
        "obstacle": "why no ONNX file can hold it; empty if one can",
        "command": "what makes it one",
    },
    "hyperparameters.csv": {
        **{name: text for name, text in _CELL.items() if name != "ood"},
        "hyperparameter": "its name",
        "value": "what the detector ran with",
        "chosen_on": "the OOD set it was chosen on; empty for the detector's own default",
    },
    "runs/MODEL-seedN/predictions.csv": {
        "set": "ID test set or OOD set",
        **IMAGE,
        "predicted": "the class that the model gives it",
        "confidence": "probability of that class, at the model's temperature if it has one",
        "score": "outlier score of the model's own calibrated detector, larger is more OOD; empty "
        "if it has none",
        "is_ood": "whether that lies above the model's threshold; empty if it has none",
    },
    "runs/MODEL-seedN/tuning.csv": {
        # there only with --tune: on the images that hyperparameters were chosen by
        **_CELL,
        **_METRICS,
        "AUROC low": "low end of the 95% bootstrap interval of AUROC, over these images",
    },
    "runs/MODEL-seedN/splits.csv": SPLITS,
    "runs/MODEL-seedN/scores/SET.csv": {
        **IMAGE,
        "(a column per detector)": "its score, float32, larger is more OOD",
    },
}

OTHERS = {
    "report.html": "the tables with plots and examples, one file",
    "plots/": "the report's plots as pictures",
    "model.onnx": "one of the calibrated models, for `isomax score`; `model.json` says which",
    "chosen.onnx": "the row of the table that was chosen, or asked for, as a file; `chosen.json` "
    "says which and by what, or why there is none, `chosen/` is its model folder",
    "samples/": "a few of the images of each set, to try a file on",
    "settings.json": "what the comparison is of: what was asked for last",
    "provenance.json": "what it was made from: data sets with digests, versions, command",
    "outputs/": "logits, pooled features (float32) and labels of each model on each set, as "
    "memory-mapped arrays under a key of weights, preprocessing and images; may be deleted, and is "
    "then computed again",
    "cache/": "scores, costs, metrics and chosen hyperparameters, a file for each under a key of "
    "weights, preprocessing, seed, detector, hyperparameters and images; may be deleted, and they "
    "are then computed again",
    "runs/MODEL-seedN/": "the tables of one model, and the files of its training if that was here",
    "runs/MODEL-seedN/model/": "a model that was trained here, as a model folder",
    **TRACKED,
}
