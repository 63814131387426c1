// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/tests/harness"
)

// mortalInitrd is the installed initramfs whose agent dies at a moment of choice: testdata/mortal on top of it.
var mortalInitrd = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "coco-mortal")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	b := &bytes.Buffer{}
	base, err := os.ReadFile(filepath.Join(harness.Prefix(), "share/coco/guest/initrd.img"))
	if err != nil {
		return nil, err
	}
	b.Write(base)
	for _, f := range []struct{ name, pkg string }{
		{"init.agent", "./cmd/coco-agent"},
		{"init", "./tests/integration/testdata/mortal"},
	} {
		exe := filepath.Join(dir, f.name)
		build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-tags", "no_grpc", "-ldflags", "-s -w",
			"-o", exe, f.pkg)
		build.Dir, build.Env = testvm.RepoRoot(), append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build %s: %w: %s", f.pkg, err, out)
		}
		data, err := os.ReadFile(exe)
		if err != nil {
			return nil, err
		}
		cpioEntry(b, f.name, 0o100755, data)
	}
	cpioEntry(b, "TRAILER!!!", 0, nil)
	return b.Bytes(), nil
})

// cpioEntry appends a file in "newc" format; Linux, Documentation/driver-api/early-userspace.
func cpioEntry(b *bytes.Buffer, name string, mode int, data []byte) {
	pad := func() { b.Write(make([]byte, -b.Len()&3)) }
	pad()
	fmt.Fprintf(b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", 9999, mode, 0, 0, 1, 0, len(data), 0, 0,
		0, 0, len(name)+1, 0)
	b.WriteString(name + "\x00")
	pad()
	b.Write(data)
	pad()
}

// mortal is a configuration whose guest dies when a path matches in it.
func mortal(t *testing.T, when string) (config string) {
	t.Helper()
	data, err := mortalInitrd()
	if err != nil {
		t.Fatal(err)
	}
	initrd, config := filepath.Join(t.TempDir(), "initrd.img"), filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(initrd, data, 0o644); err != nil { // the VMM's user reads it
		t.Fatal(err)
	}
	write(t, config, fmt.Sprintf("[hypervisor]\ninitrd = %q\nkernel_params = %q\n[runtime]\ntemplate = \"off\"\n", initrd,
		"sysrq_always_enabled test.die="+when))
	return config
}

// TestTheAgentDiesAtEachMomentOfAStart ends the guest from inside. ctr learns it soon, from an error that says that the
// kernel panicked and shows what it printed, and nothing is left.
func TestTheAgentDiesAtEachMomentOfAStart(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	for _, m := range []struct{ name, when string }{
		{"before it has begun", "now"},
		{"while it starts", "/sys/fs/cgroup/cgroup.controllers"},
		{"when its work directory is there", "/run/coco"},
		{"when the sandbox is made", "/run/sandbox-ns/*"},
		{"when a layer is there", "/dev/sda"},
		{"when the root file system is mounted", contract.Rootfs("*") + "/bin"},
		{"when the container is created", "/run/crun/*"},
	} {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			id := newID(t)
			t.Cleanup(func() { remove(t, d, id) })
			start := time.Now()
			r := ctr(t, d, "run", "-d", "--runtime", harness.Runtime, "--runtime-config-path", mortal(t, m.when), harness.Image,
				id, "sleep", "1000")
			t.Logf("exit %d after %v: %s", r.Code, time.Since(start).Round(time.Millisecond), r.Stderr)
			if r.Code == 0 {
				t.Fatal("the container was started all the same")
			}
			for _, want := range []string{"kernel panicked: sysrq triggered crash", "last console lines", "Kernel panic"} {
				if !strings.Contains(r.Stderr, want) {
					t.Errorf("the error does not hold %q", want)
				}
			}
			settles(t, d, id)
		})
	}
}
