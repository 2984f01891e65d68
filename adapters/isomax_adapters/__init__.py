"""Doors to the neighbours: one subpackage each for timm, pytorch-ood, MLflow and ONNX."""

import os

# ONNX Runtime's own builds since 1.29 report use, with names and hashes of models, to Microsoft,
# unless this is set before they are imported; whoever wants that sets it to 0
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
