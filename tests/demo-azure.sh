#!/usr/bin/env bash
# Containers of a pod ask their guest for keys of a vault, as they would ask Microsoft's sidecar: each gets its own key,
# and another one's, a vault that the policy does not name, and a key for SEV-SNP are refused with the reason. The
# services are coco's fakes, and the platform proves nothing, so both sides say insecure. Run as root: sudo make
# demo-azure. Nothing stays running afterwards.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "demo-azure: run as root: sudo make demo-azure" >&2; exit 1; }
step() { printf '\n==> %s\n' "$*"; }

step "packages (QEMU)"
tests/setup.sh packages
export PATH=$PATH:/usr/local/go/bin

step "binaries and guest image"
make --no-print-directory stage

step "fakes of Azure's services, and a pod whose containers ask for keys"
out=$(mktemp /tmp/coco-demo-azure.XXXXXX)
trap 'rm -f "$out"' EXIT
COCO_GUEST_DIR=$PWD/dist/guest COCO_REQUIRE=all flock -o dist/test.lock go test -count=1 -v -timeout 20m \
  -run '^TestAzureEndpoints$' ./tests/agent >"$out" 2>&1 || {
  cat "$out" >&2
  exit 1
}
sed -nE 's/^ +azure_test.go:[0-9]+: /  /p; s/^ +(after [0-9.]+m?s: .*)/      \1/p' "$out" | cut -c1-400
