// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package resolve finds container images and computes what a policy pins of them: the digest of the platform's
// manifest, the configuration, the dm-verity root hash that the node computes of each layer, and the files by which
// containerd finds users.
//
// A Finder looks through OCI layouts and docker archives on this machine first and then asks the registry. Bytes are
// verified before they count: manifest and configuration against their digests, each layer against its diff id.
// Layers are decompressed to temporary files, read as package erofs reads a layer's tar, and hashed without being kept.
// A Cache keeps the results, which depend on the diff ids alone.
package resolve

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Limits of what is read into memory.
const (
	maxManifest = 4 << 20
	maxLayers   = 400 // as package plan/rootfs has
)

// Image is what a policy pins of an image.
type Image struct {
	Ref    string    // the reference that was asked for
	Digest string    // of the platform's manifest: "sha256:…"
	Config v1.Config // entrypoint, environment, user, volumes
	// Layers are root hashes in hexadecimal, the lowest first.
	Layers []string
	// Passwd and Group are /etc/passwd and /etc/group of the image; nil where it has none.
	Passwd, Group []byte
	// Volumes has the regular files that the image has in each volume that it declares.
	Volumes map[string][]File
}

// File is a regular file; its path is relative to its volume.
type File struct {
	Path   string `json:"path"`
	SHA256 string `json:"sha256"`
}

// Finder finds images. Its zero value asks registries for linux/amd64 and keeps nothing.
type Finder struct {
	Local    []Store      // looked through in order, before any registry
	Offline  bool         // no registry is asked
	Insecure bool         // registries are asked without TLS
	Platform *v1.Platform // nil: linux/amd64
	Cache    Cache
	TempDir  string   // "": the system's
	Progress Progress // nil: none
}

// Progress shows the work on layers.
type Progress interface {
	// Step begins a step of total units, 0: unknown.
	Step(title string, total int64) Task
}

// Task is a step that goes on.
type Task interface {
	Set(done int64)
	Done(err error)
}

// Pinned returns the reference with the digest of the platform's manifest in place of its tag.
func (i Image) Pinned() string {
	repo, _, _ := strings.Cut(i.Ref, "@")
	if slash := strings.LastIndex(repo, "/"); strings.LastIndex(repo, ":") > slash {
		repo = repo[:strings.LastIndex(repo, ":")]
	}
	return repo + "@" + i.Digest
}

// Repository returns the registry and the repository of the reference, in their complete form.
func (i Image) Repository() (string, error) {
	ref, err := name.ParseReference(i.Ref)
	if err != nil {
		return "", err
	}
	return ref.Context().Name(), nil
}

// Resolve finds an image and computes the root hashes of its layers.
func (f *Finder) Resolve(ctx context.Context, ref string) (Image, error) {
	out, err := f.resolve(ctx, ref)
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", ref, err)
	}
	return out, nil
}

func (f *Finder) resolve(ctx context.Context, ref string) (Image, error) {
	img, err := f.find(ctx, ref)
	if err != nil {
		return Image{}, err
	}
	out, diffs, err := describe(img, f.platform())
	if err != nil {
		return Image{}, err
	}
	out.Ref = ref
	volumes := slices.Sorted(maps.Keys(out.Config.Volumes))
	key := cacheKey(diffs, volumes)
	c, ok := f.Cache.load(key)
	if !ok {
		if c, err = f.content(ctx, ref, img, diffs, volumes); err != nil {
			return Image{}, err
		}
		if err := f.Cache.store(key, c); err != nil {
			return Image{}, err
		}
	}
	out.Layers, out.Passwd, out.Group, out.Volumes = c.Layers, c.Passwd, c.Group, c.Volumes
	return out, nil
}

// find returns the image of the platform.
func (f *Finder) find(ctx context.Context, ref string) (v1.Image, error) {
	parsed, err := f.parse(ref)
	if err != nil {
		return nil, err
	}
	for _, s := range f.Local {
		img, err := s.find(parsed, f.platform())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s, err)
		}
		if img != nil {
			return img, nil
		}
	}
	if f.Offline {
		return nil, fmt.Errorf("is in none of the stores %v, and no registry may be asked", f.Local)
	}
	img, err := remote.Image(parsed, remote.WithContext(ctx), remote.WithPlatform(f.platform()),
		remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithTransport(http.DefaultTransport))
	if err != nil {
		return nil, fmt.Errorf("ask the registry for %s: %w; give an OCI layout or archive that has the image, or log in "+
			"with docker login", f.platform(), err)
	}
	return img, nil
}

func (f *Finder) parse(ref string) (name.Reference, error) {
	opts := []name.Option{}
	if f.Insecure {
		opts = append(opts, name.Insecure)
	}
	return name.ParseReference(ref, opts...)
}

func (f *Finder) platform() v1.Platform {
	if f.Platform == nil {
		return v1.Platform{OS: "linux", Architecture: "amd64"}
	}
	return *f.Platform
}

// describe reads manifest and configuration, and compares each with the digest that names it.
func describe(img v1.Image, platform v1.Platform) (out Image, diffs []v1.Hash, err error) {
	digest, err := img.Digest()
	if err != nil {
		return out, nil, err
	}
	raw, err := img.RawManifest()
	if err != nil {
		return out, nil, fmt.Errorf("read the manifest: %w", err)
	}
	if err := same("manifest", raw, digest); err != nil {
		return out, nil, err
	}
	m, err := img.Manifest()
	if err != nil {
		return out, nil, fmt.Errorf("read the manifest: %w", err)
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return out, nil, fmt.Errorf("read the configuration: %w", err)
	}
	if err := same("configuration", config, m.Config.Digest); err != nil {
		return out, nil, err
	}
	var cf v1.ConfigFile
	if err := json.Unmarshal(config, &cf); err != nil {
		return out, nil, fmt.Errorf("read the configuration: %w", err)
	}
	switch is := cf.Platform(); {
	case is != nil && is.Architecture != "" && !is.Satisfies(platform):
		err = fmt.Errorf("is for %s, not for %s", is, platform)
	case len(cf.RootFS.DiffIDs) != len(m.Layers):
		err = fmt.Errorf("the manifest has %d layers and the configuration %d diff ids",
			len(m.Layers), len(cf.RootFS.DiffIDs))
	case len(m.Layers) > maxLayers:
		err = fmt.Errorf("has %d layers, more than %d", len(m.Layers), maxLayers)
	}
	return Image{Digest: digest.String(), Config: cf.Config}, cf.RootFS.DiffIDs, err
}

func same(what string, b []byte, want v1.Hash) error {
	if len(b) > maxManifest {
		return fmt.Errorf("the %s has %d bytes, more than %d", what, len(b), maxManifest)
	}
	got, _, err := v1.SHA256(bytes.NewReader(b))
	if err == nil && got != want {
		err = fmt.Errorf("the %s has digest %s, and %s is what names it: somebody has changed it, or the disk is bad",
			what, got, want)
	}
	return err
}

// tempFile makes a file that vanishes when it is closed.
func (f *Finder) tempFile() (*os.File, error) {
	t, err := os.CreateTemp(f.TempDir, "coco-layer-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(t.Name()); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// counter tells a task how much was read.
type counter struct {
	io.Reader
	task Task
	n    int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += int64(n)
	c.task.Set(c.n)
	return n, err
}

type noTask struct{}

func (noTask) Set(int64)  {}
func (noTask) Done(error) {}

func (f *Finder) step(title string, total int64) Task {
	if f.Progress == nil {
		return noTask{}
	}
	return f.Progress.Step(title, total)
}

// topmostFirst is a copy in the order in which overlays list layers.
func topmostFirst[T any](s []T) []T {
	out := slices.Clone(s)
	slices.Reverse(out)
	return out
}
