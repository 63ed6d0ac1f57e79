#!/usr/bin/env bash
# Run the benchmarks; each prints its ratios to named peers, interleaved in one run.
#
#   scripts/bench.sh                all of them
#   scripts/bench.sh mount --quick  only benchmarks/mount.py, with arguments for it
set -u
source "$(dirname "$0")/setup.sh"
setup_for dev
known=()
for file in benchmarks/*.py; do
    grep -q '^if __name__ == "__main__"' "$file" && known+=("$(basename "$file" .py)")
done
if [ $# -gt 0 ]; then
    name=$1
    shift
    [[ " ${known[*]} " == *" $name "* ]] || die "no such benchmark: $name (there are: ${known[*]})"
    exec $PY -m "benchmarks.$name" "$@"
fi
status=0
for name in "${known[@]}"; do
    printf '\n== %s\n' "$name"
    $PY -m "benchmarks.$name" || status=1
done
exit $status
