// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/tests/harness"
)

// TestBadConfigurationIsRefusedInWords starts a container with a broken setting each; the error must hold
// the words that let its reader find the mistake, and nothing may stay behind.
func TestBadConfigurationIsRefusedInWords(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	for _, c := range []struct {
		name   string
		config string
		flags  []string
		want   []string
	}{
		{name: "unknown key", config: "[hypervisor]\nkernle = \"/x\"\n", want: []string{"kernle", "unknown"}},
		{name: "wrong type", config: "[hypervisor]\ndefault_vcpus = \"two\"\n", want: []string{"default_vcpus"}},
		{
			name: "all problems at once", config: "[hypervisor]\nkernle = \"/x\"\ndefault_memory_mib = 1\n",
			want: []string{"kernle", "default_memory_mib"},
		},
		{
			name: "missing kernel", config: "[hypervisor]\nkernel = \"/nonexistent/vmlinux\"\n",
			want: []string{"/nonexistent/vmlinux", "kernel"},
		},
		{
			name: "too little memory", config: "[hypervisor]\ndefault_memory_mib = 16\n",
			want: []string{"default_memory_mib", "16"},
		},
		{
			name: "kernel that is no kernel", config: "[hypervisor]\nkernel = \"FILE\"\n[runtime]\ntemplate = \"off\"\n",
			want: []string{"phase"},
		},
		{
			name: "kernel that panics", config: "[hypervisor]\nkernel_params = \"rdinit=/nonexistent init=/nonexistent\"\n" +
				"[runtime]\ntemplate = \"off\"\n",
			want: []string{"panic", "console"},
		},
		{
			name: "unknown annotation", flags: []string{"--annotation", contract.ConfigPrefix + "hypervisor.nonsense=1"},
			want: []string{contract.ConfigPrefix + "hypervisor.nonsense"},
		},
		{name: "annotation that is not allowed", flags: []string{
			"--annotation",
			contract.ConfigPrefix + "hypervisor.path=/bin/true",
		}, want: []string{contract.ConfigPrefix + "hypervisor.path"}},
		{name: "host network", flags: []string{"--net-host"}, want: []string{"network"}},
		{name: "host device", flags: []string{"--device", "/dev/loop0"}, want: []string{"/dev/loop0"}},
		{name: "bind mount that is not there", flags: []string{
			"--mount",
			"type=bind,src=/nonexistent/file,dst=/x,options=rbind",
		}, want: []string{"/nonexistent/file"}},
		{
			name: "bind mount that would lose what is written", config: "[runtime]\ntemplate = \"off\"\nbinds = \"read-only\"\n",
			flags: []string{"--mount", "type=bind,src=/opt,dst=/x,options=rbind:rw"}, want: []string{"/opt", "would be lost"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			id := newID(t)
			args := append([]string{"run", "--rm", "--runtime", harness.Runtime}, c.flags...)
			if c.config != "" {
				junk := filepath.Join(t.TempDir(), "junk")
				write(t, junk, strings.Repeat("not a kernel\n", 1000))
				file := filepath.Join(t.TempDir(), "config.toml")
				write(t, file, strings.ReplaceAll(c.config, "FILE", junk))
				args = append(args, "--runtime-config-path", file)
			}
			r := ctr(t, d, append(args, harness.Image, id, "true")...)
			t.Cleanup(func() { remove(t, d, id) })
			if r.Code == 0 {
				t.Fatalf("it ran: %+v", r)
			}
			for _, w := range c.want {
				if !strings.Contains(strings.ToLower(r.Stderr), strings.ToLower(w)) {
					t.Errorf("the error does not mention %q: %s", w, r.Stderr)
				}
			}
		})
	}
}

func TestTwoCreatesOfOneID(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	id := detached(t, d, harness.Runtime, "sleep", "1000")
	r := ctr(t, d, "task", "start", "-d", id)
	if r.Code == 0 || !strings.Contains(r.Stderr, "already exists") {
		t.Errorf("second task of %s: exit %d, %q; want already exists", id, r.Code, r.Stderr)
	}
	if got := must(t, d, "task", "exec", "--exec-id", "e", id, "echo", "ok"); got != "ok\n" {
		t.Errorf("the first one is not well any more: %q", got)
	}
}

// TestFlippedByteInALayer damages a cached layer on the host; the container must not run.
func TestFlippedByteInALayer(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	cache := filepath.Join(t.TempDir(), "layers")
	file := filepath.Join(t.TempDir(), "config.toml")
	write(t, file, "[runtime]\nlayer_cache = \""+cache+"\"\n"+harness.TemplateKey())
	run := func() harness.Result {
		id := newID(t)
		r := ctr(t, d, "run", "--rm", "--runtime", harness.Runtime, "--runtime-config-path", file, harness.Image, id, "cat",
			"/bin/busybox")
		t.Cleanup(func() { remove(t, d, id) })
		return r
	}
	if r := run(); r.Code != 0 {
		t.Fatalf("before the damage: %s", r.Stderr)
	}
	damaged := 0
	err := filepath.WalkDir(cache, func(p string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if info, err := e.Info(); err != nil || info.Size() < 1<<20 {
			return err
		}
		f, err := os.OpenFile(p, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		b := make([]byte, 1)
		for off := int64(0); off < 1<<20; off += 4096 { // one byte in each block: whichever is read first, fails
			if _, err := f.ReadAt(b, off+100); err != nil {
				return err
			}
			b[0] ^= 1
			if _, err := f.WriteAt(b, off+100); err != nil {
				return err
			}
		}
		damaged++
		return nil
	})
	if err != nil || damaged == 0 {
		t.Fatalf("damaged %d layers: %v", damaged, err)
	}
	r := run()
	if r.Code == 0 || r.Stdout != "" {
		t.Fatalf("a damaged layer ran: exit %d, %d bytes of output", r.Code, len(r.Stdout))
	}
	if !strings.Contains(r.Stderr, "layer") || !strings.Contains(r.Stderr, "verity") &&
		!strings.Contains(r.Stderr, "corrupt") {
		t.Errorf("the error does not name the layer: %s", r.Stderr)
	}
}

func TestFullDiskWhileBuildingALayer(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	small := smallDisk(t, "1m")
	file := filepath.Join(t.TempDir(), "config.toml")
	write(t, file, "[runtime]\nlayer_cache = \""+filepath.Join(small, "layers")+"\"\n"+harness.TemplateKey())
	id := newID(t)
	r := ctr(t, d, "run", "--rm", "--runtime", harness.Runtime, "--runtime-config-path", file, harness.Image, id, "true")
	t.Cleanup(func() { remove(t, d, id) })
	if r.Code == 0 || !strings.Contains(r.Stderr, "no space left") || !strings.Contains(r.Stderr, "layer") {
		t.Errorf("exit %d, %q; want an error that names the layer and the full disk", r.Code, r.Stderr)
	}
	left, _ := filepath.Glob(filepath.Join(small, "layers", "*"))
	for _, l := range left {
		if info, err := os.Stat(l); err == nil && !info.IsDir() && info.Size() > 0 {
			t.Errorf("half-built file left: %s", l)
		}
	}
}
