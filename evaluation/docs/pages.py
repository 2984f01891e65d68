"""The pages of the documentation that are written by hand: name and file."""

PAGES = {
    "fine-tune": "evaluation/isomax_evaluation/training/guide.md",
    "compare": "evaluation/isomax_evaluation/comparison/guide.md",
    "deploy": "evaluation/isomax_evaluation/deployment/guide.md",
    "track": "adapters/isomax_adapters/mlflow/guide.md",
    "decide": "evaluation/isomax_evaluation/deployment/deciding.md",
    "troubleshooting": "evaluation/isomax_evaluation/troubleshooting.md",
    "how-it-works": "plugin/isomax/guide.md",
    "extend": "CONTRIBUTING.md",
    "results": "evaluation/benchmarks/RESULTS.md",
    "changes": "CHANGELOG.md",
    "security": "SECURITY.md",
}
