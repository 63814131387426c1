// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/image/sign"
)

const (
	// maxStatements is how many statements about one image are read.
	maxStatements = 100
	// bundlePrefix begins the media types of sigstore's bundles of all versions.
	bundlePrefix = "application/vnd.dev.sigstore.bundle"
	emptyType    = "application/vnd.oci.empty.v1+json"
)

// registry is where images and statements about them lie.
type registry struct{ insecure bool }

func (r *registry) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&r.insecure, "insecure-registry", false, "ask registries by HTTP")
}

func options(ctx context.Context) []remote.Option {
	return []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)}
}

// subject is an image in a registry.
type subject struct {
	sign.Image
	name   name.Digest
	suffix string // ":TAG" or "@DIGEST", as the image was named
	desc   v1.Descriptor
}

// find looks for an image. The answer names it by its digest, so that all that follows is about one content.
func (r *registry) find(ctx context.Context, ref string) (subject, error) {
	var opts []name.Option
	if r.insecure {
		opts = append(opts, name.Insecure)
	}
	parsed, err := name.ParseReference(ref, opts...)
	if err != nil {
		return subject{}, err
	}
	got, err := remote.Get(parsed, options(ctx)...)
	if err != nil {
		return subject{}, fmt.Errorf("ask the registry for %s: %w; log in with docker login", ref, err)
	}
	digest := parsed.Context().Digest(got.Digest.String())
	suffix := "@" + got.Digest.String()
	if tag, ok := parsed.(name.Tag); ok {
		suffix = ":" + tag.TagStr()
	}
	return subject{
		Image: sign.Image{Repository: parsed.Context().Name(), Digest: got.Digest.String()},
		name:  digest, suffix: suffix,
		desc: v1.Descriptor{MediaType: got.MediaType, Digest: got.Digest, Size: got.Size},
	}, nil
}

// payload is a signature of cosign's older form.
type payload struct{ text, signature []byte }

// payloads reads the payloads about an image.
func (s subject) payloads(ctx context.Context) ([]payload, error) {
	img, err := s.payloadImage(ctx)
	if err != nil || img == nil {
		return nil, err
	}
	m, err := img.Manifest()
	if err != nil {
		return nil, err
	}
	if len(m.Layers) > maxStatements {
		return nil, fmt.Errorf("there are %d signatures, at most %d are read", len(m.Layers), maxStatements)
	}
	var out []payload
	for _, l := range m.Layers {
		if l.MediaType != sign.PayloadType {
			continue
		}
		sig, err := base64.StdEncoding.DecodeString(l.Annotations[sign.SignatureAnnotation])
		if err != nil {
			continue // no signature that could be verified
		}
		text, err := s.blob(ctx, l.Digest)
		if err != nil {
			return nil, err
		}
		out = append(out, payload{text, sig})
	}
	return out, nil
}

// payloadImage returns the image whose layers are payloads; nil if there is none.
func (s subject) payloadImage(ctx context.Context) (v1.Image, error) {
	img, err := remote.Image(s.name.Context().Tag(sign.Tag(s.Image)), options(ctx)...)
	if missing(err) {
		return nil, nil
	}
	return img, err
}

func missing(err error) bool {
	var e *transport.Error
	return errors.As(err, &e) && e.StatusCode == http.StatusNotFound
}

// blob reads a statement. The library compares it with its digest.
func (s subject) blob(ctx context.Context, digest v1.Hash) ([]byte, error) {
	l, err := remote.Layer(s.name.Context().Digest(digest.String()), options(ctx)...)
	if err != nil {
		return nil, err
	}
	r, err := l.Compressed()
	if err != nil {
		return nil, fmt.Errorf("read statement %s: %w", digest, err)
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, sign.MaxStatement+1))
	if err == nil && len(b) > sign.MaxStatement {
		err = fmt.Errorf("it has more than %d bytes", sign.MaxStatement)
	}
	if err != nil {
		return nil, fmt.Errorf("read statement %s: %w", digest, err)
	}
	return b, nil
}

// bundles reads the bundles that refer to an image, of any statement.
func (s subject) bundles(ctx context.Context) ([][]byte, error) {
	index, err := remote.Referrers(s.name, options(ctx)...)
	if missing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ask for what refers to %s: %w", s.name, err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	var out [][]byte
	for _, d := range m.Manifests {
		// Some registries take the configuration's media type for the artifact type.
		if !strings.HasPrefix(d.ArtifactType, bundlePrefix) && d.ArtifactType != emptyType {
			continue
		}
		if len(out) == maxStatements {
			return nil, fmt.Errorf("more than %d bundles refer to %s", maxStatements, s.name)
		}
		img, err := remote.Image(s.name.Context().Digest(d.Digest.String()), options(ctx)...)
		if err != nil {
			return nil, err
		}
		layers, err := img.Manifest()
		if err != nil {
			return nil, err
		}
		if len(layers.Layers) != 1 || !strings.HasPrefix(string(layers.Layers[0].MediaType), bundlePrefix) {
			continue // neither cosign nor coco has written it
		}
		b, err := s.blob(ctx, layers.Layers[0].Digest)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// addPayload stores a payload beside those that are there.
func (s subject) addPayload(ctx context.Context, p payload) error {
	img, err := s.payloadImage(ctx)
	if err != nil {
		return err
	}
	if img == nil {
		img = mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	}
	img, err = mutate.Append(img, mutate.Addendum{
		Layer:       static.NewLayer(p.text, sign.PayloadType),
		Annotations: map[string]string{sign.SignatureAnnotation: base64.StdEncoding.EncodeToString(p.signature)},
	})
	if err != nil {
		return err
	}
	tag := s.name.Context().Tag(sign.Tag(s.Image))
	if err := remote.Write(tag, img, options(ctx)...); err != nil {
		return fmt.Errorf("store the signature as %s: %w", tag, err)
	}
	return nil
}

// manifest is a manifest as it is stored.
type manifest []byte

// RawManifest returns the text.
func (m manifest) RawManifest() ([]byte, error) { return m, nil }

// MediaType returns that of OCI's manifests.
func (m manifest) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

// addBundle stores a bundle that refers to the image.
func (s subject) addBundle(ctx context.Context, text []byte, predicate string) error {
	config, layer := static.NewLayer([]byte("{}"), emptyType), static.NewLayer(text, sign.BundleType)
	m := v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: sign.BundleType, Subject: &s.desc,
		Annotations: map[string]string{
			"dev.sigstore.bundle.content": "dsse-envelope", sign.PredicateAnnotation: predicate,
		},
	}
	for _, l := range []v1.Layer{config, layer} {
		if err := remote.WriteLayer(s.name.Context(), l, options(ctx)...); err != nil {
			return fmt.Errorf("store the bundle: %w", err)
		}
		d, err := describe(l)
		if err != nil {
			return err
		}
		if l == config {
			m.Config = d
		} else {
			m.Layers = append(m.Layers, d)
		}
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	digest, _, err := v1.SHA256(strings.NewReader(string(raw)))
	if err != nil {
		return err
	}
	if err := remote.Put(s.name.Context().Digest(digest.String()), manifest(raw), options(ctx)...); err != nil {
		return fmt.Errorf("store the bundle: %w", err)
	}
	return nil
}

func describe(l v1.Layer) (d v1.Descriptor, err error) {
	if d.Digest, err = l.Digest(); err != nil {
		return d, err
	}
	if d.Size, err = l.Size(); err != nil {
		return d, err
	}
	d.MediaType, err = l.MediaType()
	return d, err
}
