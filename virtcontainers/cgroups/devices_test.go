// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A shell in the group tries to read and to make devices, which root may outside of it.
func TestAGroupKeepsAProcessFromDevices(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes cgroups")
	}
	hs, err := Hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ v2, disks bool }{{false, false}, {false, true}, {true, false}, {true, true}} {
		t.Run(fmt.Sprintf("%+v", tt), func(t *testing.T) {
			var mount string
			for _, h := range hs {
				if h.V2 == tt.v2 && (tt.v2 || strings.Contains(h.Options, "devices")) {
					mount = h.Mount
				}
			}
			if mount == "" {
				t.Skip("this host has no such hierarchy")
			}
			dirs, leaves, err := Plan([]Hierarchy{{Mount: mount, V2: tt.v2}}, "/coco-devices-"+filepath.Base(t.TempDir())+"/x",
				VMM)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := Remove(context.Background(), dirs); err != nil {
					t.Error(err)
				}
			})
			cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", `
read -r go
cd "$1"
(: </dev/null) 2>/dev/null && echo null read
(: </dev/zero) 2>/dev/null && echo zero read
(: </dev/random) 2>/dev/null && echo random read
mknod null c 1 3 2>/dev/null && echo null made
mknod zero c 1 5 2>/dev/null && echo zero made
mknod disk b 7 99 2>/dev/null && echo disk made
mkfifo pipe && echo pipe made`, "sh", t.TempDir())
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			err = errors.Join(
				Apply(dirs, leaves, cmd.Process.Pid, func(string) error { return nil }),
				LimitDevices(leaves, Devices{Chars: []string{"/dev/null", "/dev/missing", "/dev/random"}, Disks: tt.disks}),
				in.Close(), cmd.Wait())
			want := "null read\nrandom read\nnull made\npipe made\n"
			if tt.disks {
				want = "null read\nrandom read\nnull made\ndisk made\npipe made\n"
			}
			if err != nil || out.String() != want {
				t.Errorf("it says %q, %v, want %q", out.String(), err, want)
			}
		})
	}
}
