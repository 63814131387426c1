// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package layer keeps image layers on the node in the form in which guests get them: one file, an
// EROFS image followed by its dm-verity hash tree.
//
// A Cache is a directory that any number of processes use at once. Open returns the layer
// of a snapshot and builds it if it is not there, once for any number of callers. A layer that is
// being built has no name; it gets its names, blobs/<root hash> and keys/<key>.json, when it is
// complete. The next build removes the leftovers of a process that died. Nothing is synced to
// disk: a layer that was built before the last boot is verified against its root hash when it is
// first used again, and rebuilt if the disk did not keep it. A layer whose file was written to
// since it was built is verified as well; if its content has changed, Open fails and says so.
//
// A Layer holds a shared lock on its file until it is closed, so that Prune leaves it alone.
package layer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/image/erofs"
	"github.com/coco-shim/coco/image/erofs/super"
	"github.com/coco-shim/coco/image/verity"
)

// FormatVersion changes whenever the same source gives other bytes than before.
const FormatVersion = 3

// Kind is what a source is.
type Kind string

// The kinds of sources.
const (
	Dir   Kind = "dir"   // a snapshot directory
	Image Kind = "erofs" // a file that already is an EROFS image
)

// Source is where a layer comes from.
type Source struct {
	Kind Kind   `json:"kind"`
	Path string `json:"path"` // absolute
	// Private sources may change later (the writable layer of a container): they are built each
	// time and not cached.
	Private bool `json:"-"`
	// UserXattr says that the directory is of an overlay that keeps its marks in user.overlay.*.
	UserXattr bool `json:"user_xattr,omitempty"`
}

func (s Source) String() string { return string(s.Kind) + " " + s.Path }

// Params is what one must know to open a layer: see package verity.
type Params = verity.Params

// Layer is an opened layer. Its opener closes it once no guest uses it any more. A descriptor that was handed
// to a VMM keeps the layer in use as well.
type Layer struct {
	File *os.File // read-only
	verity.Params
}

// Close gives the layer up.
func (l *Layer) Close() error { return l.File.Close() }

// Cache is a directory of layers.
type Cache struct {
	dir    string
	bootID string
}

const (
	dirBlobs = "blobs" // <root hash>: image and hash tree
	dirKeys  = "keys"  // <key>.json: meta
	dirLocks = "locks" // <key>: locked while a layer is looked up or built
	dirTemp  = "tmp"   // files without their final name; locked while in use
)

// New opens the cache in dir and makes the directory if needed.
func New(dir string) (*Cache, error) {
	for _, sub := range []string{dirBlobs, dirKeys, dirLocks, dirTemp} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, fmt.Errorf("layer cache: %w", err)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil, fmt.Errorf("layer cache %s: %w", dir, err)
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return nil, fmt.Errorf("layer cache %s: directory is owned by user %d with mode %o; it must belong to user %d and "+
			"nobody else may write to it",
			dir, st.Uid, st.Mode&0o7777, os.Geteuid())
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("layer cache: %w", err)
	}
	return &Cache{dir: dir, bootID: string(boot[:min(len(boot), 36)])}, nil
}

func (c *Cache) path(elem ...string) string {
	return filepath.Join(append([]string{c.dir}, elem...)...)
}

// identity is what tells one immutable snapshot from another, also after a path or an inode number
// was used again.
type identity struct {
	Version int `json:"version"`
	Source
	FSID  [2]int32 `json:"fsid"`
	Inode uint64   `json:"inode"`
	Birth [2]int64 `json:"birth"`
	Ctime [2]int64 `json:"ctime"`
	Size  uint64   `json:"size,omitempty"` // of a file
}

func identify(s Source) (identity, error) {
	id := identity{Version: FormatVersion, Source: s}
	if !filepath.IsAbs(s.Path) {
		return id, fmt.Errorf("layer %s: path is not absolute", s)
	}
	var st unix.Statx_t
	mask := unix.STATX_BASIC_STATS | unix.STATX_BTIME
	if err := unix.Statx(unix.AT_FDCWD, s.Path, unix.AT_STATX_SYNC_AS_STAT, mask, &st); err != nil {
		return id, &os.PathError{Op: "layer source: stat", Path: s.Path, Err: err}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(s.Path, &fs); err != nil {
		return id, &os.PathError{Op: "layer source: statfs", Path: s.Path, Err: err}
	}
	id.FSID, id.Inode = fs.Fsid.Val, st.Ino
	id.Birth = [2]int64{st.Btime.Sec, int64(st.Btime.Nsec)}
	id.Ctime = [2]int64{st.Ctime.Sec, int64(st.Ctime.Nsec)}
	if s.Kind == Image {
		id.Size = st.Size
	}
	return id, nil
}

// key is the name under which the layer of a source is found.
func (id identity) key() (string, error) {
	b, err := json.Marshal(id)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// Open returns the layer of a source. While another process builds it, Open waits.
func (c *Cache) Open(ctx context.Context, s Source) (*Layer, error) {
	if s.Private {
		return c.build(ctx, s, nil)
	}
	id, err := identify(s)
	if err != nil {
		return nil, err
	}
	key, err := id.key()
	if err != nil {
		return nil, err
	}
	if l, err := c.lookup(ctx, key, id, false); err == nil {
		return l, nil
	}
	lock, err := lockFile(ctx, c.path(dirLocks, key))
	if err != nil {
		return nil, fmt.Errorf("layer %s: wait for whoever builds it: %w", s, err)
	}
	defer lock.Close()
	l, err := c.lookup(ctx, key, id, true)
	if err == nil {
		return l, nil
	}
	var modified *ModifiedError
	if errors.As(err, &modified) {
		return nil, fmt.Errorf("layer of %s: %w", s, err)
	}
	publish := func(l *Layer) error {
		if now, err := identify(s); err != nil || now != id {
			return errors.Join(fmt.Errorf("%s changed while the layer was being built", s.Path), err)
		}
		return c.writeMeta(key, id, l.File, l.Params, false)
	}
	// Each build is an occasion to remove what is not needed any more, and a full disk is a reason
	// to. Best effort: a failed removal is no failure of this layer.
	_, _ = c.Prune(ctx)
	return c.build(ctx, s, publish)
}

// build makes the layer. publish, unless nil, is called when the layer has its name; without it the
// layer stays nameless and vanishes when it is closed.
func (c *Cache) build(ctx context.Context, s Source, publish func(*Layer) error) (_ *Layer, err error) {
	in, err := openInput(ctx, s)
	if err != nil {
		return nil, err
	}
	defer in.close() //nolint:errcheck // only read
	tmp, err := c.newTemp()
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", s, err)
	}
	defer tmp.close()
	p, err := in.writeTo(ctx, tmp.file)
	if err != nil {
		return nil, fmt.Errorf("build layer of %s: %w", s, c.explain(err, in.size))
	}
	ro, err := tmp.reopen()
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", s, err)
	}
	l := &Layer{File: ro, Params: p}
	if publish == nil {
		return l, nil
	}
	err = tmp.rename(c.path(dirBlobs, p.Hex()))
	if err == nil {
		err = publish(l)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("publish layer of %s: %w", s, c.explain(err, 0))
	}
	return l, nil
}

// input is an opened source.
type input struct {
	size  int64 // of the image
	write func(ctx context.Context, w io.Writer) error
	close func() error
}

func openInput(ctx context.Context, s Source) (*input, error) {
	switch s.Kind {
	case Dir:
		read := erofs.FromDir
		if s.Private {
			read = erofs.FromUpper
		}
		t, err := read(ctx, s.Path, s.UserXattr)
		if err != nil {
			return nil, err
		}
		return &input{size: t.Size(), write: t.Write, close: t.Close}, nil
	case Image:
		return openImage(s.Path)
	}
	return nil, fmt.Errorf("layer %s: unknown kind of source", s)
}

// openImage takes an image as it is, padded to whole blocks.
func openImage(path string) (*input, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	var size int64
	st, err := f.Stat()
	if err == nil {
		size, err = super.Check(f, st.Size())
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("layer image %s: %w", path, err)
	}
	padded := (size + erofs.BlockSize - 1) / erofs.BlockSize * erofs.BlockSize
	return &input{size: padded, close: f.Close, write: func(_ context.Context, w io.Writer) error {
		if _, err := io.Copy(w, io.LimitReader(f, size)); err != nil {
			return err
		}
		_, err := w.Write(make([]byte, padded-size))
		return err
	}}, nil
}

// writeTo writes image and hash tree to a file of exactly the right size.
func (in *input) writeTo(ctx context.Context, f *os.File) (verity.Params, error) {
	total := in.size + int64(verity.TreeSize(uint64(in.size)/verity.BlockSize)) //nolint:gosec // of a file
	// Reserving the room first makes a full disk known before any work is done.
	if err := unix.Fallocate(int(f.Fd()), 0, 0, total); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return verity.Params{}, os.NewSyscallError("reserve room", err)
	}
	w, err := verity.NewWriter(f, in.size, verity.Salt)
	if err != nil {
		return verity.Params{}, err
	}
	defer w.Close()
	if err := in.write(ctx, w); err != nil {
		return verity.Params{}, err
	}
	return w.Finish()
}

// explain says what to do about a full disk.
func (c *Cache) explain(err error, size int64) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	var fs unix.Statfs_t
	if serr := unix.Statfs(c.dir, &fs); serr != nil {
		return err
	}
	free := fs.Bavail * uint64(fs.Bsize) >> 20 //nolint:gosec // not negative
	return fmt.Errorf("layer cache %s is full: the layer needs %d MiB and %d MiB are free; make room there or remove "+
		"images that are not needed: %w",
		c.dir, size>>20+1, free, err)
}
