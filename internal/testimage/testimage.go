// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package testimage builds small container images for tests and for the demo, without a registry:
// a busybox root file system from the host's static busybox, in as many layers as a test wants, as
// an archive that `ctr images import` and `docker load` read.
package testimage

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"sort"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// File is one entry of a layer. Mode's type bits choose what it is.
type File struct {
	Path     string
	Mode     os.FileMode // os.ModeDir, os.ModeSymlink and permissions
	Data     []byte      // content of a regular file
	Link     string      // target of a symlink
	UID, GID int
}

// Image is a list of layers, bottom first, and the configuration.
type Image struct {
	Layers [][]File
	Config v1.Config
}

// Busybox is a one-layer image with the host's static busybox and all its applets as symlinks.
// busybox is the path of the binary; "" looks it up.
func Busybox(busybox string) (Image, error) {
	if busybox == "" {
		p, err := exec.LookPath("busybox")
		if err != nil {
			return Image{}, fmt.Errorf("find busybox (apt-get install busybox-static): %w", err)
		}
		busybox = p
	}
	bin, err := os.ReadFile(busybox)
	if err != nil {
		return Image{}, err
	}
	list, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return Image{}, fmt.Errorf("%s --list: %w", busybox, err)
	}
	files := []File{{Path: "bin/busybox", Mode: 0o755, Data: bin}}
	for _, d := range []string{
		"bin", "etc", "tmp", "proc", "dev", "sys", "usr", "usr/bin", "root", "home", "var",
		"run", "mnt",
	} {
		mode := os.ModeDir | 0o755
		if d == "tmp" {
			mode = os.ModeDir | os.ModeSticky | 0o777
		}
		files = append(files, File{Path: d, Mode: mode})
	}
	for _, a := range strings.Fields(string(list)) {
		if a != "busybox" {
			files = append(files, File{Path: "bin/" + a, Mode: os.ModeSymlink | 0o777, Link: "busybox"})
		}
	}
	files = append(files,
		File{
			Path: "etc/passwd", Mode: 0o644,
			Data: []byte(
				"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"),
		},
		File{Path: "etc/group", Mode: 0o644, Data: []byte("root:x:0:\nuser:x:1000:\nextra:x:2000:user\nnobody:x:65534:\n")})
	return Image{
		Layers: [][]File{files},
		Config: v1.Config{Cmd: []string{"/bin/sh"}, Env: []string{"PATH=/bin:/usr/bin"}},
	}, nil
}

// WithLayer returns the image with one more layer on top.
func (im Image) WithLayer(files ...File) Image {
	im.Layers = append(append([][]File(nil), im.Layers...), files)
	return im
}

// Write writes the image to w as an archive that holds it under ref.
func (im Image) Write(w io.Writer, ref string) error {
	tag, err := name.NewTag(ref)
	if err != nil {
		return err
	}
	img, err := im.Build()
	if err != nil {
		return err
	}
	return tarball.Write(tag, img, w)
}

// Build returns the image as the registry library knows it.
func (im Image) Build() (v1.Image, error) {
	img := v1.Image(empty.Image)
	for i, files := range im.Layers {
		data, err := layerTar(files)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(data)), nil
		})
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			return nil, err
		}
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.Config, cf.Architecture, cf.OS = im.Config, "amd64", "linux"
	return mutate.ConfigFile(img, cf)
}

// WriteFile is Write into a new file.
func (im Image) WriteFile(file, ref string) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return im.Write(f, ref)
}

func layerTar(files []File) ([]byte, error) {
	sorted := append([]File(nil), files...)
	sort.SliceStable(sorted, func(i, j int) bool { return sorted[i].Path < sorted[j].Path })
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, f := range sorted {
		h := &tar.Header{Name: path.Clean(f.Path), Mode: int64(f.Mode.Perm()), Uid: f.UID, Gid: f.GID, Format: tar.FormatPAX}
		switch {
		case f.Mode.IsDir():
			h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		case f.Mode&os.ModeSymlink != 0:
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.Link
		default:
			h.Typeflag, h.Size = tar.TypeReg, int64(len(f.Data))
		}
		for bit, m := range map[int64]os.FileMode{0o1000: os.ModeSticky, 0o2000: os.ModeSetgid, 0o4000: os.ModeSetuid} {
			if f.Mode&m != 0 {
				h.Mode |= bit
			}
		}
		if err := tw.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := tw.Write(f.Data); err != nil {
			return nil, err
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
