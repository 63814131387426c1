// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/image/erofs"
	"github.com/coco-shim/coco/image/verity"
	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/internal/worktest"
)

// helperEnv makes the test binary open one layer and say what it got, as a process of its own.
const helperEnv = "COCO_LAYER_TEST_OPEN"

func TestMain(m *testing.M) {
	if v := os.Getenv(helperEnv); v != "" {
		dir, source, _ := strings.Cut(v, "|")
		if err := helper(dir, source); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func helper(dir, source string) error {
	c, err := New(dir)
	if err != nil {
		return err
	}
	l, err := c.Open(context.Background(), Source{Kind: Dir, Path: source})
	if err != nil {
		return err
	}
	st, err := l.File.Stat()
	if err != nil {
		return err
	}
	fmt.Printf("%s %d\n", l.Hex(), st.Sys().(*syscall.Stat_t).Ino)
	return l.Close()
}

func helperCommand(ctx context.Context, dir, source string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), helperEnv+"="+dir+"|"+source)
	return cmd
}

// snapshot makes a directory with some content.
func snapshot(t testing.TB, files, size int) string {
	t.Helper()
	dir := t.TempDir()
	for i := range files {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file%d", i)), bytes.Repeat([]byte{byte(i + 1)}, size),
			0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func newCache(t testing.TB) *Cache {
	t.Helper()
	c, err := New(filepath.Join(t.TempDir(), "cache"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func open(t testing.TB, c *Cache, s Source) *Layer {
	t.Helper()
	l, err := c.Open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func inode(t testing.TB, l *Layer) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(l.File.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// left lists what is in a directory of the cache.
func left(t testing.TB, c *Cache, sub string) []string {
	t.Helper()
	names, err := listDir(c.path(sub))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestALayerIsBuiltOnceAndVerifies(t *testing.T) {
	c, s := newCache(t), Source{Kind: Dir, Path: snapshot(t, 20, 10000)}
	first := open(t, c, s)
	if err := verity.Verify(t.Context(), first.File, first.Params); err != nil {
		t.Error(err)
	}
	second := open(t, c, s)
	if inode(t, first) != inode(t, second) {
		t.Error("the second Open built the layer again")
	}
	if _, err := first.File.Write([]byte("x")); err == nil {
		t.Error("the layer's file is writable")
	}
	if n := left(t, c, dirTemp); len(n) != 0 {
		t.Errorf("temporary files are left: %v", n)
	}
}

func TestAChangedSnapshotIsAnotherLayer(t *testing.T) {
	c, dir := newCache(t), snapshot(t, 1, 10)
	first := open(t, c, Source{Kind: Dir, Path: dir})
	if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if second := open(t, c, Source{Kind: Dir, Path: dir}); first.Hex() == second.Hex() {
		t.Error("a new file did not change the layer")
	}
}

func TestEqualContentHasEqualNames(t *testing.T) {
	c := newCache(t)
	a, b := snapshot(t, 3, 5000), snapshot(t, 3, 5000)
	for _, dir := range []string{a, b} {
		for i := range 3 {
			when := time.Unix(1e9, 0)
			if err := os.Chtimes(filepath.Join(dir, fmt.Sprintf("file%d", i)), when, when); err != nil {
				t.Fatal(err)
			}
		}
	}
	if la, lb := open(t, c, Source{Kind: Dir, Path: a}), open(t, c, Source{Kind: Dir, Path: b}); la.Hex() != lb.Hex() {
		t.Errorf("root hashes differ: %s, %s", la.Hex(), lb.Hex())
	}
	if n := left(t, c, dirBlobs); len(n) != 1 {
		t.Errorf("%d blobs for one content", len(n))
	}
}

func TestPrivateLayersAreNotKept(t *testing.T) {
	c := newCache(t)
	l := open(t, c, Source{Kind: Dir, Path: snapshot(t, 3, 5000), Private: true})
	if err := verity.Verify(t.Context(), l.File, l.Params); err != nil {
		t.Error(err)
	}
	for _, sub := range []string{dirBlobs, dirKeys, dirTemp} {
		if n := left(t, c, sub); len(n) != 0 {
			t.Errorf("%s has %v", sub, n)
		}
	}
}

func TestReadyImagesGetAHashTree(t *testing.T) {
	tree, err := erofs.FromDir(t.Context(), snapshot(t, 3, 5000), false)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	var img bytes.Buffer
	if err := tree.Write(t.Context(), &img); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "layer.erofs")
	// Somebody else's hash tree behind the image is not part of it.
	if err := os.WriteFile(path, append(bytes.Clone(img.Bytes()), make([]byte, 8192)...), 0o600); err != nil {
		t.Fatal(err)
	}
	l := open(t, newCache(t), Source{Kind: Image, Path: path})
	got := make([]byte, img.Len())
	if _, err := l.File.ReadAt(got, 0); err != nil || !bytes.Equal(got, img.Bytes()) {
		t.Errorf("layer is not the image (%v)", err)
	}
	if int(l.DataBlocks) != img.Len()/verity.BlockSize {
		t.Errorf("%d data blocks for %d bytes", l.DataBlocks, img.Len())
	}
}

func TestEightProcessesBuildOnce(t *testing.T) {
	c, dir := newCache(t), snapshot(t, 50, 1<<20)
	var wg sync.WaitGroup
	out := make([]string, 8)
	for i := range out {
		wg.Go(func() {
			b, err := helperCommand(t.Context(), c.dir, dir).CombinedOutput()
			if err != nil {
				t.Errorf("process %d: %v: %s", i, err, b)
			}
			out[i] = string(b)
		})
	}
	wg.Wait()
	for i := range out {
		if out[i] != out[0] {
			t.Errorf("process %d got %q, process 0 got %q: not the same file", i, out[i], out[0])
		}
	}
}

func TestAKilledBuildLeavesNothingUsable(t *testing.T) {
	c, dir := newCache(t), snapshot(t, 100, 1<<20)
	for delay := range 8 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(delay+1)*10*time.Millisecond)
		_ = helperCommand(ctx, c.dir, dir).Run() // killed, or done already
		cancel()
		if len(left(t, c, dirKeys)) > 0 {
			break
		}
		for _, name := range left(t, c, dirBlobs) {
			t.Logf("killed after the layer %s was complete and before it was known", name)
		}
	}
	l := open(t, c, Source{Kind: Dir, Path: dir})
	if err := verity.Verify(t.Context(), l.File, l.Params); err != nil {
		t.Error(err)
	}
	if n := left(t, c, dirTemp); len(n) != 0 {
		t.Errorf("temporary files are left: %v", n)
	}
}

func TestStaleTemporaryFilesAreSwept(t *testing.T) {
	c := newCache(t)
	if err := os.WriteFile(c.path(dirTemp, "build-stale"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	used, err := c.newNamedTemp()
	if err != nil {
		t.Fatal(err)
	}
	defer used.close()
	c.sweep()
	if n := left(t, c, dirTemp); len(n) != 1 || c.path(dirTemp, n[0]) != used.name {
		t.Errorf("after a sweep there is %v, want only %s", n, used.name)
	}
}

func TestNamedTemporaryFilesWorkToo(t *testing.T) {
	c := newCache(t)
	tmp, err := c.newNamedTemp()
	if err != nil {
		t.Fatal(err)
	}
	ro, err := tmp.reopen()
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	if err := tmp.rename(c.path(dirBlobs, "x")); err != nil {
		t.Fatal(err)
	}
	tmp.close()
	if len(left(t, c, dirTemp)) != 0 || len(left(t, c, dirBlobs)) != 1 {
		t.Errorf("tmp %v, blobs %v", left(t, c, dirTemp), left(t, c, dirBlobs))
	}
}

func TestAFullDiskIsNamedAndLeftClean(t *testing.T) {
	testvm.Need(t, testvm.Root) // mounts a small tmpfs
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=4m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(small, 0); err != nil {
			t.Error(err)
		}
	})
	c, err := New(small)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Open(t.Context(), Source{Kind: Dir, Path: snapshot(t, 10, 1<<20)})
	if !errors.Is(err, unix.ENOSPC) ||
		!strings.Contains(err.Error(), small+" is full: the layer needs 11 MiB and 4 MiB are free") {
		t.Errorf("Open = %v", err)
	}
	for _, sub := range []string{dirBlobs, dirKeys, dirTemp} {
		if n := left(t, c, sub); len(n) != 0 {
			t.Errorf("%s has %v", sub, n)
		}
	}
	open(t, c, Source{Kind: Dir, Path: snapshot(t, 1, 1<<20)}) // what fits, still works
}

func TestLayersOfAnEarlierBootAreVerified(t *testing.T) {
	c, s := newCache(t), Source{Kind: Dir, Path: snapshot(t, 20, 10000)}
	good := open(t, c, s)
	first := inode(t, good)

	next := &Cache{dir: c.dir, bootID: "next boot"}
	if l := open(t, next, s); inode(t, l) != first {
		t.Error("a good layer was built again after a reboot")
	}
	after := &Cache{dir: c.dir, bootID: "one more"}
	if l := open(t, after, s); inode(t, l) != first {
		t.Error("a layer that had been verified was built again")
	}

	c = newCache(t)
	bad := open(t, c, s)
	name := c.path(dirBlobs, bad.Hex())
	first = inode(t, bad)
	damage(t, name, 8192)
	l := open(t, &Cache{dir: c.dir, bootID: "next boot"}, s)
	if inode(t, l) == first {
		t.Error("a damaged layer was used after a reboot")
	}
	if err := verity.Verify(t.Context(), l.File, l.Params); err != nil {
		t.Error(err)
	}
}

func TestAModifiedLayerIsRefusedAndNamed(t *testing.T) {
	c, s := newCache(t), Source{Kind: Dir, Path: snapshot(t, 20, 10000)}
	good := open(t, c, s)
	name := c.path(dirBlobs, good.Hex())
	if err := os.Chmod(name, 0o600); err != nil { // changed, but not its content
		t.Fatal(err)
	}
	if l := open(t, c, s); inode(t, l) != inode(t, good) {
		t.Error("a good layer was built again")
	}
	for _, off := range []int64{100, 100000, int64(good.HashOffset) + 1} {
		damage(t, name, off)
		_, err := c.Open(t.Context(), s)
		var modified *ModifiedError
		if !errors.As(err, &modified) || !strings.Contains(err.Error(), good.Hex()) ||
			!strings.Contains(err.Error(), "is corrupted") {
			t.Errorf("damage at %d: Open = %v, want a ModifiedError that names the layer", off, err)
		}
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if err := verity.Verify(t.Context(), open(t, c, s).File, good.Params); err != nil {
		t.Error(err)
	}
}

func damage(t *testing.T, path string, off int64) {
	t.Helper()
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("damage"), off); err != nil {
		t.Fatal(err)
	}
}

func TestDamagedMetadataMeansANewBuild(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"empty":         func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"cut off":       func(p string) error { return os.Truncate(p, 40) },
		"not JSON":      func(p string) error { return os.WriteFile(p, []byte("\x00\x00"), 0o600) },
		"unknown field": func(p string) error { return os.WriteFile(p, []byte(`{"x":1}`), 0o600) },
		"missing":       os.Remove,
	} {
		c, s := newCache(t), Source{Kind: Dir, Path: snapshot(t, 2, 100)}
		want := open(t, c, s).Hex()
		key := c.path(dirKeys, left(t, c, dirKeys)[0])
		if err := os.Chmod(key, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := spoil(key); err != nil {
			t.Fatal(err)
		}
		if got := open(t, c, s).Hex(); got != want {
			t.Errorf("%s: root hash %s, want %s", name, got, want)
		}
		if _, _, err := c.readMeta(strings.TrimSuffix(filepath.Base(key), ".json")); err != nil {
			t.Errorf("%s: metadata was not repaired: %v", name, err)
		}
	}
}

func TestATruncatedBlobIsNotUsed(t *testing.T) {
	c, s := newCache(t), Source{Kind: Dir, Path: snapshot(t, 20, 10000)}
	l := open(t, c, s)
	if err := os.Truncate(c.path(dirBlobs, l.Hex()), 4096); err != nil {
		t.Fatal(err)
	}
	again := open(t, c, s)
	if err := verity.Verify(t.Context(), again.File, again.Params); err != nil {
		t.Error(err)
	}
}

func TestOpenGivesUpWhenItsContextEnds(t *testing.T) {
	c, s := newCache(t), Source{Kind: Dir, Path: snapshot(t, 1, 100)}
	id, err := identify(s)
	if err != nil {
		t.Fatal(err)
	}
	key, err := id.key()
	if err != nil {
		t.Fatal(err)
	}
	holder, err := lockFile(t.Context(), c.path(dirLocks, key))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Open(ctx, s); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Open = %v, want the context's error", err)
	}
	holder.Close()
	open(t, c, s)
}

func TestACanceledBuildLeavesNothing(t *testing.T) {
	c := newCache(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Open(ctx, Source{Kind: Dir, Path: snapshot(t, 1, 100)}); !errors.Is(err, context.Canceled) {
		t.Errorf("Open = %v, want the context's error", err)
	}
	if n := left(t, c, dirBlobs); len(n) != 0 {
		t.Errorf("blobs %v", n)
	}
}

func TestBadSources(t *testing.T) {
	c := newCache(t)
	for _, s := range []Source{
		{Kind: Dir, Path: "relative"},
		{Kind: Dir, Path: "/does/not/exist"},
		{Kind: "other", Path: "/"},
		{Kind: Image, Path: "/etc/passwd"},
	} {
		if _, err := c.Open(t.Context(), s); err == nil || !strings.Contains(err.Error(), s.Path) {
			t.Errorf("Open(%s) = %v, want an error that names it", s, err)
		}
	}
}

func TestACacheThatOthersCanWriteToIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := New(dir); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("New = %v", err)
	}
}

func FuzzDecodeMeta(f *testing.F) {
	f.Add(
		[]byte(
			`{"identity":{"version":1,"kind":"dir","path":"/x","fsid":[1,2],"inode":3,"birth":[4,5],"ctime":[6,7]},"root_hash":"` +
				strings.Repeat("ab", 32) +
				`","salt":"","data_blocks":2,"hash_offset":8192,"size":12288,"boot_id":"x","durable":false,"blob":[1,2,3]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		defer worktest.Bound(t, len(b))()
		m, p, err := decodeMeta(b)
		if err == nil && (p.Size() != m.Size || p.Validate() != nil || p.Hex() != m.RootHash) {
			t.Fatalf("decodeMeta accepted %+v", m)
		}
	})
}
