"""The full reliability tests of the endpoint, which CI runs shortened: `make soak`, about 40 minutes on two cores.

python tests/soak/run.py            # everything
python tests/soak/run.py memory     # one of: faults fuzz memory
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = {
    "faults": ["tests/serve/http/test_overload.py", "tests/serve/http/test_faults.py"],
    "fuzz": ["tests/serve/http/test_fuzz.py"],
}


def _pytest(files: list[str]) -> int:
    command = [
        sys.executable,
        "-m",
        "pytest",
        *files,
        "-v",
        "-m",
        "not gpu",
        "-o",
        "log_cli=true",
        "-o",
        "log_cli_level=INFO",
    ]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "SDXL_RAY_SOAK_S": "60", "SDXL_RAY_SOAK_CASES": "1000"}, check=False
    ).returncode


def main() -> None:
    """Run what is named, or all of it; the exit code is 1 when anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("named", nargs="*", metavar="WHAT", help="faults, fuzz or memory (default: all three)")
    named = parser.parse_args().named or [*TESTS, "memory"]
    if unknown := [name for name in named if name not in (*TESTS, "memory")]:
        parser.error(f"no soak test '{unknown[0]}': faults, fuzz or memory")
    failed = [name for name in named if name in TESTS and _pytest(TESTS[name])]
    if "memory" in named:
        memory = subprocess.run([sys.executable, str(Path(__file__).with_name("memory.py"))], cwd=ROOT, check=False)
        failed += ["memory"] if memory.returncode else []
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
