// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/coco-shim/coco/guest/part"
)

const (
	manifestSchema = 1
	maxManifest    = 8 << 20
)

// The file names of an image directory.
const (
	VmlinuxName  = "vmlinux"
	VmlinuzName  = "vmlinuz"
	InitrdName   = "initrd.img"
	ManifestName = "manifest.json"
	LockName     = "packages.lock.json"
)

// Manifest says what an image is made of. It holds no time and nothing of the machine it was built on.
type Manifest struct {
	Schema      int         `json:"schema"`
	Suite       string      `json:"suite"`
	Kernel      Kernel      `json:"kernel"`
	Cmdline     string      `json:"cmdline"` // the default kernel command line
	Runtime     string      `json:"runtime"` // crun or runc
	Compression Compression `json:"compression"`
	Artifacts   []Artifact  `json:"artifacts"`
	Packages    []Package   `json:"packages"`
	Files       []File      `json:"files"`
}

// Kernel names the kernel of an image.
type Kernel struct {
	Package string `json:"package"`
	Version string `json:"version"` // of the package
	Release string `json:"release"` // as uname -r prints it
}

// Artifact is a file of the image directory.
type Artifact struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// File is an entry of the initramfs.
type File struct {
	Path   string `json:"path"` // absolute
	Mode   string `json:"mode"` // octal, with the type bits
	Size   int64  `json:"size,omitempty"`
	SHA256 string `json:"sha256,omitempty"` // of a regular file
	Target string `json:"target,omitempty"` // of a symbolic link
	Origin string `json:"origin"`
}

// ReadManifest decodes a manifest strictly.
func ReadManifest(r io.Reader) (Manifest, error) {
	var m Manifest
	if err := decodeStrict(r, maxManifest, &m); err != nil {
		return Manifest{}, fmt.Errorf("read manifest: %w", err)
	}
	if err := m.check(); err != nil {
		return Manifest{}, fmt.Errorf("read manifest: %w", err)
	}
	return m, nil
}

func (m Manifest) check() error {
	var errs []error
	if m.Schema != manifestSchema {
		errs = append(errs, fmt.Errorf("schema is %d, this program knows %d", m.Schema, manifestSchema))
	}
	if m.Kernel.Release == "" || m.Cmdline == "" {
		errs = append(errs, errors.New("kernel release or cmdline is missing"))
	}
	if _, err := ParseCompression(string(m.Compression)); err != nil {
		errs = append(errs, err)
	}
	for _, want := range []string{VmlinuxName, VmlinuzName, InitrdName} {
		if _, ok := m.artifact(want); !ok {
			errs = append(errs, fmt.Errorf("artifact %s is missing", want))
		}
	}
	for _, a := range m.Artifacts {
		known := slices.Contains([]string{VmlinuxName, VmlinuzName, InitrdName}, a.Name) || part.IsFile(a.Name)
		if !known || !isSHA256(a.SHA256) || a.Size <= 0 {
			errs = append(errs, fmt.Errorf("artifact %q: unknown name, or size or sha256 malformed", a.Name))
		}
	}
	for _, f := range m.Files {
		if f.Path == "" || f.Path[0] != '/' || (f.SHA256 != "" && !isSHA256(f.SHA256)) || f.Size < 0 {
			errs = append(errs, fmt.Errorf("file %q: path, size or sha256 malformed", f.Path))
		}
	}
	return errors.Join(errs...)
}

func (m Manifest) artifact(name string) (Artifact, bool) {
	i := slices.IndexFunc(m.Artifacts, func(a Artifact) bool { return a.Name == name })
	if i < 0 {
		return Artifact{}, false
	}
	return m.Artifacts[i], true
}

func newArtifact(name string, data []byte) Artifact {
	return Artifact{Name: name, Size: int64(len(data)), SHA256: sha256Hex(data)}
}

func sha256Hex(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func newFile(e Entry) File {
	f := File{Path: "/" + e.Path, Mode: fmt.Sprintf("%06o", e.Mode), Target: e.Target, Origin: e.Origin}
	if e.isRegular() {
		f.Size, f.SHA256 = int64(len(e.Data)), sha256Hex(e.Data)
	}
	return f
}
