#!/usr/bin/env bash
# Installs what the tests need on Debian 12, as root. Each argument is one thing; what is there
# already costs nothing.
#
#   packages         Debian packages: QEMU, containerd 1.6, runc, CNI plugins, busybox, tools
#   containerd-1.7   containerd 1.7 from Debian trixie, unpacked into the cache (not installed)
#   containerd-2.1   containerd 2.1 from Debian sid, likewise
#   containerd-2.4   containerd 2.4 with ctr and its client test suite, built from the Go module proxy
#   qemu-10.0        QEMU 10.0 from Debian's backports, unpacked into the cache (not installed)
#   qemu-11.1        QEMU 11.1 from Debian sid with the libraries that it needs, likewise
#   virtiofsd-1.13   virtiofsd from Debian trixie with the libraries that it needs, likewise: Debian 12 has QEMU's old one
#   docker           Docker 26 from Debian trixie, likewise: Debian 12's refuses the names of other shims
#   docker-28        Docker 28 from Debian sid, likewise; make frontends runs it beside 26
#   compose          Docker's compose plugin 2 from Debian trixie, likewise
#   podman           Podman with conmon and crun, from Debian
#   python           a Python with other implementations of JOSE and JCS; tests that compare with them skip without it
#   chromium         Debian's Chromium without windows, for `make kbs-page`
#   kubelet          the kubelet of Kubernetes 1.37, built from the Go module proxy (about five minutes)
#   k8s              etcd and a static bash from Debian; API server, controller manager, scheduler, kubectl and the e2e suite with its
#                    test images' programs, built likewise (about ten minutes more)
#
# The cache is $COCO_TEST_CACHE, by default /var/cache/coco/test.
set -euo pipefail
CACHE=${COCO_TEST_CACHE:-/var/cache/coco/test}
CONTAINERD_24=v2.4.2
K8S=v1.37.2
PACKAGES=(qemu-system-x86 containerd runc containernetworking-plugins busybox-static iproute2 iptables
  erofs-utils cryptsetup-bin swtpm tpm2-tools ovmf make git ca-certificates)

say() { echo "setup: $*" >&2; }

packages() {
  local missing=()
  for p in "${PACKAGES[@]}"; do
    dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
  done
  [ ${#missing[@]} -eq 0 ] || debian "${missing[@]}"
}

debian() { # PACKAGE…
  say "installing $*"
  apt-get update -qq
  # policy-rc.d keeps Debian from starting a containerd that nobody asked for.
  local made=
  [ -e /usr/sbin/policy-rc.d ] || { printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d; made=1; }
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null || { [ -n "$made" ] && rm -f /usr/sbin/policy-rc.d; exit 1; }
  [ -n "$made" ] && rm -f /usr/sbin/policy-rc.d
  return 0
}

# private_apt runs apt with a state of its own, so that the host's sources stay as they are.
private_apt() { # SUITE COMMAND ARGS…
  local suite=$1 tool=$2 s=$CACHE/apt-$1; shift 2
  mkdir -p "$s"/{lists/partial,cache/archives/partial}
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $suite main" >"$s/sources.list"
  "$tool" -qq -o Dir::Etc::sourcelist="$s/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::preferences=/dev/null \
    -o Dir::Etc::preferencesparts=/dev/null -o Dir::State::lists="$s/lists" -o Dir::Cache="$s/cache" -o Dir::State::status=/dev/null \
    -o APT::Sandbox::User=root "$@"
}

containerd_from() { # VERSION SUITE
  local dir=$CACHE/containerd-$1
  [ -x "$dir/bin/containerd" ] && return
  say "unpacking containerd $1 from Debian $2"
  rm -rf "$dir"; mkdir -p "$dir/deb" "$dir/bin"
  private_apt "$2" apt-get update
  (cd "$dir/deb" && private_apt "$2" apt-get download containerd && dpkg -x containerd_*.deb .)
  mv "$dir"/deb/usr/bin/* "$dir/bin/"
  rm -rf "$dir/deb"
  "$dir/bin/containerd" --version >&2
}

containerd_24() {
  local dir=$CACHE/containerd-2.4
  [ -x "$dir/bin/containerd" ] && [ -x "$dir/bin/client.test" ] && [ -x "$dir/bin/cri.test" ] && return
  say "building containerd $CONTAINERD_24 (about two minutes)"
  mkdir -p "$dir/src" "$dir/bin"
  cd "$dir/src"
  printf 'module coco/containerd\n\ngo 1.26\n\nrequire github.com/containerd/containerd/v2 %s\n' "$CONTAINERD_24" >go.mod
  printf '//go:build tools\n\npackage tools\n\nimport (\n\t_ "github.com/containerd/containerd/v2/cmd/containerd"\n\t_ "github.com/containerd/containerd/v2/integration/client"\n)\n' >tools.go
  export GOFLAGS=-mod=mod CGO_ENABLED=0
  local ld="-s -w -X github.com/containerd/containerd/v2/version.Version=${CONTAINERD_24#v}"
  for c in containerd-shim-runc-v2 ctr containerd; do
    go build -trimpath -buildvcs=false -ldflags "$ld" -o "$dir/bin/$c" "github.com/containerd/containerd/v2/cmd/$c"
  done
  go test -c -trimpath -ldflags '-s -w' -o "$dir/bin/client.test" github.com/containerd/containerd/v2/integration/client
  go test -c -trimpath -ldflags '-s -w' -o "$dir/bin/cri.test" github.com/containerd/containerd/v2/integration
  cd - >/dev/null
}

# k8s_module makes a module that requires Kubernetes, with the staging modules replaced by their releases.
k8s_module() { # DIR
  mkdir -p "$1/src" "$1/bin"
  cd "$1/src"
  [ -s go.sum ] && return
  local upstream
  upstream=$(cd / && go mod download -json "k8s.io/kubernetes@$K8S" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
  [ -n "$upstream" ] || { say "the Go module proxy does not answer for k8s.io/kubernetes@$K8S"; return 1; }
  { printf 'module coco/k8s\n\ngo 1.26.0\n\ngodebug default=go1.26\n\nrequire k8s.io/kubernetes %s\n\nreplace (\n' "$K8S"
    grep -oE 'k8s.io/[a-z-]+ => ./staging' "$upstream/go.mod" | awk -v v="v0.${K8S#v1.}" '{print "\t"$1" => "$1" "v}'
    printf ')\n'; } >go.mod
  printf '//go:build tools\n\npackage tools\n\nimport _ "k8s.io/kubernetes/cmd/kubelet/app"\n' >tools.go
  cp "$upstream/go.sum" go.sum && chmod u+w go.sum
}

k8s_build() { # DIR, then NAME=PACKAGE …
  local dir=$1 v=k8s.io/component-base/version name pkg; shift
  local minor=${K8S#v1.}; minor=${minor%%.*}
  local ld="-s -w -X $v.gitVersion=$K8S -X $v.gitMajor=1 -X $v.gitMinor=$minor -X $v.gitTreeState=clean"
  (
    k8s_module "$dir"
    export GOFLAGS=-mod=mod CGO_ENABLED=0
    for want in "$@"; do
      name=${want%%=*} pkg=${want#*=}
      [ -x "$dir/bin/$name" ] && continue
      say "building $name of Kubernetes $K8S"
      case $name in
        *.test) go test -c -trimpath -ldflags "$ld" -o "$dir/bin/$name.new" "$pkg" ;;
        *) go build -trimpath -buildvcs=false -ldflags "$ld" -o "$dir/bin/$name.new" "$pkg" ;;
      esac
      mv "$dir/bin/$name.new" "$dir/bin/$name"
    done
  )
}

kubelet() {
  local dir=$CACHE/k8s-1.37
  [ -x "$dir/bin/kubelet" ] && return
  k8s_build "$dir" kubelet=k8s.io/kubernetes/cmd/kubelet
}

k8s() {
  local dir=$CACHE/k8s-1.37 k=k8s.io/kubernetes
  [ -x /bin/bash-static ] && command -v etcd >/dev/null || debian etcd-server bash-static
  k8s_build "$dir" kubelet=$k/cmd/kubelet kube-apiserver=$k/cmd/kube-apiserver kube-scheduler=$k/cmd/kube-scheduler \
    kube-controller-manager=$k/cmd/kube-controller-manager kubectl=$k/cmd/kubectl agnhost=$k/test/images/agnhost \
    nonewprivs=$k/test/images/nonewprivs ginkgo=github.com/onsi/ginkgo/v2/ginkgo e2e.test=$k/test/e2e
}

# qemu_ready makes an unpacked QEMU runnable as $1/bin/qemu-system-x86_64. Modules of the host's QEMU are of another
# build and end it: it must not find them. $2 is what runs it, with its words.
qemu_ready() {
  local dir=$1 run=$2
  sed -i 's#/usr/lib/x86_64-linux-gnu/qemu#/nonexistent/linux-gnu/modules#' "$dir/lib/qemu-system-x86_64"
  mkdir -p "$dir/bin"
  cat >"$dir/bin/new" <<W
#!/bin/sh
export QEMU_MODULE_DIR=$dir/lib/qemu
exec $run -L $dir/share/qemu -L $dir/share/seabios "\$@"
W
  chmod 755 "$dir/bin/new"
  mv "$dir/bin/new" "$dir/bin/qemu-system-x86_64"
  "$dir/bin/qemu-system-x86_64" --version >&2
}

# qemu_10 runs with the libraries that Debian 12's own QEMU needs as well.
qemu_10() {
  local dir=$CACHE/qemu-10.0
  [ -x "$dir/bin/qemu-system-x86_64" ] && return
  say "unpacking QEMU 10.0 from Debian bookworm-backports"
  rm -rf "$dir"; mkdir -p "$dir"/{deb,lib,share}
  private_apt bookworm-backports apt-get update
  (cd "$dir/deb" && private_apt bookworm-backports apt-get download qemu-system-x86 qemu-system-data seabios && for d in *.deb; do dpkg -x "$d" .; done)
  mv "$dir"/deb/usr/share/{qemu,seabios} "$dir/share/"
  mv "$dir"/deb/usr/bin/qemu-system-x86_64 "$dir/lib/"
  rm -rf "$dir/deb"
  qemu_ready "$dir" "$dir/lib/qemu-system-x86_64"
}

# qemu_11 runs with a C library of its own, through that one's loader: Debian 12's is too old.
qemu_11() {
  local dir=$CACHE/qemu-11.1
  [ -x "$dir/bin/qemu-system-x86_64" ] && return
  say "unpacking QEMU 11.1 from Debian sid, with its libraries (42 MB)"
  rm -rf "$dir"; mkdir -p "$dir/deb/partial" "$dir"/{share,loader}
  private_apt sid apt-get update
  private_apt sid apt-get install --no-install-recommends --download-only -y -o Dir::Cache::archives="$dir/deb" qemu-system-x86 >/dev/null
  for d in "$dir"/deb/*.deb; do dpkg -x "$d" "$dir/deb/x"; done
  mv "$dir/deb/x/usr/lib/x86_64-linux-gnu" "$dir/lib"
  mv "$dir/deb/x/usr/bin/qemu-system-x86_64" "$dir/lib/"
  cp "$dir/lib/ld-linux-x86-64.so.2" "$dir/loader/qemu-system-x86_64" # the process is called as this file is
  mv "$dir"/deb/x/usr/share/{qemu,seabios} "$dir/share/"
  rm -rf "$dir/deb"
  qemu_ready "$dir" "$dir/loader/qemu-system-x86_64 --library-path $dir/lib $dir/lib/qemu-system-x86_64"
}

virtiofsd_113() {
  local dir=$CACHE/virtiofsd-1.13
  [ -x "$dir/bin/virtiofsd" ] && return
  say "unpacking virtiofsd from Debian trixie, with its libraries"
  rm -rf "$dir"; mkdir -p "$dir"/{deb,bin}
  private_apt trixie apt-get update
  (cd "$dir/deb" && private_apt trixie apt-get download virtiofsd libc6 libgcc-s1 libcap-ng0 libseccomp2 && for d in *.deb; do dpkg -x "$d" .; done)
  mv "$dir/deb/usr/lib/x86_64-linux-gnu" "$dir/lib"
  mv "$dir/deb/usr/libexec/virtiofsd" "$dir/lib/"
  rm -rf "$dir/deb"
  printf '#!/bin/sh\nexec %s --library-path %s %s "$@"\n' "$dir/lib/ld-linux-x86-64.so.2" "$dir/lib" "$dir/lib/virtiofsd" >"$dir/bin/new"
  chmod 755 "$dir/bin/new"
  mv "$dir/bin/new" "$dir/bin/virtiofsd"
  "$dir/bin/virtiofsd" --version >&2
}

docker_from() { # DIRECTORY SUITE
  local dir=$CACHE/$1
  [ -x "$dir/bin/dockerd" ] && return
  say "unpacking Docker from Debian $2"
  rm -rf "$dir"; mkdir -p "$dir/deb"
  private_apt "$2" apt-get update
  (cd "$dir/deb" && private_apt "$2" apt-get download docker.io docker-cli && for d in *.deb; do dpkg -x "$d" .; done)
  mv "$dir/deb/usr/bin" "$dir/bin"
  mv "$dir"/deb/usr/sbin/* "$dir/bin/"
  rm -rf "$dir/deb"
  "$dir/bin/dockerd" --version >&2
}

# Debian's podman switches on an API socket that root's clients reach, and units that pull and start containers. The tests
# need none of them. A podman that was there before is left as it is.
podman_43() {
  local had=
  dpkg-query -W -f '${Status}' podman 2>/dev/null | grep -q 'ok installed' && had=1
  PACKAGES=(podman crun)
  packages
  [ -n "$had" ] || ! command -v systemctl >/dev/null ||
    systemctl -q disable podman.socket podman.service podman-restart.service podman-auto-update.service podman-auto-update.timer
}

compose_2() {
  local dir=$CACHE/compose
  [ -x "$dir/bin/docker-compose" ] && return
  say "unpacking compose 2 from Debian trixie"
  rm -rf "$dir"; mkdir -p "$dir/deb"
  private_apt trixie apt-get update
  (cd "$dir/deb" && private_apt trixie apt-get download docker-compose && dpkg -x ./*.deb .)
  mkdir "$dir/new"
  mv "$(find "$dir/deb" -name docker-compose -type f -perm -100 | head -1)" "$dir/new/docker-compose"
  "$dir/new/docker-compose" version >&2
  mv "$dir/new" "$dir/bin"
  rm -rf "$dir/deb"
}

[ $# -gt 0 ] || { sed -n '2,19p' "$0"; exit 2; }
[ "$(id -u)" = 0 ] || { echo "setup: run as root: sudo $0 $*" >&2; exit 1; }
mkdir -p "$CACHE"
# python has its packages from PyPI. Where that cannot be reached, the tests that want them skip with that reason.
python_env() {
  local dir=$CACHE/python
  "$dir/bin/python3" -c 'import jwcrypto, jwt, rfc8785, azure.keyvault.keys, azure.security.attestation' 2>/dev/null && return
  say "installing jwcrypto, PyJWT, rfc8785 and Microsoft's clients of Azure from PyPI"
  [ -x "$dir/bin/pip" ] || rm -rf "$dir"
  python3 -c 'import ensurepip' 2>/dev/null || debian python3-venv
  python3 -m venv "$dir" && "$dir/bin/pip" install -q --disable-pip-version-check jwcrypto==1.5.6 PyJWT==2.10.1 rfc8785==0.1.4 \
    azure-keyvault-keys==4.11.3 azure-security-attestation==1.0.0 six==1.17.0 >&2 ||
    { rm -rf "$dir"; say "PyPI cannot be reached: tests against Python's libraries skip"; }
}

for want in "$@"; do
  case $want in
    packages) packages ;;
    containerd-1.7) containerd_from 1.7 trixie ;;
    containerd-2.1) containerd_from 2.1 sid ;;
    containerd-2.4) (containerd_24) ;;
    qemu-10.0) qemu_10 ;;
    qemu-11.1) qemu_11 ;;
    virtiofsd-1.13) virtiofsd_113 ;;
    docker) docker_from docker trixie ;;
    docker-28) docker_from docker-28 sid ;;
    compose) compose_2 ;;
    podman) (podman_43) ;;
    python) python_env ;;
    chromium) debian chromium-headless-shell ;;
    kubelet) kubelet ;;
    k8s) k8s ;;
    *) echo "setup: unknown thing $want" >&2; exit 2 ;;
  esac
done
