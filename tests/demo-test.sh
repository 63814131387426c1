#!/usr/bin/env bash
# Shows a test as a demo: `demo-test.sh TEST [PACKAGE]` (./tests/integration) prepares what it needs, runs it as root and
# prints what it logs, or all of its output if it fails. The make targets demo-secret, demo-attest and demo-azure call it.
# Nothing stays running.
set -euo pipefail
cd "$(dirname "$0")/.."
test=$1 package=${2:-./tests/integration}
[ "$(id -u)" = 0 ] || { echo "demo-test: run as root: sudo make demo-secret, demo-attest or demo-azure" >&2; exit 1; }
step() { printf '\n==> %s\n' "$*"; }

step "packages (QEMU, OVMF, swtpm, containerd, CNI plugins)"
tests/setup.sh packages
export PATH=$PATH:/usr/local/go/bin

step "binaries and guest image"
make --no-print-directory stage

step "the services that are asked, and VMs whose containers ask"
out=$(mktemp /tmp/coco-demo.XXXXXX)
trap 'rm -f "$out"' EXIT
COCO_GUEST_DIR=$PWD/dist/guest COCO_REQUIRE=all flock -o dist/test.lock go test -count=1 -v -timeout 20m \
  -run "^$test\$" "$package" >"$out" 2>&1 || {
  cat "$out" >&2
  exit 1
}
sed -nE 's/^ +[a-z]+_test.go:[0-9]+: /  /p; s/^    {4,}/    /p' "$out"
