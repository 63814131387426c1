// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"go.uber.org/goleak"

	own "github.com/coco-shim/coco/agent/layer"
	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/image/layer"
	"github.com/coco-shim/coco/image/verity"
	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/plan/rootfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// guest is a Manager over a directory, with a sysfs that tests fill.
type guest struct {
	*Manager
	t     *testing.T
	disks int
}

func newGuest(t *testing.T) *guest {
	t.Helper()
	testvm.Need(t, testvm.Root)
	g := &guest{Manager: New(t.TempDir()), t: t}
	g.sys = t.TempDir()
	g.write("class/scsi_host/host0/scan", "")
	g.openVerity = openLoop
	t.Cleanup(func() {
		if err := g.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if m := g.mounted(); len(m) > 0 {
			t.Errorf("still mounted: %v", m)
		}
	})
	return g
}

func (g *guest) write(name, text string) {
	g.t.Helper()
	p := filepath.Join(g.sys, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o644)); err != nil {
		g.t.Fatal(err)
	}
}

// mounted lists the mounts below the root.
func (g *guest) mounted() []string {
	g.t.Helper()
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(g.root))
	if err != nil {
		g.t.Fatal(err)
	}
	var out []string
	for _, i := range infos {
		out = append(out, strings.TrimPrefix(i.Mountpoint, g.root))
	}
	return out
}

// loopDevice is a loop device that stands for both the disk and the verity device over it. Opening
// verifies everything, which the kernel would do block by block.
type loopDevice struct {
	path    string
	corrupt bool
}

func (l loopDevice) Corrupted() (bool, error) { return l.corrupt, nil }
func (l loopDevice) Close() error             { return nil }

func openLoop(_ string, p verity.Params, disk string) (verityDevice, string, error) {
	path := "/dev/loop" + strings.TrimPrefix(disk, "7:")
	f, err := os.Open(path)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	var bad *verity.CorruptError
	if err := verity.Verify(context.Background(), f, p); err != nil && !errors.As(err, &bad) {
		return nil, "", err
	}
	return loopDevice{path, bad != nil}, path, nil
}

// disk attaches a file as SCSI disk 0:n and returns its address.
func (g *guest) disk(file string) hypervisor.BlockAddress {
	g.t.Helper()
	out, err := exec.CommandContext(g.t.Context(), "losetup", "--find", "--show", "--read-only", file).Output()
	if err != nil {
		g.t.Skipf("needs loop devices: %v", err)
	}
	path := strings.TrimSpace(string(out))
	g.t.Cleanup(func() {
		if out, err := exec.CommandContext(context.Background(), "losetup", "--detach", path).CombinedOutput(); err != nil {
			g.t.Errorf("losetup: %v: %s", err, out)
		}
	})
	n := g.disks
	g.disks++
	name := filepath.Base(path)
	g.write(fmt.Sprintf("bus/scsi/devices/0:0:0:%d/block/%s/x", n, name), "")
	g.write(fmt.Sprintf("bus/scsi/devices/0:0:0:%d/delete", n), "")
	g.write("class/block/"+name+"/dev", "7:"+strings.TrimPrefix(name, "loop")+"\n")
	st, err := os.Stat(file)
	if err != nil {
		g.t.Fatal(err)
	}
	g.write("class/block/"+name+"/size", fmt.Sprint(st.Size()/512))
	return hypervisor.BlockAddress{Driver: "scsi", Source: fmt.Sprintf("0:%d", n)}
}

// layer builds a layer with one file and attaches it.
func (g *guest) layer(name, content string) rootfs.Attached {
	g.t.Helper()
	p, file := g.layerFile(name, content)
	return rootfs.Attached{Params: p, Address: g.disk(file)}
}

// layerFile builds a layer with one file.
func (g *guest) layerFile(name, content string) (verity.Params, string) {
	g.t.Helper()
	dir := g.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
		g.t.Fatal(err)
	}
	c, err := layer.New(filepath.Join(g.t.TempDir(), "cache"))
	if err != nil {
		g.t.Fatal(err)
	}
	l, err := c.Open(g.t.Context(), layer.Source{Kind: layer.Dir, Path: dir})
	if err != nil {
		g.t.Fatal(err)
	}
	defer l.Close()
	b, err := io.ReadAll(l.File)
	if err != nil {
		g.t.Fatal(err)
	}
	file := filepath.Join(g.t.TempDir(), name)
	if err := os.WriteFile(file, b, 0o600); err != nil {
		g.t.Fatal(err)
	}
	return l.Params, file
}

// storages is what the host sends, moved below the test's root.
func (g *guest) storages(cid string, layers ...rootfs.Attached) []*agent.Storage {
	g.t.Helper()
	ss, err := rootfs.Storages(cid, layers, rootfs.Upper{MiB: 4})
	if err != nil {
		g.t.Fatal(err)
	}
	return g.moved(ss)
}

func (g *guest) moved(ss []*agent.Storage) []*agent.Storage {
	move := func(s string) string { return strings.ReplaceAll(s, contract.GuestRoot, g.root) }
	for _, s := range ss {
		s.MountPoint = move(s.MountPoint)
		for i := range s.Options {
			s.Options[i] = move(s.Options[i])
		}
		for i := range s.DriverOptions {
			s.DriverOptions[i] = move(s.DriverOptions[i])
		}
	}
	return ss
}

func (g *guest) read(name string) string {
	b, err := os.ReadFile(filepath.Join(g.root, name))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func TestAContainersRootFileSystem(t *testing.T) {
	g := newGuest(t)
	top, low := g.layer("top", "t"), g.layer("low", "l")
	if err := g.Add(t.Context(), "c1", g.storages("c1", top, low)); err != nil {
		t.Fatal(err)
	}
	if err := g.Add(t.Context(), "c2", g.storages("c2", top, low)); err != nil {
		t.Fatal(err)
	}
	if got := g.read("c1/rootfs/top") + g.read("c2/rootfs/low"); got != "tl" {
		t.Errorf("content %q", got)
	}
	if err := os.WriteFile(filepath.Join(g.root, "c1/rootfs/mine"), nil, 0o600); err != nil {
		t.Error(err)
	}
	if n := len(g.mounted()); n != 6 {
		t.Errorf("%d mounts, want 2 layers, 2 upper and 2 overlays: %v", n, g.mounted())
	}
	if err := g.Remove(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	if n := len(g.mounted()); n != 4 {
		t.Errorf("%d mounts after the first container, want 4: %v", n, g.mounted())
	}
	if got := g.read("c2/rootfs/top"); got != "t" {
		t.Errorf("the other container lost its layer: %q", got)
	}
	if err := g.Remove(t.Context(), "c2"); err != nil {
		t.Fatal(err)
	}
	if m := g.mounted(); len(m) != 0 {
		t.Errorf("still mounted: %v", m)
	}
	if err := g.Remove(t.Context(), "c2"); err != nil {
		t.Errorf("Remove again = %v", err)
	}
	if err := g.Add(t.Context(), "c3", g.storages("c3", low)); err != nil {
		t.Errorf("a layer cannot be mounted again: %v", err)
	}
}

func TestManyContainersAtOnceShareALayer(t *testing.T) {
	g := newGuest(t)
	l := g.layer("f", "x")
	var wg sync.WaitGroup
	for i := range 8 {
		ss := g.storages(fmt.Sprintf("c%d", i), l)
		wg.Go(func() {
			for range 5 {
				if err := g.Add(t.Context(), fmt.Sprintf("c%d", i), ss); err != nil {
					t.Error(err)
				}
				if got := g.read(fmt.Sprintf("c%d/rootfs/f", i)); got != "x" {
					t.Errorf("container %d reads %q", i, got)
				}
				if err := g.Remove(t.Context(), fmt.Sprintf("c%d", i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if m := g.mounted(); len(m) != 0 {
		t.Errorf("still mounted: %v", m)
	}
}

func TestAFailureUndoesTheRest(t *testing.T) {
	g := newGuest(t)
	l := g.layer("f", "x")
	good := g.storages("c1", l)
	for i := range good {
		ss := g.storages("c1", l)
		ss[i].Options = append(ss[i].Options, "nonsense=1")
		err := g.Add(t.Context(), "c1", ss)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), ss[i].MountPoint) {
			t.Errorf("storage %d: Add = %v, want an error that names %s", i, err, ss[i].MountPoint)
		}
		if m := g.mounted(); len(m) != 0 {
			t.Errorf("storage %d: still mounted: %v", i, m)
		}
	}
	if err := g.Add(t.Context(), "c1", good); err != nil {
		t.Error(err)
	}
	// Another container's failure leaves the shared layer alone.
	bad := g.storages("c2", l)
	bad[1].Fstype = "ext4"
	if err := g.Add(t.Context(), "c2", bad); err == nil {
		t.Error("Add of a tmpfs of type ext4 succeeded")
	}
	if got := g.read("c1/rootfs/f"); got != "x" {
		t.Errorf("the first container reads %q", got)
	}
}

func TestLayersAreHashedByTheProcessorWhereItCan(t *testing.T) {
	defer func(was bool) { hasSHA = was }(hasSHA)
	for _, hasSHA = range []bool{true, false} {
		g := newGuest(t)
		var loaded []string
		g.Load = func(name string, _ ...string) error {
			loaded = append(loaded, name)
			return errdefs.ErrNotFound // it is as good without
		}
		opened := false
		open := g.openVerity
		g.openVerity = func(name string, p verity.Params, disk string) (verityDevice, string, error) {
			opened = true
			if slices.Contains(loaded, fastHash) != hasSHA {
				t.Errorf("a processor with SHA-256 %t: %v were loaded before the layer was opened", hasSHA, loaded)
			}
			return open(name, p, disk)
		}
		if err := g.Add(t.Context(), "c1", g.storages("c1", g.layer("f", "x"))); err != nil || !opened {
			t.Errorf("Add = %v, opened %t", err, opened)
		}
		if err := g.Remove(t.Context(), "c1"); err != nil {
			t.Error(err)
		}
	}
}

func TestACorruptLayerIsNamed(t *testing.T) {
	g := newGuest(t)
	l := g.layer("f", "x")
	l.RootHash[5] ^= 1
	err := g.Add(t.Context(), "c1", g.storages("c1", l))
	var corrupt *own.CorruptError
	if !errors.As(err, &corrupt) || corrupt.RootHash != l.Hex() ||
		!strings.Contains(err.Error(), "/"+contract.LayersName+"/"+l.Hex()) {
		t.Errorf("Add = %v, want a CorruptError", err)
	}
	if m := g.mounted(); len(m) != 0 {
		t.Errorf("still mounted: %v", m)
	}
}

func TestALayerThatNeedsMoreOfTheKernelIsNotMounted(t *testing.T) {
	g := newGuest(t)
	open := g.openVerity
	g.openVerity = func(name string, p verity.Params, disk string) (verityDevice, string, error) {
		d, path, err := open(name, p, disk)
		if err != nil {
			return d, path, err
		}
		image, err := os.ReadFile(path)
		if err != nil {
			return d, path, err
		}
		image[1024+80] = 2 // feature_incompat: compression
		path = filepath.Join(t.TempDir(), "image")
		return d, path, os.WriteFile(path, image, 0o600)
	}
	err := g.Add(t.Context(), "c1", g.storages("c1", g.layer("f", "x")))
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "has the features compr_cfgs") {
		t.Errorf("Add = %v, want that the image's features are not supported", err)
	}
	if m := g.mounted(); len(m) != 0 {
		t.Errorf("still mounted: %v", m)
	}
}

func TestCorruptionThatIsFoundLater(t *testing.T) {
	g := newGuest(t)
	if err := g.Add(t.Context(), "c1", g.storages("c1", g.layer("f", "x"))); err != nil {
		t.Fatal(err)
	}
	if err := g.Corrupted("c1"); err != nil {
		t.Errorf("Corrupted = %v", err)
	}
	for _, mt := range g.mounts {
		if mt.verity != nil {
			mt.verity[0].device = loopDevice{corrupt: true}
		}
	}
	var corrupt *own.CorruptError
	if err := g.Corrupted("c1"); !errors.As(err, &corrupt) {
		t.Errorf("Corrupted = %v", err)
	}
	if err := g.Corrupted("c2"); err != nil {
		t.Errorf("Corrupted of another container = %v", err)
	}
}

func TestAnotherStorageAtTheSamePlaceIsRefused(t *testing.T) {
	g := newGuest(t)
	s := &agent.Storage{Driver: "ephemeral", Fstype: "tmpfs", Options: []string{"size=1m"}, MountPoint: g.root + "/t"}
	if err := g.Add(t.Context(), "a", []*agent.Storage{s}); err != nil {
		t.Fatal(err)
	}
	other := &agent.Storage{Driver: "ephemeral", Fstype: "tmpfs", Options: []string{"size=2m"}, MountPoint: g.root + "/t"}
	if err := g.Add(t.Context(), "b", []*agent.Storage{other}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("Add = %v, want ALREADY_EXISTS", err)
	}
}

func TestSharedStoragesOutliveTheirContainer(t *testing.T) {
	g := newGuest(t)
	s := &agent.Storage{Driver: "ephemeral", Fstype: "tmpfs", MountPoint: g.root + "/t", Shared: true}
	if err := g.Add(t.Context(), "a", []*agent.Storage{s}); err != nil {
		t.Fatal(err)
	}
	if err := g.Remove(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if len(g.mounted()) != 1 {
		t.Error("a shared storage went with its container")
	}
}
