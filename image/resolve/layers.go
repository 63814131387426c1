// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package resolve

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/coco-shim/coco/image/erofs"
	"github.com/coco-shim/coco/image/verity"
)

// maxUserFile is how much containerd reads of /etc/passwd and /etc/group.
const maxUserFile = 10 << 20

// content is what depends on the layers' bytes and the places of the volumes alone.
type content struct {
	Layers  []string          `json:"layers"`
	Passwd  []byte            `json:"passwd"`
	Group   []byte            `json:"group"`
	Volumes map[string][]File `json:"volumes"`
}

// layerWork is the layers of an image that is being read, the lowest first.
type layerWork struct {
	*Finder
	ref   string
	files []*os.File // decompressed tars, and spools for their sparse files
	trees []*erofs.Tree
}

// content reads all layers.
func (f *Finder) content(
	ctx context.Context, ref string, img v1.Image, diffs []v1.Hash, volumes []string,
) (c content, err error) {
	layers, err := img.Layers()
	if err != nil {
		return content{}, fmt.Errorf("read the layers: %w", err)
	}
	w := &layerWork{Finder: f, ref: ref}
	defer func() { err = errors.Join(err, w.close()) }()
	tars, err := w.unpack(ctx, layers, diffs)
	if err != nil {
		return content{}, err
	}
	for i, tar := range tars {
		if err := w.parse(ctx, tar); err != nil {
			return content{}, fmt.Errorf("layer %d (%s): %w", i, diffs[i], err)
		}
	}
	if c.Layers, err = w.hash(ctx); err != nil {
		return content{}, err
	}
	if c.Passwd, err = w.read("etc/passwd"); err == nil {
		c.Group, err = w.read("etc/group")
	}
	c.Volumes = map[string][]File{}
	for _, v := range volumes {
		if err == nil {
			c.Volumes[v], err = w.volume(v)
		}
	}
	return c, err
}

func (w *layerWork) close() error {
	var errs []error
	for _, t := range w.trees {
		errs = append(errs, t.Close())
	}
	for _, f := range w.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// unpack decompresses the layers side by side and compares each with its diff id.
func (w *layerWork) unpack(ctx context.Context, layers []v1.Layer, diffs []v1.Hash) ([]*os.File, error) {
	if len(layers) != len(diffs) {
		return nil, fmt.Errorf("there are %d layers and %d diff ids", len(layers), len(diffs))
	}
	tars := make([]*os.File, len(layers))
	for i := range layers {
		f, err := w.tempFile()
		if err != nil {
			return nil, err
		}
		tars[i], w.files = f, append(w.files, f)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(runtime.GOMAXPROCS(0), 2))
	for i, l := range layers {
		g.Go(func() error {
			task := w.step(fmt.Sprintf("%s: layer %d of %d", w.ref, i+1, len(layers)), 0)
			err := unpack(ctx, l, diffs[i], tars[i], task)
			task.Done(err)
			if err != nil {
				return fmt.Errorf("layer %d (%s): %w", i, diffs[i], err)
			}
			return nil
		})
	}
	return tars, g.Wait()
}

func unpack(ctx context.Context, l v1.Layer, diff v1.Hash, to *os.File, task Task) (err error) {
	r, err := l.Uncompressed()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(to, sum), &counter{Reader: &cancelled{ctx, r}, task: task}); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); diff.Algorithm != "sha256" || got != diff.Hex {
		return fmt.Errorf("its bytes have digest sha256:%s: somebody has changed them, or the disk is bad", got)
	}
	_, err = to.Seek(0, io.SeekStart)
	return err
}

// cancelled ends a copy with its context.
type cancelled struct {
	ctx context.Context //nolint:containedctx // for the length of one copy
	r   io.Reader
}

func (c *cancelled) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// parse reads the next layer's tree, with those below it.
func (w *layerWork) parse(ctx context.Context, tar *os.File) error {
	spool, err := w.tempFile()
	if err != nil {
		return err
	}
	w.files = append(w.files, spool)
	t, err := erofs.FromTar(ctx, tar, spool, topmostFirst(w.trees)...)
	if err != nil {
		return err
	}
	w.trees = append(w.trees, t)
	return nil
}

// hash computes root hashes, side by side. An image without layers has the node make one of an empty directory.
func (w *layerWork) hash(ctx context.Context) ([]string, error) {
	if len(w.trees) == 0 {
		none, err := w.tempFile()
		if err != nil {
			return nil, err
		}
		w.files = append(w.files, none)
		if _, err := none.Write(make([]byte, 1024)); err != nil { // the end of a tar
			return nil, err
		}
		if _, err := none.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
		if err := w.parse(ctx, none); err != nil {
			return nil, err
		}
	}
	out := make([]string, len(w.trees))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2) // each has workers of its own
	for i, t := range w.trees {
		g.Go(func() (err error) {
			task := w.step(fmt.Sprintf("%s: hash layer %d of %d", w.ref, i+1, len(w.trees)), 0)
			out[i], err = RootHash(ctx, t)
			task.Done(err)
			return err
		})
	}
	return out, g.Wait()
}

// RootHash computes the root hash of a layer as package layer builds it.
func RootHash(ctx context.Context, t *erofs.Tree) (string, error) {
	vw, err := verity.NewWriter(discard{}, t.Size(), verity.Salt)
	if err != nil {
		return "", err
	}
	defer vw.Close()
	if err := t.Write(ctx, vw); err != nil {
		return "", err
	}
	p, err := vw.Finish()
	return p.Hex(), err
}

// discard is a file that nobody reads.
type discard struct{}

func (discard) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// read reads a file by which users are found, as containerd does.
func (w *layerWork) read(name string) ([]byte, error) {
	b, err := erofs.ReadFile(topmostFirst(w.trees), name, maxUserFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && b == nil {
		b = []byte{}
	}
	return b, err
}

// volume lists the files of a volume, which containerd copies from the image.
func (w *layerWork) volume(dir string) (out []File, err error) {
	err = erofs.WalkFiles(topmostFirst(w.trees), dir, func(name string, r io.Reader) error {
		sum := sha256.New()
		if _, err := io.Copy(sum, r); err != nil {
			return err
		}
		out = append(out, File{name, hex.EncodeToString(sum.Sum(nil))})
		return nil
	})
	return out, err
}
