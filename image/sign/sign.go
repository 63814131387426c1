// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package sign makes and checks statements about container images that are signed with a key. There are three:
//
//   - cosign's signature as a payload of its own ("simple signing"), which lies in the registry under the tag
//     sha256-HEX.sig: Payload and CheckPayload;
//   - cosign's signature as a sigstore bundle, which refers to the image: SignatureBundle and CheckBundle;
//   - our layer statement, a bundle too, with the dm-verity root hashes of the image's layers: LayerBundle and
//     CheckLayers.
//
// A statement counts for an image if its signature is right and it names both the image's digest and its repository.
// One that names no repository is refused: it would hold for a copy in anybody's repository.
//
// Keys are files. Certificates of Fulcio, entries of Rekor and times of notaries are not looked at: the
// key alone decides. The package does no I/O.
//
// Sources: cosign's documents SIGNATURE_SPEC.md and BUNDLE_SPEC.md, sigstore's protobuf-specs (bundle v0.3), DSSE
// protocol 1.0, in-toto statement v1.
package sign

import (
	"fmt"
	"regexp"
	"strings"
)

// MaxStatement is the longest payload or bundle that is read, in bytes.
const MaxStatement = 4 << 20

// Image names an image: one repository, one content.
type Image struct {
	// Repository is host and path without tag or digest, such as "registry.example/team/app".
	Repository string
	// Digest is that of a manifest or an index: "sha256:" and 64 hexadecimal digits.
	Digest string
}

var (
	digestForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	hashForm   = regexp.MustCompile(`^[0-9a-f]{64}$`)
	repoForm   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+$`)
)

const maxRepository = 512

// check refuses images whose names are not complete.
func (i Image) check() error {
	if !digestForm.MatchString(i.Digest) {
		return fmt.Errorf("the digest %.80q is not sha256: and 64 hexadecimal digits", i.Digest)
	}
	if len(i.Repository) > maxRepository || !repoForm.MatchString(i.Repository) {
		return fmt.Errorf("%.80q is no repository such as registry.example/team/app", i.Repository)
	}
	return nil
}

// same compares the repository of a statement with the image's. Docker's registry has two names.
func (i Image) same(repository, digest string) error {
	if err := i.check(); err != nil {
		return err
	}
	switch {
	case repository == "":
		return fmt.Errorf("the statement names no repository, so it would hold for a copy in any: sign it with its " +
			"identity (docs/images.md)")
	case digest != i.Digest:
		return fmt.Errorf("the statement is about %.80q, not about %s", digest, i.Digest)
	case canonical(repository) != canonical(i.Repository):
		return fmt.Errorf("the statement is about an image in %.80q, not in %s", repository, i.Repository)
	}
	return nil
}

// canonical leaves out tag and digest of a reference, and gives Docker's registry one name.
func canonical(reference string) string {
	repo, _, _ := strings.Cut(reference, "@")
	if colon := strings.LastIndexByte(repo, ':'); colon > strings.LastIndexByte(repo, '/') {
		repo = repo[:colon]
	}
	if rest, ok := strings.CutPrefix(repo, "index.docker.io/"); ok {
		repo = "docker.io/" + rest
	}
	return repo
}
