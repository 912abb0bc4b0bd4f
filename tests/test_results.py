"""What is published of the measurements is what they say."""

import subprocess
import sys
from pathlib import Path

TABLES = Path(__file__).parent.parent / "benchmarks" / "tables.py"


def test_tables_are_made_from_the_records() -> None:
    checked = subprocess.run([sys.executable, TABLES, "--check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
