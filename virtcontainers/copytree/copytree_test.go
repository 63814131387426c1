// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package copytree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/virtcontainers/hostfs"
)

// guest takes files as the guest does: in chunks, complete at their size.
type guest struct {
	files  map[string]*agent.CopyFileRequest
	before func(name string) // is called before a file is taken
}

func (g *guest) CopyFile(_ context.Context, r *agent.CopyFileRequest) error {
	name := r.GetPath()
	if name == "" {
		name = string(r.GetRawPath())
	}
	if g.before != nil {
		g.before(name)
	}
	if _, err := proto.Marshal(r); err != nil {
		return err
	}
	if g.files == nil {
		g.files = map[string]*agent.CopyFileRequest{}
	}
	if r.GetRemove() {
		for n := range g.files {
			if n == name || strings.HasPrefix(n, name+"/") {
				delete(g.files, n)
			}
		}
		return nil
	}
	r.Data = bytes.Clone(r.GetData())
	old := g.files[name]
	if r.GetOffset() == 0 {
		g.files[name] = r
		return nil
	}
	if old == nil || int64(len(old.GetData())) != r.GetOffset() {
		return errors.New("a chunk out of order")
	}
	old.Data = append(old.Data, r.GetData()...)
	return nil
}

func write(t *testing.T, name string, data []byte, mode fs.FileMode) {
	t.Helper()
	must(t, errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, data, mode), os.Chmod(name, mode)))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func copyTo(t *testing.T, g *guest, source string, limit uint64) error {
	t.Helper()
	f, err := hostfs.OpenSource(source, true)
	must(t, err)
	defer f.Close()
	return Copy(t.Context(), f, Target{Sink: g, Guest: "/g/x", LimitMiB: limit, Removes: true, RawNames: true})
}

func TestCopyKeepsTheTree(t *testing.T) {
	dir := t.TempDir()
	big := bytes.Repeat([]byte("0123456789abcdef"), 3<<16+5) // three chunks and a bit
	write(t, filepath.Join(dir, "tree/a.txt"), []byte("a"), 0o640)
	write(t, filepath.Join(dir, "tree/sub/big"), big, 0o4755)
	write(t, filepath.Join(dir, "tree/empty"), nil, 0o600)
	must(t, os.Symlink("sub/big", filepath.Join(dir, "tree/link")))
	must(t, os.Chmod(filepath.Join(dir, "tree/sub"), 0o1777|fs.ModeSticky))
	must(t, os.Symlink("tree", filepath.Join(dir, "entry")))
	const when = 1234567890_123456789
	times := []unix.Timespec{unix.NsecToTimespec(when), unix.NsecToTimespec(when)}
	for _, n := range []string{"sub/big", "link", "sub", ""} {
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, "tree", n), times, unix.AT_SYMLINK_NOFOLLOW))
	}
	g := &guest{}
	// The source is a link, which a bind mount follows.
	must(t, copyTo(t, g, filepath.Join(dir, "entry"), 8))
	type file struct {
		Mode uint32
		Size int
		Then bool
	}
	got := map[string]file{}
	for p, r := range g.files {
		got[p] = file{r.GetFileMode(), len(r.GetData()), r.GetMtimeNs() == when}
		if r.GetUid() != int32(os.Getuid()) || r.GetGid() != int32(os.Getgid()) {
			t.Errorf("%s belongs to %d:%d", p, r.GetUid(), r.GetGid())
		}
	}
	want := map[string]file{
		"/g/x":         {unix.S_IFDIR | 0o755, 0, true},
		"/g/x/a.txt":   {unix.S_IFREG | 0o640, 1, false},
		"/g/x/empty":   {unix.S_IFREG | 0o600, 0, false},
		"/g/x/link":    {unix.S_IFLNK | 0o777, len("sub/big"), true},
		"/g/x/sub":     {unix.S_IFDIR | 0o1777, 0, true},
		"/g/x/sub/big": {unix.S_IFREG | 0o755, len(big), true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("copied (-want +got):\n%s", diff)
	}
	if !bytes.Equal(g.files["/g/x/sub/big"].GetData(), big) {
		t.Error("the large file arrived changed")
	}
}

func TestWhatIsRefusedIsRefusedBeforeAnythingIsSent(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "big"), make([]byte, 3<<20), 0o600)
	for i := range 300 {
		write(t, filepath.Join(dir, "many", strconv.Itoa(i)), nil, 0o600)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "sock"))
	must(t, err)
	defer l.Close()
	must(t, os.Mkdir(filepath.Join(dir, "pipes"), 0o755))
	must(t, unix.Mkfifo(filepath.Join(dir, "pipes", "a\nb"), 0o600))
	for _, tt := range []struct {
		name, source string
		want         []string
	}{
		{"a large file", filepath.Join(dir, "big"), []string{"big", "3 MiB", "limit is 1 MiB", "runtime.max_copy_mib"}},
		{"many files", filepath.Join(dir, "many"), []string{"entries", "limit is 1 MiB"}},
		{"a socket", filepath.Join(dir, "sock"), []string{"sock is a socket of the host"}},
		{"a named pipe", filepath.Join(dir, "pipes"), []string{`pipes/a\nb" is a named pipe of the host`}},
		{"a device", "/dev/null", []string{"/dev/null is a character device of the host"}},
		{"the host's kernel", "/proc/sys", []string{"/proc/sys is on proc"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := &guest{}
			err := copyTo(t, g, tt.source, 1)
			if err == nil {
				t.Fatal("Copy() succeeded")
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("Copy() = %v, want %q in it", err, w)
				}
			}
			if len(g.files) != 0 {
				t.Errorf("%d files were sent", len(g.files))
			}
		})
	}
}

// Somebody who can write below a source swaps a directory for a link, or a file for a pipe, while it is copied.
// Nothing outside is read, nothing waits, and what is there in the end is what arrives.
func TestASwappedDirectoryIsNotFollowed(t *testing.T) {
	base := t.TempDir()
	src, secret := filepath.Join(base, "hostpath"), filepath.Join(base, "etc")
	write(t, filepath.Join(src, "a/first"), []byte("x"), 0o644)
	write(t, filepath.Join(src, "d/shadow"), bytes.Repeat([]byte("."), 32), 0o644)
	write(t, filepath.Join(src, "f"), []byte("file"), 0o644)
	write(t, filepath.Join(secret, "shadow"), []byte("root:$6$host-secret-of-the-node:"), 0o600)
	g := &guest{}
	swapped := false
	g.before = func(string) {
		if swapped {
			return
		}
		swapped = true
		must(t, os.Rename(filepath.Join(src, "d"), filepath.Join(src, "e")))
		must(t, os.Symlink(secret, filepath.Join(src, "d")))
		must(t, os.Remove(filepath.Join(src, "f")))
		must(t, os.Mkdir(filepath.Join(src, "f"), 0o755))
	}
	must(t, copyTo(t, g, src, 32))
	var names []string
	for n, r := range g.files {
		if bytes.Contains(r.GetData(), []byte("host-secret")) {
			t.Errorf("VULNERABLE: %s is a file of the host outside the source", n)
		}
		names = append(names, strings.TrimPrefix(n, "/g/x"))
	}
	want := map[string]bool{"": true, "/a": true, "/a/first": true, "/d": true, "/e": true, "/e/shadow": true, "/f": true}
	if len(names) != len(want) {
		t.Errorf("copied %q", names)
	}
	for _, n := range names {
		if !want[n] {
			t.Errorf("copied %q", n)
		}
	}
	if r := g.files["/g/x/d"]; r.GetFileMode()&unix.S_IFMT != unix.S_IFLNK || string(r.GetData()) != secret {
		t.Errorf("the link arrived as %v", r)
	}
}

func TestATreeThatNeverRestsIsRefused(t *testing.T) {
	src := t.TempDir()
	replace := func(n string) {
		write(t, filepath.Join(src, "new"), []byte(n), 0o644)
		must(t, os.Rename(filepath.Join(src, "new"), filepath.Join(src, n)))
	}
	for _, n := range []string{"a", "b"} {
		replace(n)
	}
	surveys := 0
	skip := func(*os.File) func(string) bool {
		surveys++
		return func(rel string) bool { // the one that was looked at first is another one when the second is
			replace(map[string]string{"a": "b", "b": "a"}[rel])
			return false
		}
	}
	f, err := hostfs.OpenSource(src, true)
	must(t, err)
	defer f.Close()
	err = (&Mirror{}).Sync(t.Context(), f, Target{Sink: &guest{}, Guest: "/g", LimitMiB: 1}, View{Skip: skip})
	if !errors.Is(err, ErrChanged) || !errdefs.IsFailedPrecondition(err) || surveys != tries {
		t.Errorf("Sync() = %v after %d looks, want ErrChanged after %d", err, surveys, tries)
	}
}

func TestAPipeInTheFilesPlaceIsNotOpened(t *testing.T) {
	src := t.TempDir()
	write(t, filepath.Join(src, "f"), []byte("0"), 0o644)
	n := 0
	err := copyTo(t, &guest{before: func(string) {
		if n++; n == 1 {
			must(t, os.Remove(filepath.Join(src, "f")))
			must(t, unix.Mkfifo(filepath.Join(src, "f"), 0o600))
		}
	}}, src, 1)
	if err == nil || !strings.Contains(err.Error(), "named pipe") {
		t.Errorf("Copy() = %v, want a refusal of the pipe", err)
	}
}

func TestNamesOfAnyBytes(t *testing.T) {
	src := t.TempDir()
	for _, n := range []string{"caf\xe9", "d\xff/x", "a\nb", strings.Repeat("n", 255)} {
		write(t, filepath.Join(src, n), []byte("t"), 0o644)
	}
	g := &guest{}
	must(t, copyTo(t, g, src, 1))
	for _, n := range []string{"caf\xe9", "d\xff", "d\xff/x", "a\nb", strings.Repeat("n", 255)} {
		if g.files["/g/x/"+n] == nil {
			t.Errorf("%q did not arrive", n)
		}
	}
	f, err := hostfs.OpenSource(src, false)
	must(t, err)
	defer f.Close()
	err = Copy(t.Context(), f, Target{Sink: &guest{}, Guest: "/g/x", LimitMiB: 1})
	if err == nil || !utf8.ValidString(err.Error()) || !strings.Contains(err.Error(), `is not UTF-8`) ||
		!strings.Contains(err.Error(), `\x`) {
		t.Errorf("with an agent that takes UTF-8 only: %v", err)
	}
}

func TestADepthThatTheGuestCannotHaveIsRefused(t *testing.T) {
	src := t.TempDir()
	deep := src
	for range 17 { // each level's name is as long as can be, the path as a whole too long
		next, err := os.OpenRoot(deep)
		must(t, err)
		must(t, next.Mkdir(strings.Repeat("d", 240), 0o755))
		must(t, next.Close())
		if deep = path.Join(deep, strings.Repeat("d", 240)); len(deep) > 3800 {
			break
		}
	}
	f, err := hostfs.OpenSource(src, false)
	must(t, err)
	defer f.Close()
	err = Copy(t.Context(), f, Target{Sink: &guest{}, Guest: "/" + strings.Repeat("g", 400), LimitMiB: 1})
	if err == nil || !strings.Contains(err.Error(), "more than 4095") {
		t.Errorf("Copy() = %.300v", err)
	}
}

// The order of an update is kubelet's: new entries, the links that users see, ..data, removals. Only
// changed entries are sent.
func TestUpdatesAreInOrder(t *testing.T) {
	dir := t.TempDir()
	m := &Mirror{}
	var sent, removed []string
	to := Target{Guest: "/g", LimitMiB: 1, Removes: true, Sink: sinkFunc(func(r *agent.CopyFileRequest) {
		name := strings.TrimPrefix(strings.TrimPrefix(r.GetPath(), "/g"), "/")
		if r.GetRemove() {
			removed = append(removed, name)
		} else {
			sent = append(sent, name)
		}
	})}
	skip := func(source *os.File) func(string) bool {
		target, err := os.Readlink(filepath.Join(source.Name(), "..data"))
		return func(rel string) bool {
			top, _, _ := strings.Cut(rel, "/")
			return err == nil && strings.HasPrefix(top, "..") && top != "..data" && top != target
		}
	}
	check := func(what, wantSent, wantRemoved string) {
		t.Helper()
		f, err := hostfs.OpenSource(dir, true)
		must(t, err)
		defer f.Close()
		sent, removed = nil, nil
		must(t, m.Sync(t.Context(), f, to, View{Skip: skip, OneFS: true}))
		if d := cmp.Diff([]string{wantSent, wantRemoved},
			[]string{strings.Join(sent, " "), strings.Join(removed, " ")}); d != "" {
			t.Errorf("%s (-want +got):\n%s", what, d)
		}
	}
	write(t, filepath.Join(dir, "..1/a"), []byte("1"), 0o644)
	write(t, filepath.Join(dir, "..1/b"), []byte("1"), 0o644)
	link := func(target, name string) {
		t.Helper()
		_ = os.Remove(filepath.Join(dir, name))
		must(t, os.Symlink(target, filepath.Join(dir, name)))
	}
	link("..1", "..data")
	link("..data/a", "a")
	link("..data/b", "b")
	check("the first state", " ..1 ..1/a ..1/b a b ..data", "")
	check("no change", "", "")

	write(t, filepath.Join(dir, "..2/a"), []byte("2"), 0o644)
	write(t, filepath.Join(dir, "..2/c"), []byte("2"), 0o644)
	check("a state that is not the current one yet", "", "")
	link("..2", "..data")
	link("..data/c", "c")
	_ = os.Remove(filepath.Join(dir, "b"))
	check("an update", "..2 ..2/a ..2/c c ..data", "b ..1")
	must(t, os.Chmod(filepath.Join(dir, "..2/a"), 0o600))
	check("a mode", "..2/a", "")
}

// kubelet swaps ..data when it has been asked what to leave out, and before it is read: the guest gets no link to a
// state that it does not have.
func TestASwapWhileAVolumeIsRead(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "..1/a"), []byte("1"), 0o644)
	write(t, filepath.Join(dir, "..2/a"), []byte("2"), 0o644)
	must(t, os.Symlink("..1", filepath.Join(dir, "..data")))
	must(t, os.Symlink("..data/a", filepath.Join(dir, "a")))
	swaps := 0
	skip := func(source *os.File) func(string) bool {
		target, err := os.Readlink(filepath.Join(source.Name(), "..data"))
		must(t, err)
		if swaps++; swaps == 1 {
			must(t, os.Symlink("..2", filepath.Join(dir, "..data_tmp")))
			must(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
		}
		return func(rel string) bool {
			top, _, _ := strings.Cut(rel, "/")
			return strings.HasPrefix(top, "..") && top != "..data" && top != target
		}
	}
	g := &guest{}
	g.before = func(name string) {
		if name == "/g/..data" && g.files["/g/..2/a"] == nil {
			t.Error("..data leads nowhere in the guest")
		}
	}
	f, err := hostfs.OpenSource(dir, true)
	must(t, err)
	defer f.Close()
	must(t, (&Mirror{}).Sync(t.Context(), f, Target{Sink: g, Guest: "/g", LimitMiB: 1}, View{Skip: skip, OneFS: true}))
	if l := g.files["/g/..data"]; string(l.GetData()) != "..2" {
		t.Errorf("..data leads to %q, want ..2", l.GetData())
	}
}

type sinkFunc func(*agent.CopyFileRequest)

func (f sinkFunc) CopyFile(_ context.Context, r *agent.CopyFileRequest) error { f(r); return nil }

// A copy crosses mounts, as a recursive bind mount does, but not into views of the host's kernel; a volume of
// kubelet's has none below it.
func TestMountsBelowASource(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts: run as root")
	}
	src := t.TempDir()
	for _, d := range []string{"tmp", "proc"} {
		must(t, os.Mkdir(filepath.Join(src, d), 0o755))
	}
	must(t, unix.Mount("tmpfs", filepath.Join(src, "tmp"), "tmpfs", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(filepath.Join(src, "tmp"), 0)) })
	write(t, filepath.Join(src, "tmp/f"), []byte("t"), 0o644)
	g := &guest{}
	must(t, copyTo(t, g, src, 1))
	if g.files["/g/x/tmp/f"] == nil {
		t.Errorf("of a mount below the source arrives %v", g.files)
	}
	f, err := hostfs.OpenSource(src, true)
	must(t, err)
	defer f.Close()
	if err := (&Mirror{}).Sync(t.Context(), f, Target{Sink: &guest{}, Guest: "/g", LimitMiB: 1},
		View{OneFS: true}); err == nil {
		t.Error("a volume with a mount below it was copied")
	}
	must(t, unix.Mount("/proc/sys", filepath.Join(src, "proc"), "", unix.MS_BIND, ""))
	t.Cleanup(func() { must(t, unix.Unmount(filepath.Join(src, "proc"), 0)) })
	if err := copyTo(t, &guest{}, src, 1); err == nil || !strings.Contains(err.Error(), "on proc") {
		t.Errorf("with proc below the source Copy() = %v", fmt.Sprint(err))
	}
}

// A thread swaps directories and files for links while a tree is copied over and over: COCO_RACE says for how long.
// Nothing outside arrives.
func TestRaceWithSwaps(t *testing.T) {
	lasts := 2 * time.Second
	if s := os.Getenv("COCO_RACE"); s != "" {
		d, err := time.ParseDuration(s)
		must(t, err)
		lasts = d
	}
	base := t.TempDir()
	src, secret := filepath.Join(base, "src"), filepath.Join(base, "etc")
	write(t, filepath.Join(secret, "d/shadow"), []byte("secret"), 0o600)
	write(t, filepath.Join(secret, "shadow"), []byte("secret"), 0o600)
	for i := range 20 {
		write(t, filepath.Join(src, "d", strconv.Itoa(i)), []byte("harmless"), 0o644)
	}
	write(t, filepath.Join(src, "d/d/shadow"), []byte("harmless"), 0o644)
	write(t, filepath.Join(src, "d/shadow"), []byte("harmless"), 0o644)
	must(t, os.Symlink(secret, filepath.Join(src, "d.evil")))
	must(t, os.Symlink(secret+"/d", filepath.Join(src, "d/d.evil")))
	must(t, os.Symlink(secret+"/shadow", filepath.Join(src, "d/shadow.evil")))
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			for i, name := range []string{"d/shadow", "d/d", "d"} {
				if n>>i&1 == 0 {
					name = filepath.Join(src, name)
					_ = unix.Renameat2(unix.AT_FDCWD, name, unix.AT_FDCWD, name+".evil", unix.RENAME_EXCHANGE) // "d" may be the link
				}
			}
		}
	}()
	copies, refused := 0, 0
	for end := time.Now().Add(lasts); time.Now().Before(end); {
		g := &guest{}
		if err := copyTo(t, g, src, 8); err != nil {
			refused++
		} else {
			copies++
		}
		for n, r := range g.files {
			if bytes.Contains(r.GetData(), []byte("secret")) {
				t.Fatalf("VULNERABLE: %s is a file outside the source", n)
			}
		}
	}
	close(stop)
	<-done
	if copies+refused == 0 {
		t.Error("nothing was copied")
	}
	t.Logf("%d copies, %d refused because of changes", copies, refused)
}
