"""What is measured of heads and exported graphs."""

import io

import pytest
import torch
from rich.console import Console

from evaluation.benchmarks.costs.exports import measure
from evaluation.benchmarks.costs.heads import head_ratios, peak_memory


def test_peak_memory_is_what_is_held_at_once():
    def hold(count):
        def run():
            kept = [torch.empty(250_000) for _ in range(count)]
            assert len(kept) == count

        return run

    assert peak_memory(hold(1)) == pytest.approx(1e6, rel=0.01)
    assert peak_memory(hold(5)) == pytest.approx(5e6, rel=0.01)


def test_ratios_of_a_tiny_head():
    ratios = head_ratios(8, 16, 5, quick=True)
    assert len(ratios) == 6
    assert all(ratio > 0 for ratio in ratios)


def test_an_exported_file_is_measured_against_its_parts(photos):
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(measure(photos / "ash", quick=True, model="test_resnet", size=32))
    text = console.export_text()
    rows = [[cell.strip() for cell in line.split("│")] for line in text.splitlines()]
    times = {row[1]: float(row[2]) for row in rows if len(row) == 5}
    assert len(times) == 9
    assert all(time > 0 for time in times.values())
    assert "decoding 40 files" in times
