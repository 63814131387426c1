#!/usr/bin/env bash
# Runs fuzz targets one after the other.
#
#   tests/fuzz.sh 5m              every target for five minutes each
#   tests/fuzz.sh 5m agent/ Spec  those whose "package target" matches one of the patterns, in the patterns' order
#
# COCO_FUZZ_CPU makes internal/worktest judge processor time too: an input that takes too long is a finding.
# With COCO_FUZZ_RECORD=docs/fuzzing.md it keeps the table there; COCO_FUZZ_COMMIT=1 adds to a row the inputs that found
# new paths, of all that are kept, and the commit. A finding ends a target, not the run; the exit status tells.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:/usr/local/go/bin CGO_ENABLED=0 COCO_FUZZ_CPU=1
time=${1:-10s}
shift || true
record=${COCO_FUZZ_RECORD:-} findings=0

targets() {
  grep -rlE '^func Fuzz' --include='*_test.go' . | sort | while read -r file; do
    grep -oE '^func Fuzz[A-Za-z0-9_]+' "$file" | cut -d' ' -f2 | sed "s#^#$(dirname "$file" | cut -c3-) #"
  done
}

# note replaces a target's row in the record, or adds it.
note() { # PACKAGE TARGET SECONDS EXECS FINDINGS INPUTS
  [ -n "$record" ] || return 0
  local row="| $1 | $2 | $(date -u +%F) | $3 s | $4 | $5 |"
  [ -z "${COCO_FUZZ_COMMIT:-}" ] || row+=" $6 | $(git rev-parse --short=12 HEAD) |"
  if grep -qF "| $1 | $2 |" "$record"; then
    awk -v key="| $1 | $2 |" -v row="$row" 'index($0, key) == 1 { print row; next } { print }' "$record" >"$record.new"
  else
    { grep -v '^| .*| Fuzz' "$record"; { grep '^| .*| Fuzz' "$record" || true; echo "$row"; } | sort; } >"$record.new"
  fi
  mv "$record.new" "$record"
}

run() { # PACKAGE TARGET
  echo "== $1 $2 ($time), $(date -u +%T)"
  local out start=$SECONDS found=none
  out=$(mktemp)
  # Without the bound, making one large input smaller takes a minute in which nothing new is tried.
  if ! go test -run '^$' -fuzz "^$2\$" -fuzztime "$time" -fuzzminimizetime 1s ${COCO_FUZZ_FLAGS:-} "./$1" >"$out" 2>&1; then
    found=$(grep -oE 'testdata/fuzz/[^ ]+' "$out" | head -1)
    found=${found:-"yes: $(grep -m1 -E -- '--- FAIL|panic|rror' "$out")"}
    findings=$((findings + 1))
    tail -40 "$out"
  fi
  local execs inputs
  execs=$(grep -oE 'execs: [0-9]+' "$out" | tail -1 | cut -d' ' -f2)
  inputs=$(grep -oE 'new interesting: [0-9]+ \(total: [0-9]+' "$out" | tail -1 | sed 's/.*: \(.*\) (total: /\1 of /')
  tail -2 "$out"
  rm -f "$out"
  note "$1" "$2" $((SECONDS - start)) "${execs:-0}" "$found" "${inputs:-0}"
}

[ $# -gt 0 ] || set -- .
done=' '
for pattern in "$@"; do
  while read -r pkg target; do
    case $done in *" $pkg:$target "*) continue ;; esac
    done+="$pkg:$target "
    run "$pkg" "$target"
  done < <(targets | grep -E -- "$pattern")
done
[ "$findings" = 0 ] || { echo "fuzz: $findings targets have findings" >&2; exit 1; }
