"""schemathesis over the endpoint's own description: whatever is sent, no 5xx, nothing undescribed, and no hang."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import requests

pytestmark = pytest.mark.shares("url")

#: `make soak` asks for 1,000 cases an operation, without a limit in time.
CASES = int(os.environ.get("SDXL_RAY_SOAK_CASES", "25"))
SECONDS = 15
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,unsupported_method,allow_header_conformance"
)


@pytest.mark.slow
def test_nothing_that_is_sent_breaks_the_endpoint(url: str, tmp_path: Path) -> None:
    limits = ["--max-examples", str(CASES), "--request-timeout", "60"]
    if CASES < 1000:
        limits += ["--max-time", str(SECONDS)]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--mode", "all"),
            *("--phases", "coverage,fuzzing", "--checks", CHECKS, *limits),
            *("--seed", "1", "--generation-database", "none", "--no-color", "--continue-on-failure"),
            *("--warnings", "off"),  # that no linked image is known to it
            *("--report", "ndjson", "--report-ndjson-path", "report.ndjson"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=7200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "No issues found" in done.stdout, done.stdout[-3000:]
    assert requests.get(f"{url}/ready", timeout=30).status_code == 200
