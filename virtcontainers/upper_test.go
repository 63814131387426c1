// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/virtcontainers/state"
)

// snapshot is a container of a pod as containerd's overlayfs snapshotter gives it.
func (w *world) snapshot(id string) (req ContainerRequest, disk string) {
	w.t.Helper()
	dir := filepath.Join(w.dir, "snapshots", id)
	for _, d := range []string{"fs", "work", "lower"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			w.t.Fatal(err)
		}
	}
	req = ContainerRequest{
		ID: id, Bundle: w.t.TempDir(), Spec: newSpec(),
		Rootfs: []Mount{{Type: "overlay", Source: "overlay", Options: []string{
			"workdir=" + dir + "/work", "upperdir=" + dir + "/fs", "lowerdir=" + dir + "/lower",
		}}},
	}
	return req, filepath.Join(dir, "fs", state.DiskName)
}

// createdStorages are those of the container that was created last.
func (w *world) createdStorages() []*agent.Storage {
	a := w.vm().agent
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.created.GetStorages()
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return !errors.Is(err, fs.ErrNotExist)
}

func TestTheWritableLayerOfAKubernetesContainerIsInItsSnapshot(t *testing.T) {
	w := newWorld(t)
	o := w.options()
	o.First = nil
	p, _ := start(t, w, o)
	req, disk := w.snapshot("c1")
	if err := os.WriteFile(disk, []byte("of an earlier VM"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.CreateContainer(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(disk)
	if err != nil || st.Size() != 16<<30 || st.Mode().Perm() != 0o600 {
		t.Errorf("the disk is %v, %v, want a file of 16 GiB for its owner only", st, err)
	}
	upper := w.createdStorages()[2]
	if upper.GetFstype() != "ext4" ||
		!slices.Equal(upper.GetDriverOptions(), []string{contract.OptionEphemeralKey, contract.OptionCreateFS}) {
		t.Errorf("the agent is to mount %v, want an ext4 that it makes and encrypts", upper)
	}
	j, err := state.Load(o.Bundle)
	if err != nil || !slices.Equal(j.Disks, []string{disk}) {
		t.Errorf("the journal has %q, %v", j.Disks, err)
	}
	if _, err := proc(t, p, "c1", "").Delete(t.Context()); err != nil {
		t.Error(err)
	}
	if exists(disk) {
		t.Error("the disk is there after its container was deleted")
	}

	// After a crash the journal knows it.
	req, disk = w.snapshot("c2")
	if _, _, err := p.CreateContainer(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if j, err = state.Load(o.Bundle); err != nil || !slices.Equal(j.Disks, []string{disk}) {
		t.Fatalf("the journal has %q, %v", j.Disks, err)
	}
	if err := state.RemoveDisk(j.Disks[0]); err != nil || exists(disk) {
		t.Errorf("RemoveDisk() = %v", err)
	}
	// A container that cannot be made leaves none.
	w.fail = "agent create"
	req, disk = w.snapshot("c3")
	if _, _, err := p.CreateContainer(t.Context(), req); err == nil || !strings.Contains(err.Error(), "injected") {
		t.Errorf("CreateContainer() = %v", err)
	}
	if exists(disk) {
		t.Error("the disk is there although its container is not")
	}
}

func TestAPodThatEndsRemovesTheDisksOfContainersThatNobodyDeleted(t *testing.T) {
	w := newWorld(t)
	o := w.options()
	o.First = nil
	p, _ := start(t, w, o)
	var disks []string
	for _, id := range []string{"c1", "c2"} {
		req, disk := w.snapshot(id)
		if _, _, err := p.CreateContainer(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		disks = append(disks, disk)
	}
	if err := p.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, d := range disks {
		if exists(d) {
			t.Errorf("%s is left", d)
		}
	}
}

func TestTheWritableLayerOfAPodOfOneHasNoName(t *testing.T) {
	w := newWorld(t)
	o := w.options("sleep")
	req, disk := w.snapshot("c1")
	o.First.Rootfs = req.Rootfs
	p, _ := start(t, w, o)
	if exists(disk) {
		t.Error("the disk is in the snapshot, where Docker shows it")
	}
	if upper := w.createdStorages()[2]; upper.GetFstype() != "ext4" {
		t.Errorf("the agent is to mount %v", upper)
	}
	entries, err := os.ReadDir(p.opts.Config.Runtime.ScratchDir)
	if err != nil || len(entries) != 0 {
		t.Errorf("runtime.scratch_dir has %v, %v, want nothing with a name", entries, err)
	}
}

func TestTheWritableLayerInMemory(t *testing.T) {
	w := newWorld(t)
	o := w.options("sleep")
	o.Config.Runtime.WritableLayer = configs.WritableMemory
	start(t, w, o)
	if n := len(w.vm().plugged()); n != 2 {
		t.Errorf("the VM has %d disks, want two layers", n)
	}
	if upper := w.createdStorages()[2]; upper.GetFstype() != "tmpfs" || upper.GetOptions()[0] != "size=256m" {
		t.Errorf("the agent is to mount %v, want a tmpfs of 256 MiB", upper)
	}
}
