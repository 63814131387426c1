#!/usr/bin/env bash
# A pod proves what it is and gets its secrets: a key broker, a CA for the node's TPMs, and pods on platform vtpm, with no
# switch that is insecure. The right pod gets them; another kernel parameter, other initdata and an absent broker leave it
# without, and each error is shown. Run as root: sudo make demo-secret. Nothing stays running afterwards.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "demo-secret: run as root: sudo make demo-secret" >&2; exit 1; }
step() { printf '\n==> %s\n' "$*"; }

step "packages (QEMU, OVMF, swtpm, containerd, CNI plugins)"
tests/setup.sh packages
export PATH=$PATH:/usr/local/go/bin

step "binaries and guest image"
make --no-print-directory stage

step "broker and pods (a VM boots through its firmware for each)"
out=$(mktemp /tmp/coco-demo-secret.XXXXXX)
trap 'rm -f "$out"' EXIT
COCO_GUEST_DIR=$PWD/dist/guest COCO_REQUIRE=all flock -o dist/test.lock go test -count=1 -v -timeout 20m \
  -run '^TestAPodProvesWhatItIsAndGetsItsSecrets$' ./tests/integration >"$out" 2>&1 || {
  cat "$out" >&2
  exit 1
}
sed -nE 's/^ +secrets_test.go:[0-9]+: /  /p; s/^    {4,}/    /p' "$out"
