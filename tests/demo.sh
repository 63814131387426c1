#!/usr/bin/env bash
# The main job, from nothing: packages, binaries, guest image, a private containerd, and a container
# that runs inside its own microVM. Run as root: sudo make demo. Nothing stays running afterwards.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "demo: run as root: sudo make demo" >&2; exit 1; }
step() { printf '\n==> %s\n' "$*"; }

step "packages (QEMU, containerd, busybox)"
tests/setup.sh packages
export PATH=$PATH:/usr/local/go/bin

step "binaries and guest image"
make --no-print-directory stage

dir=$(mktemp -d /tmp/coco-demo.XXXXXX)
daemon=
cleanup() {
  [ -n "$daemon" ] && kill "$daemon" 2>/dev/null && wait "$daemon" 2>/dev/null
  rm -rf "$dir"
}
trap cleanup EXIT

step "a private containerd in $dir"
go run ./tests/mkimage -out "$dir/busybox.tar" -ref docker.io/library/busybox:coco
cat >"$dir/config.toml" <<T
version = 2
root = "$dir/root"
state = "$dir/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$dir/c.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$dir/opt"
T
# Without a template, which would be made in the background and stay in memory.
printf '[runtime]\ntemplate = "off"\n' >"$dir/coco.toml"
COCO_CONF_FILE=$dir/coco.toml PATH=$PWD/dist/prefix/bin:$PATH containerd -c "$dir/config.toml" >"$dir/containerd.log" 2>&1 &
daemon=$!
ctr() { command ctr -a "$dir/c.sock" "$@"; }
for _ in $(seq 100); do ctr version >/dev/null 2>&1 && break; sleep 0.1; done
ctr images import "$dir/busybox.tar" >/dev/null

step "ctr run --runtime io.containerd.coco.v2 … (boots a microVM, runs the container in it)"
start=$(date +%s%N)
ctr run --rm --runtime io.containerd.coco.v2 docker.io/library/busybox:coco demo \
  /bin/sh -c 'echo "  hello from inside the microVM"; echo "  guest kernel: $(uname -r)"; grep -m1 MemTotal /proc/meminfo | sed "s/^/  /"' || {
  echo "demo: the container failed; containerd's log ends with:" >&2
  tail -20 "$dir/containerd.log" >&2
  exit 1
}
printf '  host kernel:  %s\n  took %d ms from exec to exit\n' "$(uname -r)" $((($(date +%s%N) - start) / 1000000))
