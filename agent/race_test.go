// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/agent/runner"
	"github.com/coco-shim/coco/agent/storage"
	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/testvm"
)

// raceTime is how long names are swapped: a few seconds, or COCO_RACE_SECONDS.
func raceTime(t *testing.T) time.Duration {
	t.Helper()
	v := os.Getenv("COCO_RACE_SECONDS")
	if v == "" {
		return 3 * time.Second
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		t.Fatalf("COCO_RACE_SECONDS: %v", err)
	}
	return time.Duration(n) * time.Second
}

// marker is a file that only the directory outside has.
const marker = "of-the-guest"

// racer is a service with real mounts over a shared volume, in which somebody swaps names as fast as the
// kernel does it.
type racer struct {
	*fixture
	t       *testing.T
	outside string
	volume  string // shared by a container, below the service's directory
	served  map[string][2]int
}

// seeing is a runtime that looks at the sources of mounts as an OCI runtime does: by name.
type seeing struct {
	*fakeRunner
	look func(specs.Mount)
}

func (s seeing) Create(ctx context.Context, c runner.Container) (runner.Process, error) {
	for _, m := range c.Spec.Mounts {
		s.look(m)
	}
	return s.fakeRunner.Create(ctx, c)
}

func newRacer(t *testing.T) *racer {
	t.Helper()
	f := newFixture(t)
	f.sandbox(t)
	r := &racer{
		fixture: f, t: t, outside: t.TempDir(), volume: f.RunDir + "/" + contract.FilesName + "/vol",
		served: map[string][2]int{},
	}
	m := storage.New(f.RunDir)
	f.service.Storage = m
	f.service.Runner = seeing{f.runner, func(m specs.Mount) {
		if _, err := os.Lstat(filepath.Join(m.Source, marker)); err == nil {
			t.Errorf("a container has %s at %s", marker, m.Destination)
		}
	}}
	t.Cleanup(func() {
		if err := m.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	for _, d := range []string{"d", "d/sub", "u", "w", "other"} {
		must(t, os.MkdirAll(filepath.Join(r.volume, d), 0o755))
		must(t, os.MkdirAll(filepath.Join(r.outside, d), 0o755))
	}
	must(t, os.WriteFile(filepath.Join(r.volume, "d/f"), nil, 0o600))
	for _, d := range []string{"", "d", "d/sub", "u", "w", "other"} {
		must(t, os.WriteFile(filepath.Join(r.outside, d, marker), []byte("secret"), 0o600))
	}
	must(t, os.WriteFile(filepath.Join(r.outside, "d/f"), nil, 0o600))
	return r
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// swap exchanges each name with a link that leads outside, until stop is closed.
func (r *racer) swap(stop <-chan struct{}) (swaps int) {
	names := []string{"d", "u", "w", "d/sub", "d/f"}
	for i, n := range names {
		must(r.t, os.Symlink(filepath.Join(r.outside, n), filepath.Join(r.volume, "link"+strconv.Itoa(i))))
	}
	for {
		for i, n := range names {
			select {
			case <-stop:
				return swaps
			default:
			}
			// While d is the link, what is below it is outside, and is left alone by this side.
			if strings.Contains(n, "/") && !isDir(filepath.Join(r.volume, "d")) {
				continue
			}
			err := unix.Renameat2(unix.AT_FDCWD, filepath.Join(r.volume, n), unix.AT_FDCWD,
				filepath.Join(r.volume, "link"+strconv.Itoa(i)), unix.RENAME_EXCHANGE)
			if err == nil {
				swaps++
			}
		}
	}
}

func isDir(p string) bool {
	st, err := os.Lstat(p)
	return err == nil && st.IsDir()
}

// state is everything about the directory outside.
func (r *racer) state() string {
	var out strings.Builder
	err := filepath.WalkDir(r.outside, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		fmt.Fprintf(&out, "%s %o %d:%d %d\n", strings.TrimPrefix(p, r.outside), st.Mode, st.Uid, st.Gid, st.Size)
		return nil
	})
	must(r.t, err)
	return out.String()
}

// note counts what a request came to; either way is fine, if it comes to something.
func (r *racer) note(what string, err error) {
	n := r.served[what]
	if err == nil {
		n[0]++
	} else {
		n[1]++
	}
	r.served[what] = n
	if errors.Is(err, context.DeadlineExceeded) {
		r.t.Errorf("%s hangs: %v", what, err)
	}
}

// container makes a container of swapped names and removes it again.
func (r *racer) container(what string, sp *pb.Spec, storages ...*pb.Storage) {
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	_, err := r.CreateContainer(ctx, &pb.CreateContainerRequest{ContainerId: "c", OCI: sp, Storages: storages})
	r.note(what, err)
	if err != nil {
		return
	}
	for _, s := range storages {
		if _, err := os.Lstat(filepath.Join(s.MountPoint, marker)); err == nil {
			r.t.Errorf("%s: %s is in %s", what, marker, s.MountPoint)
		}
		_ = os.WriteFile(filepath.Join(s.MountPoint, "written"), nil, 0o600) // as the container would
	}
	r.runner.get("c").init.end(0)
	if _, err := r.RemoveContainer(ctx, &pb.RemoveContainerRequest{ContainerId: "c"}); err != nil {
		r.t.Fatalf("%s: remove: %v", what, err)
	}
}

// round makes each request that names something of the volume.
func (r *racer) round() {
	at := func(p string) string { return filepath.Join(r.volume, p) }
	bind := func(p string) *pb.Spec {
		sp := spec()
		sp.Mounts = []*pb.Mount{{Destination: "/m", Type: "bind", Source: at(p), Options: []string{"rbind"}}}
		return sp
	}
	box := r.RunDir + "/sandbox/"
	r.container("bind", bind("d"))
	r.container("bind of what is below", bind("d/sub"))
	r.container("bind of a file", bind("d/f"))
	root := spec()
	root.Root.Path = at("d")
	r.container("root file system", root)
	r.container("storage", spec(), &pb.Storage{
		Driver: "bind", Source: at("d/sub"), MountPoint: box + "b",
		FsGroup: &pb.FSGroup{GroupId: 77},
	})
	r.container("fs_group", spec(), &pb.Storage{
		Driver: "bind", Source: r.volume, MountPoint: box + "v",
		FsGroup: &pb.FSGroup{GroupId: 78},
	})
	r.container("sub path", spec(), &pb.Storage{
		Driver: "bind", Source: r.volume,
		DriverOptions: []string{contract.OptionSubPath + "d/sub"}, MountPoint: box + "s",
	})
	r.container("mount point", spec(), &pb.Storage{
		Driver: "ephemeral", Source: "tmpfs", Fstype: "tmpfs",
		Options: []string{"size=64k"}, MountPoint: at("d/sub/m"),
	})
	r.container("overlay", spec(), &pb.Storage{
		Driver: "overlayfs", Source: "overlay", Fstype: "overlay", MountPoint: box + "o",
		Options:       []string{"lowerdir=" + at("d") + ":" + at("other"), "upperdir=" + at("u"), "workdir=" + at("w")},
		DriverOptions: []string{contract.OptionCreateDirectory + at("u/made")},
	})
	for what, req := range map[string]*pb.CopyFileRequest{
		"file":      {Path: at("d/sub/x"), FileMode: unix.S_IFREG | 0o644, FileSize: 1, Data: []byte("x"), DirMode: 0o755},
		"directory": {Path: at("d/sub"), FileMode: unix.S_IFDIR | 0o711, DirMode: 0o755, Uid: 5},
		"link":      {Path: at("d/l"), FileMode: unix.S_IFLNK | 0o777, Data: []byte("/etc"), Inner: true, DirMode: 0o755},
		"removal":   {Path: at("d/" + marker), Remove: true},
		"tree":      {Path: at("d/sub/deep/er/x"), FileMode: unix.S_IFREG | 0o644, DirMode: 0o755},
	} {
		_, err := r.CopyFile(r.t.Context(), req)
		r.note("copy of a "+what, err)
	}
	_, err := r.GetVolumeStats(r.t.Context(), &pb.VolumeStatsRequest{VolumeGuestPath: at("d/sub")})
	r.note("statistics", err)
}

// TestNamesAreSwappedWhileRequestsAreServed: a container that shares a volume exchanges directories and files
// of it with links out of it, while the host's requests name them. Nothing outside is read or written, every
// request comes to an end, and nothing stays mounted.
func TestNamesAreSwappedWhileRequestsAreServed(t *testing.T) {
	testvm.Need(t, testvm.Root)
	r := newRacer(t)
	before := r.state()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	swaps := 0
	wg.Go(func() { swaps = r.swap(stop) })
	for end := time.Now().Add(raceTime(t)); time.Now().Before(end) && !t.Failed(); {
		r.round()
	}
	close(stop)
	wg.Wait()
	if after := r.state(); after != before {
		t.Errorf("outside has changed:\n%s\nit was\n%s", after, before)
	}
	ok := 0
	for what, n := range r.served {
		ok += n[0]
		t.Logf("%s: served %d times, refused %d times", what, n[0], n[1])
	}
	t.Logf("%d swaps", swaps)
	if ok == 0 || swaps == 0 {
		t.Errorf("%d requests were served during %d swaps: nothing was tried", ok, swaps)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), r.RunDir) {
		t.Errorf("still mounted below %s (%v)", r.RunDir, err)
	}
}
