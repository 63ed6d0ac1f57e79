#!/usr/bin/env bash
# Install what is missing, boot dfuser and mount its demo world at mountpoints/root.
# Arguments go to "dfuser demo"; Ctrl-C unmounts.
set -u
source "$(dirname "$0")/setup.sh"
setup_for run
# A mount left by a killed run makes mkdir fail; dfuser recognises and clears it.
mkdir -p mountpoints/root 2>/dev/null
exec .venv/bin/dfuser demo mountpoints/root "$@"
