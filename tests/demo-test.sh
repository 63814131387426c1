#!/usr/bin/env bash
# Shows a test of ./tests/integration as a demo: `demo-test.sh TEST` prepares what it needs, runs it as root and prints what
# it logs, or all of its output if it fails. The make targets demo-secret and demo-attest call it. Nothing stays running.
set -euo pipefail
cd "$(dirname "$0")/.."
test=$1
[ "$(id -u)" = 0 ] || { echo "demo-test: run as root: sudo make demo-secret, sudo make demo-attest" >&2; exit 1; }
step() { printf '\n==> %s\n' "$*"; }

step "packages (QEMU, OVMF, swtpm, containerd, CNI plugins)"
tests/setup.sh packages
export PATH=$PATH:/usr/local/go/bin

step "binaries and guest image"
make --no-print-directory stage

step "broker and pods (each VM boots through its firmware)"
out=$(mktemp /tmp/coco-demo.XXXXXX)
trap 'rm -f "$out"' EXIT
COCO_GUEST_DIR=$PWD/dist/guest COCO_REQUIRE=all flock -o dist/test.lock go test -count=1 -v -timeout 20m \
  -run "^$test\$" ./tests/integration >"$out" 2>&1 || {
  cat "$out" >&2
  exit 1
}
sed -nE 's/^ +[a-z]+_test.go:[0-9]+: /  /p; s/^    {4,}/    /p' "$out"
