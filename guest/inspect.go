// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/guest/part"
	"github.com/coco-shim/coco/image/verity/partlist"
)

// Report is the result of holding an image against its manifest.
type Report struct {
	Dir      string          `json:"dir"`
	Manifest Manifest        `json:"manifest"`
	Unpacked int64           `json:"unpacked"` // bytes of the initramfs's files: the guest memory they take
	Parts    []partlist.Line `json:"parts"`    // as the initramfs lists them
	Problems []string        `json:"problems"` // empty: every file is as the manifest says

	list []byte // of the parts
}

// Err is nil when the image is what its manifest says.
func (r Report) Err() error {
	if len(r.Problems) == 0 {
		return nil
	}
	errs := make([]error, len(r.Problems))
	for i, p := range r.Problems {
		errs[i] = errors.New(p)
	}
	return fmt.Errorf("image %s is not what its manifest says: %w", r.Dir, errors.Join(errs...))
}

// Inspect reads the manifest of the image in dir, or of the image that the file dir is part of, and
// compares it with the real files, down to each file of the initramfs. The error says that the image could not be
// read; differences are in the report.
func Inspect(dir string) (Report, error) {
	st, err := os.Stat(dir)
	if err != nil {
		return Report{}, fmt.Errorf("inspect image: %w", err)
	}
	if !st.IsDir() {
		dir = filepath.Dir(dir)
	}
	f, err := os.Open(filepath.Join(dir, ManifestName))
	if err != nil {
		return Report{}, fmt.Errorf("inspect image: %w (an image is made by coco guest build)", err)
	}
	defer func() { _ = f.Close() }()
	m, err := ReadManifest(f)
	if err != nil {
		return Report{}, fmt.Errorf("inspect image %s: %w", dir, err)
	}
	r := Report{Dir: dir, Manifest: m, Problems: []string{}}
	for _, a := range m.Artifacts {
		r.checkArtifact(a)
	}
	return r, errors.Join(r.checkInitrd(), r.checkParts())
}

func (r *Report) problem(format string, args ...any) {
	r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
}

func (r *Report) checkArtifact(a Artifact) {
	name := filepath.Join(r.Dir, a.Name)
	st, err := os.Stat(name)
	if err != nil {
		r.problem("%s: %v", a.Name, err)
		return
	}
	if st.Size() != a.Size {
		r.problem("%s: %d bytes, the manifest says %d", a.Name, st.Size(), a.Size)
		return
	}
	sum, err := fileSHA256(name)
	if err != nil {
		r.problem("%s: %v", a.Name, err)
	} else if sum != a.SHA256 {
		r.problem("%s: sha256 is %s, the manifest says %s", a.Name, sum, a.SHA256)
	}
}

func (r *Report) checkInitrd() error {
	f, err := os.Open(filepath.Join(r.Dir, InitrdName))
	if err != nil {
		return fmt.Errorf("inspect image: %w", err)
	}
	defer func() { _ = f.Close() }()
	entries, err := readInitrd(f)
	if err != nil {
		r.problem("%s: %v", InitrdName, err)
		return nil
	}
	want := map[string]File{}
	for _, w := range r.Manifest.Files {
		want[w.Path] = w
	}
	for _, e := range entries {
		got := newFile(e)
		r.Unpacked += int64(len(e.Data))
		if got.Path == contract.PartsFile {
			r.list = e.Data
		}
		w, ok := want[got.Path]
		delete(want, got.Path)
		got.Origin = w.Origin
		switch {
		case !ok:
			r.problem("%s of the initramfs is not in the manifest", got.Path)
		case got != w:
			r.problem("%s of the initramfs is %+v, the manifest says %+v", got.Path, got, w)
		}
	}
	for _, w := range r.Manifest.Files { // in the manifest's order
		if _, left := want[w.Path]; left {
			r.problem("%s is in the manifest but not in the initramfs", w.Path)
		}
	}
	return nil
}

// checkParts compares the files of the parts with the hashes that the initramfs has.
func (r *Report) checkParts() (err error) {
	if r.Parts, err = partlist.Parse(r.list); err != nil {
		r.problem("%s of the initramfs: %v", contract.PartsFile, err)
		return nil
	}
	for _, l := range r.Parts {
		if err := part.Verify(r.Dir, l); err != nil {
			r.problem("%v", err)
		}
	}
	return nil
}

func readInitrd(r io.Reader) (_ []Entry, err error) {
	z, err := decompress(r)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, z.Close()) }()
	return ReadCPIO(z)
}
