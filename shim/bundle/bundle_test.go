// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/internal/worktest"
)

func TestRoleOf(t *testing.T) {
	const cri, crio = "io.kubernetes.cri.", "io.kubernetes.cri-o."
	for _, tc := range []struct {
		name        string
		annotations map[string]string
		want        Role
		wantErr     error
	}{
		{"no annotations: a pod of one", nil, Role{PodID: "c1"}, nil},
		{
			"sandbox",
			map[string]string{cri + "container-type": "sandbox", cri + "sandbox-id": "c1"},
			Role{Sandbox: true, PodID: "c1"},
			nil,
		},
		{
			"container",
			map[string]string{cri + "container-type": "container", cri + "sandbox-id": "p1"},
			Role{PodID: "p1"},
			nil,
		},
		{"cri-o sandbox", map[string]string{crio + "ContainerType": "sandbox"}, Role{Sandbox: true, PodID: "c1"}, nil},
		{
			"cri-o container",
			map[string]string{crio + "ContainerType": "container", crio + "SandboxID": "p1"},
			Role{PodID: "p1"},
			nil,
		},
		{
			"container without sandbox",
			map[string]string{cri + "container-type": "container"},
			Role{},
			errdefs.ErrInvalidArgument,
		},
		{
			"sandbox id that is a path",
			map[string]string{cri + "container-type": "container", cri + "sandbox-id": "../x"},
			Role{},
			errdefs.ErrInvalidArgument,
		},
		{"unknown type", map[string]string{cri + "container-type": "vm"}, Role{}, errdefs.ErrInvalidArgument},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := RoleOf("c1", tc.annotations)
			if got != tc.want || !errors.Is(err, tc.wantErr) {
				t.Errorf("RoleOf(c1, %v) = %+v, %v, want %+v, %v", tc.annotations, got, err, tc.want, tc.wantErr)
			}
		})
	}
}

func TestUsesHostPS(t *testing.T) {
	for _, tc := range []struct {
		name string
		spec specs.Spec
		want bool
	}{
		{"containerd's own", specs.Spec{Root: &specs.Root{Path: "rootfs"}}, false},
		{"no root", specs.Spec{}, false},
		{"Docker", specs.Spec{Root: &specs.Root{Path: "/var/lib/docker/overlay2/x/merged"}}, true},
		{
			"nerdctl",
			specs.Spec{Root: &specs.Root{Path: "rootfs"}, Annotations: map[string]string{"nerdctl/namespace": "default"}},
			true,
		},
	} {
		if got := UsesHostPS(&tc.spec); got != tc.want {
			t.Errorf("UsesHostPS(%s) = %t, want %t", tc.name, got, tc.want)
		}
	}
}

func TestReadRole(t *testing.T) {
	dir := t.TempDir()
	if got, err := ReadRole(dir, "s1"); err != nil || !got.Sandbox {
		t.Errorf("ReadRole without a spec = %+v, %v, want a sandbox", got, err)
	}
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"annotations":{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"p1"}}`)
	if got, err := ReadRole(dir, "c1"); err != nil || got.PodID != "p1" {
		t.Errorf("ReadRole of a container = %+v, %v", got, err)
	}
	write(`{`)
	if _, err := ReadRole(dir, "c1"); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("ReadRole of a broken spec = %v, want ErrInvalidArgument", err)
	}
}

func TestFilesComeBack(t *testing.T) {
	d := Dir(t.TempDir())
	if _, ok := d.Exit(); ok || d.Init() != 0 {
		t.Error("an empty bundle holds an exit or a pid")
	}
	if _, ok := d.Shim(); ok {
		t.Error("an empty bundle names a shim")
	}
	exit := Exit{Status: 3, At: time.Now().UTC()}
	self, err := ProcessOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.WriteAddress("unix:///s"), d.WriteInit(42), d.WriteExit(exit), d.WriteShim(self)); err != nil {
		t.Fatal(err)
	}
	if a, err := d.Address(); err != nil || a != "unix:///s" {
		t.Errorf("Address = %q, %v", a, err)
	}
	if got, ok := d.Exit(); !ok || !got.At.Equal(exit.At) || got.Status != 3 || d.Init() != 42 {
		t.Errorf("Exit = %+v, Init = %d", got, d.Init())
	}
	if got, ok := d.Shim(); !ok || got != self {
		t.Errorf("Shim = %+v, %v, want this process", got, ok)
	}
	if err := d.WriteShim(Process{PID: self.PID, Start: self.Start + 1}); err != nil {
		t.Fatal(err)
	}
	if _, ok := d.Shim(); ok {
		t.Error("Shim takes a reused pid for the shim")
	}
}

func FuzzReadRole(f *testing.F) {
	f.Add([]byte(`{"annotations":{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"p1"}}`))
	f.Add([]byte(`{"annotations":null}`))
	f.Fuzz(func(t *testing.T, spec []byte) {
		defer worktest.Bound(t, len(spec))()
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "config.json"), spec, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := ReadRole(dir, "c1")
		if err == nil && CheckName("pod", r.PodID) != nil {
			t.Errorf("ReadRole(%q) = %+v: the pod's id is no name", spec, r)
		}
	})
}
