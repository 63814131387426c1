// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// The property of undo: whichever operation fails, nothing is left.
func TestWhateverFailsNothingIsLeft(t *testing.T) {
	binds := func(w *world, o Options) Options {
		o.Spec.Mounts = []specs.Mount{
			{Type: "bind", Source: w.file("hosts", 0o644), Destination: "/etc/hosts", Options: []string{"ro"}},
			{Type: "bind", Source: w.file("data", 0o644), Destination: "/data", Options: []string{"ro"}},
		}
		return o
	}
	t.Run("live files", func(t *testing.T) {
		good := whateverFails(t, func(w *world) Options {
			o := w.options("sleep")
			o.Config.Runtime.HostPath = "live"
			o = binds(w, o)
			o.Spec.Mounts = append(o.Spec.Mounts, resolvConf(w, o.ID))
			return o
		})
		if !good.did("serve files") || !good.did("share files") || !good.did("ask for names") {
			t.Errorf("nothing was shared, or asked for: %q", good.ops)
		}
	})
	t.Run("virtual TPM", func(t *testing.T) {
		good := whateverFails(t, func(w *world) Options {
			o := w.options("sleep")
			o.Config.Hypervisor.Platform, o.Config.Hypervisor.Firmware = "vtpm", w.file("OVMF.fd", 0o644)
			o.Config.VTPM.Program = w.file("swtpm", 0o755)
			return binds(w, o)
		})
		if !good.did("serve a TPM") {
			t.Errorf("there was no TPM: %q", good.ops)
		}
	})
}

// whateverFails runs a pod once, and then once for each operation of that run, which fails. It returns the world of the
// first run.
func whateverFails(t *testing.T, options func(*world) Options) *world {
	t.Helper()
	var started int // operations after this one belong to Shutdown, which tries again
	run := func(w *world, o Options) (err error) {
		p, err := CreatePod(t.Context(), o)
		if err != nil {
			return err
		}
		defer func() {
			if serr := p.Shutdown(context.Background()); serr != nil {
				// A failed step is retried by the next call.
				if serr = p.Shutdown(context.Background()); serr != nil {
					err = errors.Join(err, serr)
				}
			}
		}()
		if _, _, err := p.CreateContainer(t.Context(), *o.First); err != nil {
			if _, serr := p.Container("c1"); !errdefs.IsNotFound(serr) {
				t.Errorf("the container is known after CreateContainer failed: %v", serr)
			}
			if n := w.vm().agent.count(); n != 0 {
				t.Errorf("%d containers in the guest after CreateContainer failed", n)
			}
			return err
		}
		_, err = proc(t, p, "c1", "").Start(t.Context())
		started = w.count()
		return err
	}
	good := newWorld(t)
	if err := run(good, options(good)); err != nil {
		t.Fatal(err)
	}
	if left := good.left(); len(left) > 0 {
		t.Fatalf("left without a failure: %q", left)
	}
	for i := range good.ops {
		w := newWorld(t)
		w.failAt = i + 1
		err := run(w, options(w))
		if len(w.ops) <= i && err == nil {
			break // layers that are there when the VM boots are not plugged later: one operation less than in the good run
		}
		name := w.ops[i]
		if err == nil && i < started {
			t.Errorf("operation %d (%s) failed and nobody noticed", i+1, name)
		}
		if err != nil && !strings.Contains(err.Error(), "injected") {
			t.Errorf("operation %d (%s) failed, the error is %v", i+1, name, err)
		}
		if left := w.left(); len(left) > 0 {
			t.Errorf("operation %d (%s) failed, left: %q", i+1, name, left)
		}
	}
	return good
}

func TestCreatePodRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*world, *Options)
		want   []string
	}{
		{"host networking", func(_ *world, o *Options) {
			o.Spec.Linux.Namespaces = o.Spec.Linux.Namespaces[:4]
		}, []string{"host's network"}},
		{
			"a missing kernel", func(_ *world, o *Options) { o.Config.Hypervisor.Kernel = "/nowhere/vmlinux" },
			[]string{"/nowhere/vmlinux", "does not exist"},
		},
		{"too much memory", func(_ *world, o *Options) {
			limit := int64(1 << 40)
			o.Spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
		}, []string{"1048576 MiB", "8192 MiB"}},
		{"an id that is a path", func(_ *world, o *Options) { o.ID = "../x" }, []string{`"../x"`}},
		{"a device of the host", func(_ *world, o *Options) {
			o.Spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/sda", Type: "b", Major: 8}}
		}, []string{"/dev/sda"}},
		{"an agent that never answers", func(w *world, o *Options) {
			w.mute = true
			o.Config.Hypervisor.BootTimeout = 50 * time.Millisecond
		}, []string{"phase kernel", "boot_timeout"}},
		{"a hook that fails", func(_ *world, o *Options) {
			o.Spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{
				Path: "/bin/sh",
				Args: []string{"sh", "-c", "echo no network >&2; exit 3"},
			}}}
		}, []string{"createRuntime hook 0 (/bin/sh)", "exit status 3", "no network"}},
		{"a VM on another machine", func(w *world, _ *Options) {
			w.elsewhere = true
		}, []string{"driver fake runs the VM on another machine"}},
		{"a root file system that does not exist", func(w *world, _ *Options) {
			w.fail = "open layers"
			w.holdUntil("make netns", "open layers")
		}, []string{"root file system", "open layers"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			o := w.options("sleep")
			tt.change(w, &o)
			_, err := CreatePod(t.Context(), o)
			if err == nil {
				t.Fatal("CreatePod() succeeded")
			}
			for _, s := range tt.want {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("CreatePod() = %v, want %q in it", err, s)
				}
			}
			if left := w.left(); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

func TestTwoPodsOfOneIDCollide(t *testing.T) {
	w := newWorld(t)
	o := w.options("sleep")
	start(t, w, o)
	before := w.left()
	if _, err := CreatePod(t.Context(), o); !errdefs.IsAlreadyExists(err) {
		t.Errorf("CreatePod() in a used bundle = %v, want already exists", err)
	}
	o.Bundle = t.TempDir()
	if _, err := CreatePod(t.Context(), o); !errdefs.IsAlreadyExists(err) {
		t.Errorf("CreatePod() of a used id = %v, want already exists", err)
	}
	if diff := cmp.Diff(before, w.left()); diff != "" {
		t.Errorf("the refused pod changed what the first holds (-before +after):\n%s", diff)
	}
}
