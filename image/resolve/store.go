// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package resolve

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Annotations by which the index of an OCI layout names its images: the specification's and containerd's.
var nameAnnotations = []string{"io.containerd.image.name", "org.opencontainers.image.ref.name"}

// Store is an OCI layout or a docker archive on this machine.
type Store struct {
	path   string
	layout layout.Path // "": path is an archive
}

// OpenStore finds out what a path is: the directory of an OCI layout, or a file as docker save, podman save and
// ctr images export write it.
func OpenStore(path string) (Store, error) {
	st, err := os.Stat(path)
	if err != nil {
		return Store{}, err
	}
	if !st.IsDir() {
		if _, err := tarball.LoadManifest(opener(path)); err != nil {
			return Store{}, fmt.Errorf("%s is no docker archive: %w; write one with docker save or ctr images export", path, err)
		}
		return Store{path: path}, nil
	}
	if _, err := os.Stat(filepath.Join(path, "oci-layout")); errors.Is(err, fs.ErrNotExist) {
		return Store{}, fmt.Errorf("%s is no OCI layout: it has no file oci-layout", path)
	}
	l, err := layout.FromPath(path)
	if err != nil {
		return Store{}, fmt.Errorf("OCI layout %s: %w", path, err)
	}
	return Store{path: path, layout: l}, nil
}

func (s Store) String() string { return s.path }

func opener(path string) tarball.Opener {
	return func() (io.ReadCloser, error) { return os.Open(path) }
}

// find returns the image of a reference; nil if the store does not have it.
func (s Store) find(ref name.Reference, platform v1.Platform) (v1.Image, error) {
	if s.layout == "" {
		return s.inArchive(ref)
	}
	root, err := s.layout.ImageIndex()
	if err != nil {
		return nil, err
	}
	index, err := root.IndexManifest()
	if err != nil {
		return nil, err
	}
	var named []v1.Descriptor
	for _, d := range index.Manifests {
		if matches(ref, d) {
			named = append(named, d)
		}
	}
	if len(named) == 0 {
		return nil, nil
	}
	return ofPlatform(root, named, platform)
}

// matches says whether a descriptor of a layout's index is what a reference names. A layout that gives only a tag is
// for one repository, whose name it does not tell.
func matches(ref name.Reference, d v1.Descriptor) bool {
	if digest, ok := ref.(name.Digest); ok {
		return digest.DigestStr() == d.Digest.String()
	}
	for _, key := range nameAnnotations {
		text := d.Annotations[key]
		if text == "" {
			continue
		}
		if !strings.ContainsAny(text, "/:@") && text == ref.Identifier() {
			return true
		}
		if parsed, err := name.ParseReference(text); err == nil && parsed.Name() == ref.Name() {
			return true
		}
	}
	return false
}

// ofPlatform picks the image of a platform among descriptors and the indexes that they name.
func ofPlatform(in v1.ImageIndex, list []v1.Descriptor, platform v1.Platform) (v1.Image, error) {
	var found []v1.Descriptor
	others := []string{}
	for _, d := range list {
		switch {
		case d.MediaType.IsIndex():
			sub, err := in.ImageIndex(d.Digest)
			if err != nil {
				return nil, err
			}
			m, err := sub.IndexManifest()
			if err != nil {
				return nil, err
			}
			return ofPlatform(sub, m.Manifests, platform)
		case !d.MediaType.IsImage():
		case d.Platform == nil || d.Platform.Satisfies(platform):
			found = append(found, d)
		default:
			others = append(others, d.Platform.String())
		}
	}
	switch {
	case len(found) == 0:
		return nil, fmt.Errorf("the index has no image for %s, only for %s: give --platform",
			platform, strings.Join(others, ", "))
	case len(found) > 1 && found[0].Digest != found[1].Digest:
		return nil, fmt.Errorf("has %d images of that name for %s: name one by its digest", len(found), platform)
	}
	return in.Image(found[0].Digest)
}

// inArchive finds an image of a docker archive, which has no digest of a manifest.
func (s Store) inArchive(ref name.Reference) (v1.Image, error) {
	tag, ok := ref.(name.Tag)
	if !ok {
		return nil, nil
	}
	list, err := tarball.LoadManifest(opener(s.path))
	if err != nil {
		return nil, err
	}
	for _, m := range list {
		for _, t := range m.RepoTags {
			if parsed, err := name.NewTag(t); err == nil && parsed.Name() == tag.Name() {
				return tarball.Image(opener(s.path), &parsed)
			}
		}
	}
	return nil, nil
}
