#!/usr/bin/env bash
# Run the tests: the fast set (5 minutes at most), or everything.
#
#   scripts/test.sh                      fast set
#   scripts/test.sh --all                slow and stress tests too
#   scripts/test.sh tests/unit -k token  other arguments go to pytest
set -u
source "$(dirname "$0")/setup.sh"
args=()
for arg in "$@"; do
    if [ "$arg" = --all ]; then args+=(-m ''); else args+=("$arg"); fi
done
setup_for dev
exec $PY -m pytest "${args[@]}"
