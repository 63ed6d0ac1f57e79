#!/usr/bin/env bash
# Run the benchmarks; each prints its ratios to named peers, interleaved in one run.
#
#   scripts/bench.sh                all of benchmarks/bench_*.py
#   scripts/bench.sh lwkt --help    only bench_lwkt.py, with arguments for it
set -u
source "$(dirname "$0")/setup.sh"
setup_for dev
if [ $# -gt 0 ]; then
    name=$1
    shift
    [ -e "benchmarks/bench_$name.py" ] || die "no such benchmark: $name"
    exec $PY "benchmarks/bench_$name.py" "$@"
fi
status=0
for file in benchmarks/bench_*.py; do
    [ -e "$file" ] || die "there are no benchmarks in benchmarks/"
    printf '\n== %s\n' "$file"
    $PY "$file" || status=1
done
exit $status
