#!/usr/bin/env bash
# Everything that judges the sources without running them. Runs all, then fails if one did.
set -u
source "$(dirname "$0")/setup.sh"
setup_for dev
failed=()
check() {
    local name=$1 output
    shift
    if output=$("$@" 2>&1); then
        printf '%-14s ok\n' "$name"
    else
        printf '%-14s FAILED\n%s\n' "$name" "$output"
        failed+=("$name")
    fi
}
check "ruff check" .venv/bin/ruff check .
check "ruff format" .venv/bin/ruff format --check .
check mypy .venv/bin/mypy
check imports .venv/bin/lint-imports
check codespell .venv/bin/codespell .
check "docs/map.md" $PY scripts/map.py --check
[ ${#failed[@]} -eq 0 ] || { printf 'checks failed: %s\n' "${failed[*]}"; exit 1; }
