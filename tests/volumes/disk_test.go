// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package volumes

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/virtcontainers"
)

const diskName = ".coco-disk.img"

func allocated(t *testing.T, name string) int64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(name, &st))
	return st.Blocks * 512
}

// An emptyDir on disk is a file system that the guest makes in a disk that it encrypts. No
// file of the host has what a container writes to it or to its writable layer, or reads from a secret.
func TestNothingOfAContainerIsInAHostFile(t *testing.T) {
	p := newPod(t, nil)
	dir, secret := p.make("empty-dir", "data", 0o777), p.make("secret", "secret", 0o755)
	p.tmpfs(secret, "mode=0755")
	canary := strings.Join([]string{"tweet", "tweet", "canary"}, "-")
	payload(t, secret, "1", map[string]string{"bird": canary})
	mounts := []specs.Mount{bind(dir, "/d"), bind(secret, "/s", "ro")}
	start := time.Now()
	got := p.run(mounts, `mount | grep ' /d ' | cut -d' ' -f5; ls -A /d; stat -c '%a %u:%g' /d
		b=$(cat /s/bird); for i in $(seq 200); do echo $b $b $b $b $b $b $b $b; done >/tmp/many
		for i in $(seq 20); do cat /tmp/many; done >/d/many; cp /tmp/many /upper; sync; grep -c $b /d/many`)
	t.Logf("container with an emptyDir on disk: %s", time.Since(start))
	if got != "ext4\n777 0:0\n4000\n" {
		t.Errorf("the container says %q", got)
	}
	image := filepath.Join(dir, diskName)
	full := allocated(t, image)
	if full < 400<<10 || full > 8<<20 {
		t.Errorf("500 KB of text take %d bytes of the host", full)
	}
	found := 0
	must(t, filepath.WalkDir(p.dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name == secret { // a tmpfs of kubelet's
			return fs.SkipDir
		}
		if !e.Type().IsRegular() {
			return nil
		}
		if st, _ := e.Info(); st.Size() < 64<<20 {
			data, err := os.ReadFile(name)
			if bytes.Contains(data, []byte("tweet-tweet-")) {
				t.Errorf("%s holds what the container wrote", name)
			}
			found++
			return err
		}
		found++
		return sparse(t, name, "tweet-tweet-")
	}))
	if found < 3 {
		t.Errorf("only %d files were looked at", found)
	}
	p.testBigWrite(canary)
	p.run(mounts, "dd if=/dev/zero of=/d/big bs=1M count=20 2>/dev/null; sync")
	if n := allocated(t, image); n < full+(20<<20) {
		t.Errorf("20 MiB more, and the host's file takes %d bytes after %d", n, full)
	}
	p.run(mounts, "rm /d/big; sync; sleep 1; sync")
	if n := allocated(t, image); n > full+(10<<20) {
		t.Errorf("after they were removed the host's file still takes %d bytes, before them %d", n, full)
	}
}

// bigWrite is what a container writes to its root file system: more than guest memory of the default size
// has room for. COCO_WRITE_MIB=1024 (make big-write) is what an installation of packages writes.
func bigWrite(t *testing.T) int64 {
	t.Helper()
	if s := os.Getenv("COCO_WRITE_MIB"); s != "" {
		n, err := strconv.ParseInt(s, 10, 32)
		must(t, err)
		return n
	}
	return 288
}

// The writable layer is a disk of 16 GiB by default, which the guest encrypts. Its file has no name: the VMM has it
// open while the container is there, and then it is gone.
func (p *pod) testBigWrite(canary string) {
	t := p.t
	t.Helper()
	n := bigWrite(t)
	_, out, done := p.start(nil,
		fmt.Sprintf(`for i in $(seq 4000); do echo %s; done >/many; mount | grep -c ' on / type overlay'
		df -m / | tail -n1 | while read fs size rest; do echo $((size / 1000)); done
		dd if=/dev/zero of=/big bs=1M count=%d 2>/dev/null; sync; stat -c %%s /big; grep -c %s /many`, canary, n, canary), nil)
	disks := p.scratchDisks()
	if len(disks) != 1 {
		t.Fatalf("the VMM has %d disks of writable layers open, want 1", len(disks))
	}
	name := disks[0].Name()
	defer disks[0].Close()
	if code := done(); code != 0 || out.String() != fmt.Sprintf("1\n16\n%d\n4000\n", n<<20) {
		t.Errorf("%d MiB written to the writable layer: exit %d, %q", n, code, out)
	}
	if got := allocated(t, name); got < n<<20 {
		t.Errorf("%d MiB of the container take %d bytes of the host", n, got)
	}
	must(t, sparse(t, name, "tweet-tweet-"))
	if left := p.scratchDisks(); len(left) != 0 {
		t.Errorf("the VMM has %d disks of writable layers open after the container's end", len(left))
	}
	if names, err := os.ReadDir(filepath.Join(p.dir, "scratch")); err != nil || len(names) != 0 {
		t.Errorf("left: %v, %v", names, err)
	}
}

// scratchDisks opens the files without a name that the VMM has as disks of writable layers.
func (p *pod) scratchDisks() (out []*os.File) {
	p.t.Helper()
	names, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.PID()))
	must(p.t, err)
	seen := map[uint64]bool{}
	for _, name := range names {
		var st unix.Stat_t
		link, err := os.Readlink(name)
		if err != nil || !strings.HasPrefix(link, filepath.Join(p.dir, "scratch")+"/") ||
			unix.Stat(name, &st) != nil || seen[st.Ino] {
			continue
		}
		seen[st.Ino] = true
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		must(p.t, err)
		out = append(out, os.NewFile(uintptr(fd), fmt.Sprintf("/proc/self/fd/%d", fd)))
	}
	return out
}

// sparse looks for text in the parts of a large file that are there.
func sparse(t *testing.T, name, text string) error {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	for at := int64(0); ; {
		from, err := f.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		to, err := f.Seek(from, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		data := make([]byte, to-from)
		if _, err := f.ReadAt(data, from); err != nil {
			return err
		}
		if bytes.Contains(data, []byte(text)) {
			t.Errorf("%s holds what the container wrote, near %d", name, from)
		}
		at = to
	}
}

// A full emptyDir is ENOSPC, whether its own size is reached or the host's disk is full, and the VM
// goes on. Its disk goes with the pod also when the shim is gone.
func TestAFullEmptyDir(t *testing.T) {
	p := newPod(t, func(c *configs.Config) {
		c.Runtime.EmptyDirSizeMiB, c.Runtime.WritableLayer, c.Runtime.UpperSizeMiB = 48, configs.WritableMemory, 16
		c.Runtime.KubeletDirs = append(c.Runtime.KubeletDirs, filepath.Join(filepath.Dir(c.Runtime.KubeletDirs[0]), "tiny"))
	})
	small, crowded := p.make("empty-dir", "small", 0o777), p.make("empty-dir", "crowded", 0o777)
	if got := p.run([]specs.Mount{bind(small, "/d")}, "dd if=/dev/zero of=/d/big bs=1M count=60 2>&1 | grep -o 'No "+
		"space'; echo more >/tmp/x; rm /d/big; echo there is room >/d/x; cat /d/x"); got != "No space\nthere is room\n" {
		t.Errorf("beyond its size: %q", got)
	}
	must(t, os.Mkdir(filepath.Join(p.dir, "tiny"), 0o755))
	p.tmpfs(filepath.Join(p.dir, "tiny"), "size=20m")
	full := filepath.Join(p.dir, "tiny/pods", podUID, "volumes/kubernetes.io~empty-dir/full")
	must(t, os.MkdirAll(full, 0o777))
	if got := p.run([]specs.Mount{bind(full, "/d")},
		"dd if=/dev/zero of=/d/big bs=1M count=40 2>/dev/null; sync; echo alive"); got != "alive\n" {
		t.Errorf("on a full host: %q", got)
	}
	_ = crowded
	if got := p.run(nil, "dd if=/dev/zero of=/big bs=1M count=20 2>&1 | grep -o 'No space'; stat -c "+
		"%s /big"); !strings.HasPrefix(got, "No space\n16") {
		t.Errorf("beyond a writable layer of 16 MiB in memory: %q", got)
	}
	if n := len(p.scratchDisks()); n != 0 {
		t.Errorf("%d disks for writable layers in memory", n)
	}
	if _, err := os.Stat(filepath.Join(small, diskName)); err != nil {
		t.Error(err)
	}
	// The clean-up from the journal, as after a crash of the shim.
	must(t, virtcontainers.Cleanup(t.Context(), p.dir))
	if _, err := os.Stat(filepath.Join(small, diskName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the clean-up of a crash the disk is still there: %v", err)
	}
}
