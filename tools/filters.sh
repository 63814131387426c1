#!/bin/bash
# Copyright The coco Authors.
# SPDX-License-Identifier: Apache-2.0
#
# Writes the seccomp filters that RuntimeDefault is: one JSON file per release of containerd, made by that release's own
# code, for amd64 and the sets of capabilities that change a filter. policy/gen/filters/filters.json is made of them:
#
#   tools/filters.sh /tmp/filters
#   COCO_FILTERS=/tmp/filters go test -run TestKnownFilters ./policy/gen
#
# Needs the Go module proxy. Releases between two of the list have the filter of one of them.
set -euo pipefail
old="1.6.1 1.6.19 1.6.36 1.7.2 1.7.11 1.7.18 1.7.24 1.7.30 1.7.35"
new="2.0.14 2.1.3 2.1.9 2.2.1 2.2.9 2.3.4 2.3.7 2.4.0 2.4.2"
root=$(realpath "$(dirname "$0")/..")
out=$(realpath -m "$1")
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export GOOS=linux GOARCH=amd64 CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-mod=mod

filters() { # MODULE VERSION
	local dir=$work/$2
	mkdir "$dir"
	cat >"$dir/main.go" <<GO
package main

import (
	"encoding/json"
	"os"
	"strings"

	"filters/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func main() {
	more := []string{
		"DAC_READ_SEARCH", "SYS_ADMIN", "SYS_BOOT", "SYS_MODULE", "SYS_PACCT", "SYS_PTRACE", "SYS_RAWIO", "SYS_TIME",
		"SYS_TTY_CONFIG", "SYS_NICE", "SYSLOG", "BPF", "PERFMON",
	}
	sets := [][]string{nil, {"SYS_CHROOT"}}
	for _, c := range more {
		sets = append(sets, []string{c}, []string{"SYS_CHROOT", c})
	}
	sets = append(sets, []string{ // of add: [ALL], by number
		"DAC_READ_SEARCH", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT",
		"SYS_NICE", "SYS_TIME", "SYS_TTY_CONFIG", "SYSLOG", "PERFMON", "BPF",
	})
	out := map[string]any{}
	for _, set := range sets {
		var caps []string
		for _, c := range set {
			caps = append(caps, "CAP_"+c)
		}
		out[strings.Join(caps, " ")] = seccomp.DefaultProfile(&specs.Spec{
			Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}},
		})
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		panic(err)
	}
}
GO
	local src
	src=$(cd "$work" && go mod download -json "$1@v$2" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
	mkdir "$dir/seccomp" "$dir/kernelversion"
	cp "$src"/contrib/seccomp/seccomp_default.go "$dir/seccomp/"
	[ ! -d "$src/pkg/kernelversion" ] || cp "$src"/pkg/kernelversion/*.go "$dir/kernelversion/"
	[ ! -d "$src/contrib/seccomp/kernelversion" ] || cp "$src"/contrib/seccomp/kernelversion/*.go "$dir/kernelversion/"
	rm -f "$dir"/*/*_test.go
	chmod -R u+w "$dir"
	sed -i -E 's#"[^"]*/kernelversion"#"filters/kernelversion"#' "$dir"/*/*.go
	cp "$root/go.sum" "$dir/"
	printf 'module filters\ngo 1.24\nrequire (\n\tgithub.com/opencontainers/runtime-spec %s\n\tgolang.org/x/sys %s\n)\n' \
		"$(cd "$root" && go list -m -f '{{.Version}}' github.com/opencontainers/runtime-spec)" \
		"$(cd "$root" && go list -m -f '{{.Version}}' golang.org/x/sys)" >"$dir/go.mod"
	(cd "$dir" && go run .) >"$out/$2.json"
	echo "$2"
}

for v in $old; do filters github.com/containerd/containerd "$v"; done
for v in $new; do filters github.com/containerd/containerd/v2 "$v"; done
