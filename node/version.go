// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package node installs coco on a host, and takes it away again.
//
// Each version of coco is a directory of its own below PREFIX/versions, named by the hash of what is in it, so that
// versions stand beside each other and a running pod keeps the one that it was started with. The engines of the host
// (package engine and its kinds) get handlers that name the programs of one version. Everything that changes, changes
// as one step (package txn).
package node

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coco-shim/coco/node/txn"
)

// DefaultPrefix is where versions are, unless the administrator says otherwise.
const DefaultPrefix = "/opt/coco"

// Shim, CLI and OCI are the programs of a version, relative to its directory. OCI is for engines without containerd.
const (
	Shim = "bin/containerd-shim-coco-v2"
	CLI  = "bin/coco"
	OCI  = "bin/coco-oci"
)

// manifestName is the list of a version's files, in its directory.
const manifestName = "version.json"

// hashLen is how many characters of the hash are in a version's name.
const hashLen = 12

// Version is what one directory of versions has in it.
type Version struct {
	Hash    string `json:"hash"`
	Release string `json:"release"` // as the program says it
	Files   []File `json:"files"`   // by name
}

// File is a file of a version.
type File struct {
	Name   string      `json:"name"` // relative, with slashes
	Mode   fs.FileMode `json:"mode"`
	Size   int64       `json:"size"`
	SHA256 string      `json:"sha256"`
}

// wanted are the directories of an installation that make a version, with the mode of their files.
var wanted = []struct {
	dir  string
	mode fs.FileMode
	only []string // nil: all files
}{
	{"bin", 0o755, []string{filepath.Base(Shim), filepath.Base(CLI), filepath.Base(OCI)}},
	{"share/coco/guest", 0o644, nil},
	{"share/coco/configs", 0o644, nil},
}

// ReadSource looks at an unpacked release, or at what make install has made, and returns the version that it is.
func ReadSource(dir, release string) (Version, error) {
	v := Version{Release: release}
	for _, w := range wanted {
		names := w.only
		if names == nil {
			entries, err := os.ReadDir(filepath.Join(dir, w.dir))
			if err != nil {
				return Version{}, fmt.Errorf("%s is no release of coco: %w; name one with --from", dir, err)
			}
			for _, e := range entries {
				if e.Type().IsRegular() && !strings.HasPrefix(e.Name(), ".") {
					names = append(names, e.Name())
				}
			}
		}
		for _, name := range names {
			f, err := readFile(dir, w.dir+"/"+name, w.mode)
			if err != nil {
				return Version{}, fmt.Errorf("%s is no release of coco: %w; name one with --from", dir, err)
			}
			v.Files = append(v.Files, f)
		}
	}
	if !slices.ContainsFunc(v.Files, func(f File) bool { return f.Name == "share/coco/guest/manifest.json" }) {
		return Version{}, fmt.Errorf("%s has no guest image (share/coco/guest/manifest.json is missing)", dir)
	}
	slices.SortFunc(v.Files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	v.Hash = hash(v.Files)
	return v, nil
}

// hash is the name of a version: of the names, modes and contents of its files.
func hash(files []File) string {
	sum := sha256.New()
	for _, f := range files {
		fmt.Fprintf(sum, "%s %o %s\n", f.SHA256, f.Mode, f.Name)
	}
	return hex.EncodeToString(sum.Sum(nil))[:hashLen]
}

func readFile(dir, name string, mode fs.FileMode) (File, error) {
	in, err := os.Open(filepath.Join(dir, filepath.FromSlash(name)))
	if err != nil {
		return File{}, err
	}
	defer in.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, in)
	if err != nil {
		return File{}, fmt.Errorf("read %s: %w", in.Name(), err)
	}
	return File{Name: name, Mode: mode, Size: n, SHA256: hex.EncodeToString(sum.Sum(nil))}, nil
}

// tree is the version as a directory to be made, from the source.
func (v Version) tree(path, source string) (txn.Tree, error) {
	list, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return txn.Tree{}, err
	}
	t := txn.Tree{Path: path, Files: []txn.TreeFile{{Name: manifestName, Mode: 0o644, Data: append(list, '\n')}}}
	for _, f := range v.Files {
		t.Files = append(t.Files, txn.TreeFile{
			Name: f.Name, Mode: f.Mode, Source: filepath.Join(source, filepath.FromSlash(f.Name)), SHA256: f.SHA256,
		})
	}
	return t, nil
}

// readVersion reads the list of an installed version.
func readVersion(dir string) (Version, error) {
	text, err := os.ReadFile(filepath.Join(dir, manifestName))
	if err != nil {
		return Version{}, err
	}
	var v Version
	if err := json.Unmarshal(text, &v); err != nil {
		return Version{}, fmt.Errorf("%s: %w", filepath.Join(dir, manifestName), err)
	}
	return v, nil
}

// Check reads every file of an installed version and names those that are not as its list says.
func (v Version) Check(dir string) error {
	var errs []error
	for _, f := range v.Files {
		now, err := readFile(dir, f.Name, f.Mode)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			errs = append(errs, fmt.Errorf("%s is missing", filepath.Join(dir, f.Name)))
		case err != nil:
			errs = append(errs, err)
		case now.SHA256 != f.SHA256:
			errs = append(errs, fmt.Errorf("%s is damaged: its SHA-256 is %s, not %s", filepath.Join(dir, f.Name),
				now.SHA256, f.SHA256))
		}
	}
	return errors.Join(errs...)
}
