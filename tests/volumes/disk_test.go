// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package volumes

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
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

// An emptyDir on disk is a file system that the guest makes in a disk that it encrypts. What a
// container writes to it, to its writable layer and reads from a secret is in no file of the host.
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
	p.run(mounts, "dd if=/dev/zero of=/d/big bs=1M count=20 2>/dev/null; sync")
	if n := allocated(t, image); n < full+(20<<20) {
		t.Errorf("20 MiB more, and the host's file takes %d bytes after %d", n, full)
	}
	p.run(mounts, "rm /d/big; sync; sleep 1; sync")
	if n := allocated(t, image); n > full+(10<<20) {
		t.Errorf("after they were removed the host's file still takes %d bytes, before them %d", n, full)
	}
}

// sparse looks for text in the parts of a large file that are there.
func sparse(t *testing.T, name, text string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
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
	p := newPod(t, func(c *configs.Config) { c.Runtime.EmptyDirSizeMiB = 48 })
	small, crowded := p.make("empty-dir", "small", 0o777), p.make("empty-dir", "crowded", 0o777)
	if got := p.run([]specs.Mount{bind(small, "/d")}, "dd if=/dev/zero of=/d/big bs=1M count=60 2>&1 | grep -o 'No space'; echo more >/tmp/x; rm /d/big; echo there is room >/d/x; cat /d/x"); got != "No space\nthere is room\n" {
		t.Errorf("beyond its size: %q", got)
	}
	must(t, os.Mkdir(filepath.Join(p.dir, "tiny"), 0o755))
	p.tmpfs(filepath.Join(p.dir, "tiny"), "size=20m")
	full := filepath.Join(p.dir, "tiny/pods/x/volumes/kubernetes.io~empty-dir/full")
	must(t, os.MkdirAll(full, 0o777))
	if got := p.run([]specs.Mount{bind(full, "/d")}, "dd if=/dev/zero of=/d/big bs=1M count=40 2>/dev/null; sync; echo alive"); got != "alive\n" {
		t.Errorf("on a full host: %q", got)
	}
	_ = crowded
	if _, err := os.Stat(filepath.Join(small, diskName)); err != nil {
		t.Error(err)
	}
	// The clean-up from the journal, as after a crash of the shim.
	must(t, virtcontainers.Cleanup(t.Context(), p.dir))
	if _, err := os.Stat(filepath.Join(small, diskName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the clean-up of a crash the disk is still there: %v", err)
	}
}
