"""Doors to the neighbours: one subpackage each for timm, pytorch-ood, MLflow and ONNX."""
