"""For the end of a script of several processes: gloo's threads that are left over may abort one."""

NONE_LEFT = """
from pathlib import Path

names = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
assert not [name for name in names if "gloo" in name], names
"""
