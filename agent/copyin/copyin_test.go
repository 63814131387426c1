// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package copyin

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/internal/worktest"
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
		return r.Copy(owner(&agent.CopyFileRequest{
			Path: base + "/" + name, FileMode: mode, Data: []byte(data),
			FileSize: size, DirMode: 0o755,
		}))
	}
	for _, err := range []error{
		do("empty", unix.S_IFREG|0o600, "", 0),
		do("d", unix.S_IFDIR|0o1777, "", 0),
		do("d/link", unix.S_IFLNK|0o777, "..data/empty", 0), // no way up, only a name
		do("d/link", unix.S_IFLNK|0o777, "target", 0),       // a link replaces a link
		do("empty", unix.S_IFDIR|0o700, "", 0),              // a directory replaces a file
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
		return r.Copy(owner(&agent.CopyFileRequest{
			Path: base + "/f", FileMode: unix.S_IFREG | 0o600, FileSize: 9,
			Offset: off, Data: []byte(data),
		}))
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

// TestEscapes: no request of the host changes a file outside the directory.
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
		return r.Copy(owner(&agent.CopyFileRequest{
			Path: path, FileMode: mode, Data: []byte(data), FileSize: int64(len(data)),
			DirMode: 0o755,
		}))
	}
	for _, l := range [][2]string{
		{"abs", outside},
		{"rel", "../outside"},
		{"file", outside + "/victim"},
		{"d.coco", ".."},
	} {
		if err := send(base+"/"+l[0], unix.S_IFLNK|0o777, l[1]); !errdefs.IsInvalidArgument(err) {
			t.Errorf("a link to %s: %v, want a refusal", l[1], err)
		}
		if err := os.Symlink(l[1], filepath.Join(base, l[0])); err != nil { // by a container
			t.Fatal(err)
		}
	}
	for _, p := range []string{
		base, base + "/", base + "/../outside/x", base + "/./x", base + "//x", outside + "/x", "/x", "x", "", base + "x",
		base + "/abs/x", base + "/rel/x", base + "/abs/deep/x", base + "/d.coco/outside/x", base + "/f\x00x",
		base + "/" + partsDir, base + "/" + partsDir + "/x",
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

// TestLinkTargets: the allowed targets of links, and that nothing is written through a link that leads elsewhere
// within the directory: two containers' files are there.
func TestLinkTargets(t *testing.T) {
	base := t.TempDir()
	r := New(base)
	link := func(name, target string, inner bool) error {
		return r.Copy(owner(&agent.CopyFileRequest{
			Path: base + "/" + name, FileMode: unix.S_IFLNK | 0o777,
			Data: []byte(target), DirMode: 0o755, Inner: inner,
		}))
	}
	for _, tc := range []struct {
		name, target string
		inner, ok    bool
	}{
		{"a", "b", false, true},
		{"a", "b/c", false, true},
		{"d/a", "..data/x", false, true},
		{"d/..data", "..2026_1", false, true},
		{"a", "/", false, false},
		{"a", "/etc", false, false},
		{"a", "..", false, false},
		{"a", "../x", false, false},
		{"a", "b/../../x", false, false},
		{"d/a", "/etc", false, false},
		{"d/a", "../x", false, false},
		{"d/e/a", "x/..", false, false},
		{"a", "/etc", true, false},
		{"a", "..", true, false}, // at the top, where sources of mounts are
		{"d/a", "/etc", true, true},
		{"d/e/a", "../../../x", true, true}, // content, as the host has it
		{"d/a", "", true, false},
		{"d/a", "a\x00b", true, false},
	} {
		if err := link(tc.name, tc.target, tc.inner); (err == nil) != tc.ok || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s -> %q, inner %v: %v, want ok %v", tc.name, tc.target, tc.inner, err, tc.ok)
		}
	}
	for _, err := range []error{
		os.Mkdir(base+"/mine", 0o755), os.Mkdir(base+"/other", 0o755),
		link("mine/l", "../other", true),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, mode := range []uint32{unix.S_IFREG | 0o644, unix.S_IFDIR | 0o755, unix.S_IFLNK | 0o777} {
		err := r.Copy(owner(&agent.CopyFileRequest{
			Path: base + "/mine/l/x", FileMode: mode, Data: []byte("y"), FileSize: 1,
			DirMode: 0o755,
		}))
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("through a link (%#o): %v", mode, err)
		}
	}
	if err := r.Copy(&agent.CopyFileRequest{Path: base + "/mine/l/x", Remove: true}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("remove through a link: %v", err)
	}
	if entries, err := os.ReadDir(base + "/other"); err != nil || len(entries) != 0 {
		t.Errorf("the other's files: %v, %v", entries, err)
	}
}

// TestWhatIsInUse: the sources of a container's mounts are not changed under it. A volume of kubelet's is
// updated in kubelet's steps, and its current state is not touched.
func TestWhatIsInUse(t *testing.T) {
	base := t.TempDir()
	r := New(base)
	send := func(name string, mode uint32, data string) error {
		return r.Copy(owner(&agent.CopyFileRequest{
			Path: base + "/" + name, FileMode: mode, Data: []byte(data),
			FileSize: int64(len(data)), DirMode: 0o755,
		}))
	}
	remove := func(name string) error { return r.Copy(&agent.CopyFileRequest{Path: base + "/" + name, Remove: true}) }
	const file, dir, link = unix.S_IFREG | 0o644, unix.S_IFDIR | 0o755, unix.S_IFLNK | 0o777
	for _, err := range []error{
		send("d/src/f", file, "x"), send("hosts", file, "x"), send("d/free", file, "x"),
		send("v/..1/key", file, "x"), send("v/..data", link, "..1"), send("v/key", link, "..data/key"),
		send("v/plain", file, "x"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	r.Use("c", []string{base + "/d/src", base + "/hosts", base + "/v/", "/elsewhere/x"})
	for what, err := range map[string]error{
		"the file itself": send("hosts", file, "y"), "a link in its place": send("hosts", link, "x"),
		"its removal":   remove("hosts"),
		"the directory": send("d/src", dir, ""), "its removal, too": remove("d/src"), "the way to it": remove("d"),
		"a link on the way": send("d", link, "x"),
		"a file in it":      send("d/src/f", file, "y"), "a new file in it": send("d/src/g", file, "y"),
		"removal of a file in it": remove("d/src/f"),
		"the current state":       send("v/..1/key", file, "y"), "a new key in it": send("v/..1/new", file, "y"),
		"its end":                    remove("v/..1"),
		"a plain file of the volume": send("v/plain", file, "y"), "its removal, as well": remove("v/plain"),
		"a link elsewhere":         send("v/k", link, "x"),
		"the link becoming a file": send("v/..data", file, "y"), "the link leading down": send("v/..data", link, "..1/x"),
		"the link's removal":         remove("v/..data"),
		"something through the link": send("v/..data/key", file, "y"),
	} {
		if !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v, want a refusal", what, err)
		}
	}
	for _, step := range []struct {
		what string
		err  error
	}{
		{"beside it", send("d/free", file, "y")},
		{"a new state", send("v/..2/key", file, "new")},
		{"another key of it", send("v/..2/more", file, "new")},
		{"a link to a key", send("v/more", link, "..data/more")},
		{"the swap", send("v/..data", link, "..2")},
		{"the old state's end", remove("v/..1")},
		{"a link's end", remove("v/more")},
		{"the end of nothing", remove("v/none")},
	} {
		if step.err != nil {
			t.Errorf("%s: %v", step.what, step.err)
		}
	}
	if b, err := os.ReadFile(base + "/v/key"); string(b) != "new" {
		t.Errorf("the volume says %q, %v", b, err)
	}
	r.Unuse("c")
	if err := errors.Join(send("hosts", file, "y"), remove("d"), remove("v")); err != nil {
		t.Errorf("after the container: %v", err)
	}
}

func TestForget(t *testing.T) {
	base := filepath.Join(t.TempDir(), "base")
	r := New(base)
	if err := r.Forget("c"); err != nil {
		t.Errorf("before anything was copied: %v", err)
	}
	kept := []string{
		"c-0123456789abcdef", "c-0123456789abcdeg-x", "cc-0123456789abcdef-x", "other",
		"c-b-0123456789abcdef-x",
	}
	for _, n := range append([]string{"c-0123456789abcdef-hosts", "c-fedcba9876543210-d"}, kept...) {
		if err := r.Copy(owner(&agent.CopyFileRequest{Path: base + "/" + n, FileMode: unix.S_IFDIR | 0o700})); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Copy(owner(&agent.CopyFileRequest{
		Path:     base + "/c-fedcba9876543210-d/f",
		FileMode: unix.S_IFREG | 0o600,
	})); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"c-fedcba9876543210-d/g", "other/f"} { // the first piece of two
		if err := r.Copy(owner(&agent.CopyFileRequest{
			Path: base + "/" + n, FileMode: unix.S_IFREG | 0o600, FileSize: 2,
			Data: []byte("x"),
		})); err != nil {
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

// All that a file system of the host can hold is copied: long names, names that are not UTF-8, names like those of
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
	if err == nil || !utf8.ValidString(err.Error()) || !strings.Contains(err.Error(), `caf\xe9`) ||
		!errdefs.IsFailedPrecondition(err) {
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
		_ = r.Copy(owner(&agent.CopyFileRequest{
			Path: base + rel, FileMode: mode, Data: data, FileSize: size, Offset: off,
			DirMode: 0o755,
		}))
		if entries, err := os.ReadDir(top); err != nil || len(entries) != 1 {
			t.Errorf("%q: beside the base: %v, %v", rel, entries, err)
		}
	})
}
