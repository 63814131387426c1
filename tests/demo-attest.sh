#!/usr/bin/env bash
# A container without privileges shows what it can prove: on platform vtpm, with no switch that is insecure, it asks its
# guest for evidence and for a token of the key broker. The evidence is verified on the host against values that were
# predicted beforehand. Run as root: sudo make demo-attest. Nothing stays running afterwards.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "demo-attest: run as root: sudo make demo-attest" >&2; exit 1; }
step() { printf '\n==> %s\n' "$*"; }

step "packages (QEMU, OVMF, swtpm, containerd, CNI plugins)"
tests/setup.sh packages
export PATH=$PATH:/usr/local/go/bin

step "binaries and guest image"
make --no-print-directory stage

step "broker and container (its VM boots through its firmware)"
out=$(mktemp /tmp/coco-demo-attest.XXXXXX)
trap 'rm -f "$out"' EXIT
COCO_GUEST_DIR=$PWD/dist/guest COCO_REQUIRE=all flock -o dist/test.lock go test -count=1 -v -timeout 20m \
  -run '^TestAnUnprivilegedContainerShowsItsClaims$' ./tests/integration >"$out" 2>&1 || {
  cat "$out" >&2
  exit 1
}
sed -nE 's/^ +claims_test.go:[0-9]+: /  /p; s/^    {4,}/    /p' "$out"
