#!/usr/bin/env bash
# Install the Debian packages that marked tests drive: a real browser for the report.
set -euo pipefail
command -v chromium >/dev/null && exit 0
apt-get update -q >/dev/null
apt-get install -y -q --no-install-recommends chromium >/dev/null
