// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package copyin

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/internal/worktest"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func owner(req *agent.CopyFileRequest) *agent.CopyFileRequest {
	req.Uid, req.Gid = int32(os.Getuid()), int32(os.Getgid())
	return req
}

func TestFileInPieces(t *testing.T) {
	base := filepath.Join(t.TempDir(), "base")
	r := New(base)
	path := base + "/dir/sub/file"
	for off, piece := range []string{"abc", "def", "g"} {
		err := r.Copy(owner(&agent.CopyFileRequest{
			Path: path, FileSize: 7, FileMode: unix.S_IFREG | 0o640, DirMode: 0o750, Offset: int64(off * 3), Data: []byte(piece),
		}))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); (err == nil) != (off == 2) {
			t.Errorf("after piece %d: %v; a file appears when it is complete", off, err)
		}
	}
	b, err := os.ReadFile(path)
	st, serr := os.Stat(path)
	if err != nil || serr != nil || string(b) != "abcdefg" || st.Mode().Perm() != 0o640 {
		t.Errorf("content %q, mode %v, %v, %v", b, st.Mode(), err, serr)
	}
	for _, dir := range []string{base + "/dir/sub/*", base + "/" + partsDir + "/*"} {
		if left, _ := filepath.Glob(dir); len(left) > 1 || len(left) == 1 && left[0] != path {
			t.Errorf("left behind: %v", left)
		}
	}
}

func TestKinds(t *testing.T) {
	base := t.TempDir()
	r := New(base)
	do := func(name string, mode uint32, data string, size int64) error {
		return r.Copy(owner(&agent.CopyFileRequest{Path: base + "/" + name, FileMode: mode, Data: []byte(data), FileSize: size, DirMode: 0o755}))
	}
	for _, err := range []error{
		do("empty", unix.S_IFREG|0o600, "", 0),
		do("d", unix.S_IFDIR|0o1777, "", 0),
		do("d/link", unix.S_IFLNK|0o777, "../empty", 0),
		do("d/link", unix.S_IFLNK|0o777, "target", 0), // a link replaces a link
		do("empty", unix.S_IFDIR|0o700, "", 0),        // a directory replaces a file
		do("empty", unix.S_IFDIR|0o755, "", 0),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	if l, err := os.Readlink(base + "/d/link"); l != "target" {
		t.Errorf("link to %q, %v", l, err)
	}
	if st, err := os.Stat(base + "/d"); err != nil || st.Mode()&os.ModeSticky == 0 || st.Mode().Perm() != 0o777 {
		t.Errorf("directory: %v, %v", st, err)
	}
	for name, err := range map[string]error{
		"device":                  do("dev", unix.S_IFCHR|0o600, "", 0),
		"fifo":                    do("fifo", unix.S_IFIFO|0o600, "", 0),
		"file over directory":     do("d", unix.S_IFREG|0o600, "", 0),
		"link over directory":     do("d", unix.S_IFLNK|0o777, "x", 0),
		"link without target":     do("l", unix.S_IFLNK|0o777, "", 0),
		"more data than the size": do("f", unix.S_IFREG|0o600, "abc", 2),
	} {
		if !errdefs.IsInvalidArgument(err) && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPiecesMustFollowEachOther(t *testing.T) {
	base := t.TempDir()
	r := New(base)
	piece := func(off int64, data string) error {
		return r.Copy(owner(&agent.CopyFileRequest{Path: base + "/f", FileMode: unix.S_IFREG | 0o600, FileSize: 9, Offset: off, Data: []byte(data)}))
	}
	if err := piece(3, "def"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a piece without the first = %v", err)
	}
	if err := piece(0, "abc"); err != nil {
		t.Error(err)
	}
	if err := piece(6, "ghi"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a gap = %v", err)
	}
	if err := piece(0, "ABC"); err != nil { // begins again
		t.Error(err)
	}
	for off, s := range map[int64]string{3: "def"} {
		if err := piece(off, s); err != nil {
			t.Error(err)
		}
	}
	if err := piece(6, "ghi"); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(base + "/f"); string(b) != "ABCdefghi" {
		t.Errorf("content %q", b)
	}
}

// TestEscapes: whatever the host sends, nothing outside the directory changes.
func TestEscapes(t *testing.T) {
	top := t.TempDir()
	base, outside := filepath.Join(top, "base"), filepath.Join(top, "outside")
	for _, d := range []string{base, outside} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r := New(base)
	send := func(path string, mode uint32, data string) error {
		return r.Copy(owner(&agent.CopyFileRequest{Path: path, FileMode: mode, Data: []byte(data), FileSize: int64(len(data)), DirMode: 0o755}))
	}
	for _, l := range [][2]string{{"abs", outside}, {"rel", "../outside"}, {"file", outside + "/victim"}, {"d.coco", ".."}} {
		if err := send(base+"/"+l[0], unix.S_IFLNK|0o777, l[1]); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []string{
		base, base + "/", base + "/../outside/x", base + "/./x", base + "//x", outside + "/x", "/x", "x", "", base + "x",
		base + "/abs/x", base + "/rel/x", base + "/abs/deep/x", base + "/d.coco/outside/x", base + "/f\x00x", base + "/" + partsDir, base + "/" + partsDir + "/x",
	} {
		for _, mode := range []uint32{unix.S_IFREG | 0o644, unix.S_IFDIR | 0o755, unix.S_IFLNK | 0o777} {
			if err := send(p, mode, "evil"); err == nil {
				t.Errorf("CopyFile(%q, %#o) was accepted", p, mode)
			}
		}
	}
	// A file that replaces a link replaces the link, not what it points to.
	if err := send(base+"/file", unix.S_IFREG|0o644, "mine"); err != nil {
		t.Errorf("file over link: %v", err)
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) != 0 {
		t.Errorf("outside: %v, %v", entries, err)
	}
}

func TestForget(t *testing.T) {
	base := filepath.Join(t.TempDir(), "base")
	r := New(base)
	if err := r.Forget("c"); err != nil {
		t.Errorf("before anything was copied: %v", err)
	}
	kept := []string{"c-0123456789abcdef", "c-0123456789abcdeg-x", "cc-0123456789abcdef-x", "other", "c-b-0123456789abcdef-x"}
	for _, n := range append([]string{"c-0123456789abcdef-hosts", "c-fedcba9876543210-d"}, kept...) {
		if err := r.Copy(owner(&agent.CopyFileRequest{Path: base + "/" + n, FileMode: unix.S_IFDIR | 0o700})); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Copy(owner(&agent.CopyFileRequest{Path: base + "/c-fedcba9876543210-d/f", FileMode: unix.S_IFREG | 0o600})); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"c-fedcba9876543210-d/g", "other/f"} { // the first piece of two
		if err := r.Copy(owner(&agent.CopyFileRequest{Path: base + "/" + n, FileMode: unix.S_IFREG | 0o600, FileSize: 2, Data: []byte("x")})); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Forget("c"); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(base)
	if err != nil || len(entries) != len(kept)+1 {
		t.Errorf("left: %v, %v; want %v and %s", entries, err, kept, partsDir)
	}
	if parts, err := os.ReadDir(filepath.Join(base, partsDir)); err != nil || len(parts) != 1 {
		t.Errorf("incomplete files left: %v, %v; want that of the other container", parts, err)
	}
}

// What a file system of the host can hold arrives: long names, names that are not UTF-8, names like those of
// incomplete files, owners of 32 bits, times with fractions.
func TestWhatHostsHave(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("gives files to others: run as root")
	}
	base := t.TempDir()
	r := New(base)
	const when = 1234567890_123456789
	for _, name := range []string{
		"d/" + strings.Repeat("n", 255), "d/x.coco-part", ".coco-part-x", "d/.coco-part", "d/caf\xe9", "d/\xff\n\x1b",
	} {
		for _, kind := range []uint32{unix.S_IFREG, unix.S_IFLNK, unix.S_IFDIR} {
			req := &agent.CopyFileRequest{
				FileMode: kind | 0o755, Data: []byte("t"), FileSize: 1, Uid: -2, Gid: -2147483648, MtimeNs: when,
				RawPath: []byte(base + "/" + name),
			}
			if utf8.ValidString(name) {
				req.Path, req.RawPath = string(req.RawPath), nil
			}
			if err := r.Copy(req); err != nil {
				t.Errorf("%q, kind %#o: %v", name, kind, err)
				continue
			}
			var st unix.Stat_t
			if err := unix.Lstat(base+"/"+name, &st); err != nil || st.Mode&unix.S_IFMT != kind ||
				st.Uid != 1<<32-2 || st.Gid != 1<<31 || st.Mtim.Nano() != when {
				t.Errorf("%q is %+v, %v", name, st, err)
			}
		}
	}
	err := r.Copy(&agent.CopyFileRequest{RawPath: []byte(base + "/d/caf\xe9"), FileMode: unix.S_IFREG | 0o600})
	if err == nil || !utf8.ValidString(err.Error()) || !strings.Contains(err.Error(), `caf\xe9`) || !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a file over a directory: %v", err)
	}
}

func FuzzCopy(f *testing.F) {
	f.Add("/file", uint32(unix.S_IFREG|0o644), []byte("x"), int64(1), int64(0))
	f.Add("/a/../../x", uint32(unix.S_IFLNK|0o777), []byte(".."), int64(0), int64(0))
	f.Add("/l/x", uint32(unix.S_IFDIR|0o755), []byte(""), int64(0), int64(7))
	f.Fuzz(func(t *testing.T, rel string, mode uint32, data []byte, size, off int64) {
		defer worktest.Bound(t, len(rel)+len(data))()
		top := t.TempDir()
		base := filepath.Join(top, "base")
		r := New(base)
		_ = r.Copy(owner(&agent.CopyFileRequest{Path: base + "/l", FileMode: unix.S_IFLNK | 0o777, Data: []byte("../")}))
		_ = r.Copy(owner(&agent.CopyFileRequest{Path: base + rel, FileMode: mode, Data: data, FileSize: size, Offset: off, DirMode: 0o755}))
		if entries, err := os.ReadDir(top); err != nil || len(entries) != 1 {
			t.Errorf("%q: beside the base: %v, %v", rel, entries, err)
		}
	})
}
