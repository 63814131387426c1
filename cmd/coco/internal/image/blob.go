// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/coco-shim/coco/cmd/coco/internal/progress"
)

// blob is a layer in a file.
type blob struct {
	f *os.File
	d v1.Descriptor
}

// Digest returns the digest of the bytes.
func (b blob) Digest() (v1.Hash, error) { return b.d.Digest, nil }

// DiffID is not known: registries do not ask for it.
func (b blob) DiffID() (v1.Hash, error) { return v1.Hash{}, errors.New("the layer is stored as it is") }

// Compressed returns the bytes.
func (b blob) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(io.NewSectionReader(b.f, 0, b.d.Size)), nil
}

// Uncompressed is not offered.
func (b blob) Uncompressed() (io.ReadCloser, error) {
	return nil, errors.New("the layer is stored as it is")
}

// Size returns the number of bytes.
func (b blob) Size() (int64, error) { return b.d.Size, nil }

// MediaType returns the media type.
func (b blob) MediaType() (types.MediaType, error) { return b.d.MediaType, nil }

// remoteConfig returns the configuration as it lies in the registry.
func remoteConfig(img v1.Image) (v1.Layer, error) {
	raw, err := img.RawConfigFile()
	if err != nil {
		return nil, err
	}
	return static.NewLayer(raw, types.OCIConfigJSON), nil
}

// counter tells a task how much was written.
type counter struct {
	task progress.Task
	n    int64
}

// Write counts.
func (c *counter) Write(b []byte) (int, error) {
	c.n += int64(len(b))
	c.task.Set(c.n)
	return len(b), nil
}

// copyLayer makes a layer anew in a file without a name, checks it and stores it.
func (c *change) copyLayer(ctx context.Context, img v1.Image, to name.Repository, old v1.Descriptor, diffID v1.Hash) (
	d v1.Descriptor, err error,
) {
	l, err := img.LayerByDigest(old.Digest)
	if err != nil {
		return d, err
	}
	in, err := l.Compressed() // compares the bytes with their digest
	if err != nil {
		return d, err
	}
	defer in.Close()
	step := c.steps.Step(old.Digest.String()[:19], old.Size)
	defer func() { step.Done(err) }()
	r, done, err := c.layer(ctx, in, old)
	if err != nil {
		return d, err
	}
	if r == nil {
		return old, remote.WriteLayer(to, l, options(ctx)...)
	}
	f, err := os.CreateTemp("", "coco-layer-")
	if err != nil {
		return d, err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return d, err
	}
	h := sha256.New()
	size, err := io.Copy(io.MultiWriter(f, h, &counter{task: step}), r)
	if err != nil {
		return d, err
	}
	if d, err = done(); err != nil {
		return d, err
	}
	d.Size, d.Digest = size, v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", h.Sum(nil))}
	if c.check != nil {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return d, err
		}
		if err := c.check(f, d, diffID); err != nil {
			return d, err
		}
	}
	return d, remote.WriteLayer(to, blob{f, d}, options(ctx)...)
}
