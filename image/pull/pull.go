// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package pull fetches the layers of an image for a guest and makes the files of them that a node would make: an EROFS
// image followed by its dm-verity tree, byte for byte.
//
// The manifest is that of a digest, and the rest follows from it: each blob has the digest and the size of its
// descriptor, each decrypted layer its HMAC, each decompressed layer its DiffID. A layer's tar is written to the
// directory of a scratch disk before it is read, and read only if all of that held. Memory holds buffers and the names
// of files, never their content. What is limited, Limits says.
//
// The package knows neither policies nor key brokers. Its caller says which image to pull and which keys may be used,
// and compares the root hashes of the result.
package pull

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"github.com/coco-shim/coco/image/crypt"
	"github.com/coco-shim/coco/image/erofs"
	"github.com/coco-shim/coco/image/registry"
	"github.com/coco-shim/coco/image/verity"
)

// Limits of an image. The zero value has the defaults.
type Limits struct {
	Layers  int    // 0: 400, as package plan/rootfs has
	Bytes   int64  // of all layers, decompressed; 0: 64 GiB. The scratch disk's size is another limit
	Entries int    // of a layer, files and directories; 0: 250,000
	Ratio   int64  // decompressed bytes for a compressed one, above the first 32 MiB; 0: 400
	Window  uint64 // bytes that a zstd decoder keeps; 0: 8 MiB
}

func (l Limits) defaults() Limits {
	if l.Layers == 0 {
		l.Layers = 400
	}
	if l.Bytes == 0 {
		l.Bytes = 64 << 30
	}
	if l.Entries == 0 {
		l.Entries = 250_000
	}
	if l.Ratio == 0 {
		l.Ratio = 400
	}
	if l.Window == 0 {
		l.Window = 8 << 20
	}
	return l
}

// Config has what a pull needs.
type Config struct {
	Registry registry.Config
	// Keys opens encrypted layers; nil: they are refused.
	Keys crypt.Keys
	// Dir is where the layers' files are made, with the names of Layer. It must be empty.
	Dir *os.Root
	// Progress is told how far the pull is, often; nil: nobody is.
	Progress func(Progress)
	// Version judges what the image says of its version, "" if it says nothing; nil: nobody asks.
	Version func(string) error
	Limits  Limits
}

// Progress is how far a pull is.
type Progress struct {
	Layer, Layers int   // the one at work, from 1
	Done, Size    int64 // bytes of it that were fetched
	Doing         string
}

func (p Progress) String() string {
	if p.Layers == 0 {
		return p.Doing
	}
	percent := int64(100)
	if p.Size > 0 {
		percent = p.Done * 100 / p.Size
	}
	return fmt.Sprintf("layer %d/%d, %d %%, %s", p.Layer, p.Layers, percent, p.Doing)
}

// Layer is a file that was made.
type Layer struct {
	Name string // in Config.Dir
	verity.Params
}

// Image pulls the layers of the image that has a manifest digest in a repository ("registry/name"). It returns them
// with the lowest first.
func Image(ctx context.Context, cfg Config, repository, digest string) ([]Layer, error) {
	out, err := image(ctx, cfg, repository, digest)
	if err != nil {
		return nil, fmt.Errorf("pull %s@%s: %w", repository, digest, err)
	}
	return out, nil
}

func image(ctx context.Context, cfg Config, repository, digest string) ([]Layer, error) {
	cfg.Limits = cfg.Limits.defaults()
	repo, err := registry.Open(cfg.Registry, repository)
	if err != nil {
		return nil, err
	}
	w := &work{Config: cfg, repo: repo}
	w.now.Doing = "ask for the manifest"
	w.tell()
	layers, diffs, err := w.describe(ctx, digest)
	if err != nil {
		return nil, err
	}
	defer w.close()
	w.now.Layers = len(layers)
	var out []Layer
	for i := range layers {
		w.now.Layer, w.now.Done, w.now.Size = i+1, 0, layers[i].Size
		l, err := w.layer(ctx, layers[i], diffs[i])
		if err != nil {
			return nil, fmt.Errorf("layer %d of %d (%s): %w", i+1, len(layers), diffs[i], err)
		}
		out = append(out, l)
	}
	if len(layers) == 0 { // a node makes a layer of an empty directory
		l, err := w.layer(ctx, descriptor{}, "")
		if err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

// work is a pull that goes on.
type work struct {
	Config
	repo  *registry.Repository
	now   Progress
	bytes int64         // of layers, decompressed
	trees []*erofs.Tree // the topmost first
}

func (w *work) tell() {
	if w.Progress != nil {
		w.Progress(w.now)
	}
}

func (w *work) doing(what string) {
	w.now.Doing = what
	w.tell()
}

func (w *work) close() {
	for _, t := range w.trees {
		_ = t.Close() // the files are closed already
	}
}

// Media types.
const (
	ociManifest    = "application/vnd.oci.image.manifest.v1+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
)

// descriptor is the part of a descriptor that counts.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations"`
}

type manifest struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	Config        descriptor      `json:"config"`
	Layers        []descriptor    `json:"layers"`
	Manifests     json.RawMessage `json:"manifests"` // of an index

	Annotations map[string]string `json:"annotations"`
}

type config struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	RootFS       struct {
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
	Config struct {
		Labels map[string]string `json:"Labels"`
	} `json:"config"`
}

// describe reads manifest and configuration.
func (w *work) describe(ctx context.Context, digest string) ([]descriptor, []string, error) {
	text, err := w.repo.Manifest(ctx, digest)
	if err != nil {
		return nil, nil, err
	}
	var m manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, nil, fmt.Errorf("manifest %s: %w", digest, err)
	}
	switch {
	case m.Manifests != nil:
		return nil, nil, fmt.Errorf("%s is an index: the policy has to name the manifest of the platform", digest)
	case m.SchemaVersion != 2 || m.MediaType != "" && m.MediaType != ociManifest && m.MediaType != dockerManifest:
		return nil, nil, fmt.Errorf("%s is a manifest of version %d and type %.100q, which is unknown", digest,
			m.SchemaVersion, m.MediaType)
	case len(m.Layers) > w.Limits.Layers:
		return nil, nil, fmt.Errorf("has %d layers, more than %d", len(m.Layers), w.Limits.Layers)
	}
	if text, err = w.repo.Small(ctx, m.Config.Digest, m.Config.Size); err != nil {
		return nil, nil, fmt.Errorf("configuration: %w", err)
	}
	var c config
	if err := json.NewDecoder(bytes.NewReader(text)).Decode(&c); err != nil {
		return nil, nil, fmt.Errorf("configuration %s: %w", m.Config.Digest, err)
	}
	switch {
	case c.Architecture != "" && c.Architecture != runtime.GOARCH, c.OS != "" && c.OS != "linux":
		return nil, nil, fmt.Errorf("is for %.40s/%.40s, not for linux/%s", c.OS, c.Architecture, runtime.GOARCH)
	case len(c.RootFS.DiffIDs) != len(m.Layers):
		return nil, nil, fmt.Errorf("the manifest has %d layers and the configuration %d diff ids", len(m.Layers),
			len(c.RootFS.DiffIDs))
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := registry.CheckDigest(d); err != nil {
			return nil, nil, fmt.Errorf("configuration %s: diff id: %w", m.Config.Digest, err)
		}
	}
	return m.Layers, c.RootFS.DiffIDs, w.version(m, c)
}

// versionKey names the annotation or label with an image's version (OCI image specification, annotations).
const versionKey = "org.opencontainers.image.version"

func (w *work) version(m manifest, c config) error {
	if w.Version == nil {
		return nil
	}
	v := m.Annotations[versionKey]
	if v == "" {
		v = c.Config.Labels[versionKey]
	}
	return w.Version(v)
}

// layer makes the next layer's file. diff "" stands for an empty layer.
func (w *work) layer(ctx context.Context, d descriptor, diff string) (_ Layer, err error) {
	tar, err := w.temporary("tar")
	if err != nil {
		return Layer{}, err
	}
	defer func() { err = errors.Join(err, tar.Close()) }()
	if diff == "" {
		_, err = tar.Write(make([]byte, 1024)) // the end of a tar
	} else {
		err = w.fetch(ctx, d, diff, tar)
	}
	if err != nil {
		return Layer{}, err
	}
	if _, err := tar.Seek(0, 0); err != nil {
		return Layer{}, err
	}
	w.doing("read the files")
	spool, err := w.temporary("spool")
	if err != nil {
		return Layer{}, err
	}
	defer func() { err = errors.Join(err, spool.Close()) }()
	t, err := erofs.FromSmallTar(ctx, w.Limits.Entries, tar, spool, w.trees...)
	if err != nil {
		return Layer{}, err
	}
	w.doing("write the file system")
	l, err := w.write(ctx, t)
	if err == nil {
		w.trees = append([]*erofs.Tree{t}, w.trees...)
	}
	return l, err
}

// temporary makes a file without a name.
func (w *work) temporary(name string) (*os.File, error) {
	f, err := w.Dir.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := w.Dir.Remove(name); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// write writes image and hash tree of a layer.
func (w *work) write(ctx context.Context, t *erofs.Tree) (_ Layer, err error) {
	l := Layer{Name: strconv.Itoa(len(w.trees)) + ".layer"}
	f, err := w.Dir.OpenFile(l.Name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return Layer{}, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	vw, err := verity.NewWriter(f, t.Size(), verity.Salt)
	if err != nil {
		return Layer{}, err
	}
	defer vw.Close()
	if err := t.Write(ctx, vw); err != nil {
		return Layer{}, err
	}
	if l.Params, err = vw.Finish(); err != nil {
		return Layer{}, err
	}
	return l, nil
}
