"""Known weaknesses of locked libraries, by pip-audit.

    python scripts/release/audit.py requirements.lock requirements-dev.lock

It asks PyPI's database of advisories. Where that cannot be reached, or does not know a library, it says so;
that is no failure, for a machine without a network must not be stopped by it. Ends with 1 when a library has
a known weakness.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TIMEOUT_S = 900


def audit(lock: str) -> bool:
    """Print what is known of a lock's libraries; whether one of them has a known weakness."""
    command = [
        str(Path(sys.executable).with_name("pip-audit")),
        "--disable-pip",
        "--require-hashes",
        "-f",
        "json",
    ]
    command += ["--progress-spinner", "off", "--timeout", "20", "-r", lock]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        libraries = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        print(f"{lock}: SKIPPED, the database of advisories did not answer within {TIMEOUT_S} s")
        return False
    except (ValueError, KeyError):
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        print(f"{lock}: SKIPPED, nothing was looked at: {reason}")
        return False
    looked_at = [one for one in libraries if "skip_reason" not in one]
    print(f"{lock}: {len(looked_at)} of {len(libraries)} libraries were looked at")
    if not looked_at:
        print(f"  SKIPPED: {libraries[0]['skip_reason'] if libraries else 'the lock is empty'}")
    weak = [one for one in looked_at if one["vulns"]]
    for one in weak:
        for found in one["vulns"]:
            fixed = ", ".join(found["fix_versions"]) or "no version"
            print(f"  {one['name']} {one['version']}: {found['id']}, mended in {fixed}")
    return bool(weak)


if __name__ == "__main__":
    sys.exit(max(map(int, map(audit, sys.argv[1:])), default=0))
