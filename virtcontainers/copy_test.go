// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/virtcontainers/spec"
)

// guestFiles takes files as the guest does: in chunks, complete at their size.
type guestFiles map[string]*agent.CopyFileRequest

func (g guestFiles) CopyFile(_ context.Context, r *agent.CopyFileRequest) error {
	r.Data = bytes.Clone(r.GetData())
	old := g[r.GetPath()]
	if r.GetOffset() == 0 {
		g[r.GetPath()] = r
		return nil
	}
	if old == nil || int64(len(old.GetData())) != r.GetOffset() {
		return errors.New("a chunk out of order")
	}
	old.Data = append(old.Data, r.GetData()...)
	return nil
}

func write(t *testing.T, path string, data []byte, mode fs.FileMode) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, mode), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
}

func TestCopyInKeepsTheTree(t *testing.T) {
	dir := t.TempDir()
	big := bytes.Repeat([]byte("0123456789abcdef"), 3<<16+5) // three chunks and a bit
	write(t, filepath.Join(dir, "tree/a.txt"), []byte("a"), 0o640)
	write(t, filepath.Join(dir, "tree/sub/big"), big, 0o4755)
	write(t, filepath.Join(dir, "tree/empty"), nil, 0o600)
	if err := os.Symlink("sub/big", filepath.Join(dir, "tree/link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "tree/sub"), 0o1777|fs.ModeSticky); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("tree", filepath.Join(dir, "entry")); err != nil {
		t.Fatal(err)
	}
	g := guestFiles{}
	// The source is a link, which a bind mount follows.
	if err := copyIn(t.Context(), g, spec.Copy{Source: filepath.Join(dir, "entry"), Guest: "/g/x", Destination: "/data"}, 8); err != nil {
		t.Fatalf("copyIn() = %v", err)
	}
	type file struct {
		Mode uint32
		Size int
	}
	got := map[string]file{}
	for p, r := range g {
		got[p] = file{r.GetFileMode(), len(r.GetData())}
		if r.GetUid() != int32(os.Getuid()) || r.GetGid() != int32(os.Getgid()) { //nolint:gosec // ids
			t.Errorf("%s belongs to %d:%d", p, r.GetUid(), r.GetGid())
		}
	}
	want := map[string]file{
		"/g/x":         {unix.S_IFDIR | 0o755, 0},
		"/g/x/a.txt":   {unix.S_IFREG | 0o640, 1},
		"/g/x/empty":   {unix.S_IFREG | 0o600, 0},
		"/g/x/link":    {unix.S_IFLNK | 0o777, len("sub/big")},
		"/g/x/sub":     {unix.S_IFDIR | 0o1777, 0},
		"/g/x/sub/big": {unix.S_IFREG | 0o755, len(big)},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("copied (-want +got):\n%s", diff)
	}
	if !bytes.Equal(g["/g/x/sub/big"].GetData(), big) {
		t.Error("the large file arrived changed")
	}
}

func TestCopyInRefusesBeforeItSends(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "big"), make([]byte, 3<<20), 0o600)
	for i := range 300 {
		write(t, filepath.Join(dir, "many", strconv.Itoa(i)), nil, 0o600)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // a test's
	for _, tt := range []struct {
		name, source string
		want         []string
	}{
		{"a large file", filepath.Join(dir, "big"), []string{"mount /data", "big", "3 MiB", "limit is 1 MiB", "runtime.max_copy_mib"}},
		{"many files", filepath.Join(dir, "many"), []string{"mount /data", "entries", "limit is 1 MiB"}},
		{"a socket", filepath.Join(dir, "sock"), []string{"sock is a socket of the host"}},
		{"a device", "/dev/null", []string{"/dev/null is a character device of the host"}},
		{"the host's kernel", "/proc/sys", []string{"/proc/sys is on proc"}},
		{"nothing", filepath.Join(dir, "none"), []string{"none does not exist"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := guestFiles{}
			err := copyIn(t.Context(), g, spec.Copy{Source: tt.source, Guest: "/g/x", Destination: "/data"}, 1)
			if err == nil {
				t.Fatal("copyIn() succeeded")
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("copyIn() = %v, want %q in it", err, w)
				}
			}
			if len(g) != 0 {
				t.Errorf("%d files were sent", len(g))
			}
		})
	}
}
