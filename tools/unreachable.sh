#!/usr/bin/env bash
# Fails on functions outside of tests/ that no program reaches, unless tools/unreachable.txt explains them, and on lines of that
# file that explain nothing any more. TOOLS is the directory of deadcode.
set -euo pipefail
cd "$(dirname "$0")/.."
module=$(awk '/^module /{print $2}' go.mod)
found=$("$TOOLS/deadcode" -f "{{range .Funcs}}{{println \"$module\" \$.Path .Name .Position}}{{end}}" ./cmd/... ./tests/... |
  awk -v m="$module/" '$1 { path = $2; sub(m, "", path); if (path !~ /^tests\// && path !~ /test$/) print path, $3, $4 }')
awk '
  NR == FNR { sub(/#.*/, ""); if (NF) { rule[++n] = $1 " " $2 }; next }
  {
    name = $1 " " $2; known = 0
    for (i = 1; i <= n; i++) {
      p = rule[i]
      if (p == name || (sub(/\*$/, "", p) && index(name, p) == 1)) { used[i] = known = 1 }
    }
    if (!known) { print $3 ": no program reaches " $1 "." $2 ": delete it, or explain it in tools/unreachable.txt"; bad = 1 }
  }
  END {
    for (i = 1; i <= n; i++) if (!used[i]) { print "tools/unreachable.txt: " rule[i] " is reached, or gone: take the line out"; bad = 1 }
    exit bad
  }' tools/unreachable.txt <(printf '%s\n' "$found" | grep .)
