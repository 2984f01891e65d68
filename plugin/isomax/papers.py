"""The publications that the components' ``info`` records cite."""

from pytorch_ood.api import Paper

ISOMAX = Paper(
    title="Entropic Out-of-Distribution Detection: Seamless Detection of Unknown Examples",
    venue="IEEE TNNLS",
    year=2022,
    url="https://arxiv.org/abs/2006.04005",
    code="https://github.com/dlmacedo/entropic-out-of-distribution-detection",
)
ISOMAX_PLUS = Paper(
    title="Enhanced Isotropy Maximization Loss: Seamless and High-Performance "
    "Out-of-Distribution Detection Simply Replacing the SoftMax Loss",
    venue="arXiv",
    year=2021,
    url="https://arxiv.org/abs/2105.14399",
    code="https://github.com/dlmacedo/entropic-out-of-distribution-detection",
)
DISMAX = Paper(
    title="Distinction Maximization Loss: Efficiently Improving Out-of-Distribution Detection "
    "and Uncertainty Estimation by Replacing the Loss and Calibrating",
    venue="arXiv",
    year=2022,
    url="https://arxiv.org/abs/2205.05874",
    code="https://github.com/dlmacedo/distinction-maximization-loss",
)
MAHALANOBIS_PP = Paper(
    title="Mahalanobis++: Improving OOD Detection via Feature Normalization",
    venue="ICML",
    year=2025,
    url="https://arxiv.org/abs/2505.18032",
    code="https://github.com/mueller-mp/maha-norm",
)
