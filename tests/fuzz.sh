#!/usr/bin/env bash
# Runs every fuzz target of the repository for the given time each: tests/fuzz.sh 5m [PATTERN]
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-10s} only=${2:-.}
grep -rlE '^func Fuzz' --include='*_test.go' . | sort | while read -r file; do
  pkg=$(dirname "$file")
  grep -oE '^func Fuzz[A-Za-z0-9_]+' "$file" | cut -d' ' -f2 | grep -E "$only" | while read -r target; do
    echo "== $pkg $target ($time)"
    go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$pkg"
  done
done
