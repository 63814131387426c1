// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package registry reads manifests and blobs from a registry of container images, by their digests, for a guest that
// pulls its own images.
//
// Nothing of a registry is believed: a manifest or blob is compared with the digest and the size by which it was asked
// for. A transfer that breaks is continued where it stopped, and repeated requests wait longer each time. Redirects
// lead to https only. Addresses of this machine and of the cloud's metadata service are never asked, whatever a name
// resolves to.
//
// Sources: the OCI distribution specification 1.1; the token specification of distribution/distribution.
package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Limits.
const (
	MaxManifest = 4 << 20

	maxRedirects = 5
	maxErrorBody = 4 << 10
)

// Login is a user of a registry.
type Login struct{ User, Password string }

// Config says how registries are reached.
type Config struct {
	Transport http.RoundTripper // required; of a Transport
	// Login returns the user for a repository, "registry/name"; nil: there are none.
	Login func(repository string) (Login, bool)
	Retry Retry
}

// Retry bounds how a request is repeated that has failed for a reason which may pass. The zero value has the defaults.
type Retry struct {
	Attempts int           // in a row without a byte; 0: 6
	First    time.Duration // wait before the second attempt, doubled for each further one; 0: 500 ms
	Most     time.Duration // longest wait, also where the registry asks for more; 0: 20 s
	Stall    time.Duration // time without a byte after which a transfer counts as broken; 0: 30 s
}

// Repository is a repository of a registry. It is used by one goroutine.
type Repository struct {
	cfg      Config
	name     string // "registry/name", as it was asked for
	base     string // https://HOST/v2/NAME
	path     string // NAME
	token    string // value of the header Authorization; "": none
	answered bool   // a challenge was answered with the login
}

// Open returns a repository, "registry/name", without asking the registry.
func Open(cfg Config, repository string) (*Repository, error) {
	host, name, err := Split(repository)
	if err != nil {
		return nil, err
	}
	cfg.Retry = cfg.Retry.defaults()
	return &Repository{
		cfg: cfg, name: repository, path: name,
		base: (&url.URL{Scheme: "https", Host: host, Path: "/v2/" + name}).String(),
	}, nil
}

// dockerHub is the registry that serves what is called docker.io.
const dockerHub = "registry-1.docker.io"

// Split returns the host to ask and the name of a repository in its complete form: "docker.io/library/busybox",
// "registry.example:5000/team/app".
func Split(repository string) (host, name string, err error) {
	bad := func(why string) error { return fmt.Errorf("repository %.200q: %s", repository, why) }
	host, name, ok := strings.Cut(repository, "/")
	switch {
	case !ok || !isHost(host):
		return "", "", bad("want registry/name, the registry with a dot, a port, or the name localhost")
	case len(repository) > 255:
		return "", "", bad("is longer than 255 bytes")
	}
	for part := range strings.SplitSeq(name, "/") {
		if !isComponent(part) {
			return "", "", bad("the name has other than lower-case letters, digits and single separators; a tag or digest is " +
				"no part of it")
		}
	}
	if host == "docker.io" || host == "index.docker.io" {
		if !strings.Contains(name, "/") {
			return "", "", bad("repositories of docker.io have a user, such as library")
		}
		host = dockerHub
	}
	return host, name, nil
}

func isHost(s string) bool {
	u, err := url.Parse("https://" + s)
	return err == nil && u.Host == s && u.Hostname() != "" && (s == "localhost" || strings.ContainsAny(s, ".:"))
}

// isComponent admits [a-z0-9]+ with single separators ".", "_", "__" or any number of "-" in between.
func isComponent(s string) bool {
	for rest := s; ; {
		n := strings.IndexFunc(rest, func(r rune) bool { return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9') })
		if n < 0 {
			return rest != ""
		}
		after := strings.TrimLeft(rest[n:], "-")
		if len(after) == len(rest[n:]) {
			after = strings.TrimPrefix(strings.TrimPrefix(rest[n:], "."), "__")
			if len(after) == len(rest[n:]) {
				after = strings.TrimPrefix(rest[n:], "_")
			}
		}
		if n == 0 || len(after) == len(rest[n:]) {
			return false
		}
		rest = after
	}
}

// accepted are the media types of manifests and indexes. Where a manifest is wanted, its reader refuses an index.
const accepted = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, " +
	"application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json"

// Manifest returns the bytes with a digest, "sha256:…".
func (r *Repository) Manifest(ctx context.Context, digest string) ([]byte, error) {
	b, err := r.small(ctx, "/manifests/"+digest, digest, MaxManifest)
	if err != nil {
		return nil, fmt.Errorf("manifest %s of %s: %w", digest, r.name, err)
	}
	return b, nil
}

// Tagged returns the manifest or index that the registry has under a tag now, and its digest. Nothing is known of it
// but that: the caller has to have another reason to believe in the digest.
func (r *Repository) Tagged(ctx context.Context, tag string) (text []byte, digest string, err error) {
	if text, err = r.any(ctx, "/manifests/"+url.PathEscape(tag), MaxManifest); err != nil {
		return nil, "", fmt.Errorf("tag %s of %s: %w", tag, r.name, err)
	}
	sum := sha256.Sum256(text)
	return text, "sha256:" + hex.EncodeToString(sum[:]), nil
}

// Referrers returns an index of what refers to a digest, as the registry says. nil: there is nothing.
func (r *Repository) Referrers(ctx context.Context, digest string) ([]byte, error) {
	if err := CheckDigest(digest); err != nil {
		return nil, err
	}
	text, err := r.any(ctx, "/referrers/"+digest, MaxManifest)
	if Missing(err) { // a registry without the API has them under a tag
		text, _, err = r.Tagged(ctx, strings.Replace(digest, ":", "-", 1))
	}
	if Missing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("referrers of %s in %s: %w", digest, r.name, err)
	}
	return text, nil
}

// Missing says whether the registry does not have what it was asked for.
func Missing(err error) bool {
	var s *StatusError
	return errors.As(err, &s) && s.Status == http.StatusNotFound
}

// Small returns a blob whose size is known to fit into memory.
func (r *Repository) Small(ctx context.Context, digest string, size int64) ([]byte, error) {
	b, err := r.small(ctx, "/blobs/"+digest, digest, min(size, MaxManifest))
	if err == nil && int64(len(b)) != size {
		err = fmt.Errorf("has %d bytes, and the manifest says %d", len(b), size)
	}
	if err != nil {
		return nil, fmt.Errorf("blob %s of %s: %w", digest, r.name, err)
	}
	return b, nil
}

func (r *Repository) small(ctx context.Context, path, digest string, most int64) ([]byte, error) {
	if err := CheckDigest(digest); err != nil {
		return nil, err
	}
	text, err := r.any(ctx, path, most)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(text)
	return text, compare(digest, sum[:])
}

// any returns bytes of which nothing is known.
func (r *Repository) any(ctx context.Context, path string, most int64) ([]byte, error) {
	b := &body{repo: r, ctx: ctx, path: path, size: -1}
	defer b.Close()
	text, err := io.ReadAll(io.LimitReader(b, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(text)) > most {
		return nil, fmt.Errorf("has more than %d bytes", most)
	}
	return text, nil
}

// Blob returns a reader of a blob. Its end is io.EOF only if all bytes were those of the digest and there were as many
// as size: nobody may use them before.
func (r *Repository) Blob(ctx context.Context, digest string, size int64) (io.ReadCloser, error) {
	if err := CheckDigest(digest); err != nil {
		return nil, fmt.Errorf("blob of %s: %w", r.name, err)
	}
	if size < 0 {
		return nil, fmt.Errorf("blob %s of %s: has a size of %d bytes", digest, r.name, size)
	}
	b := &body{repo: r, ctx: ctx, path: "/blobs/" + digest, size: size}
	return &verified{body: b, sum: sha256.New(), digest: digest, name: r.name}, nil
}

// CheckDigest refuses what is no "sha256:" with 64 hexadecimal digits.
func CheckDigest(d string) error {
	h, ok := strings.CutPrefix(d, "sha256:")
	b, err := hex.DecodeString(h)
	if !ok || err != nil || len(b) != sha256.Size || hex.EncodeToString(b) != h {
		return fmt.Errorf("%.100q is no digest of the form sha256:…", d)
	}
	return nil
}

func compare(want string, sum []byte) error {
	if got := "sha256:" + hex.EncodeToString(sum); got != want {
		return fmt.Errorf("the registry sent bytes with digest %s: somebody has changed them", got)
	}
	return nil
}

// StatusError is a registry's refusal.
type StatusError struct {
	URL    string
	Status int
	Detail string // of the registry
}

func (e *StatusError) Error() string {
	text := fmt.Sprintf("%s answers %d %s", e.URL, e.Status, http.StatusText(e.Status))
	if e.Detail != "" {
		text += ": " + e.Detail
	}
	switch e.Status {
	case http.StatusUnauthorized, http.StatusForbidden:
		text += "; initdata has no login for it that may pull"
	case http.StatusNotFound:
		text += "; the repository does not have it"
	}
	return text
}

// refusal reads why a registry refuses.
func refusal(resp *http.Response) error {
	e := &StatusError{URL: resp.Request.URL.Redacted(), Status: resp.StatusCode}
	if u := *resp.Request.URL; u.RawQuery != "" { // redirects are signed by their query
		u.RawQuery = ""
		e.URL = u.Redacted()
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err == nil {
		e.Detail = detail(text)
	}
	return e
}

// detail takes the message out of an error of a registry: printable and short.
func detail(text []byte) string {
	if i := bytes.Index(text, []byte(`"message":"`)); i >= 0 {
		text = text[i+len(`"message":"`):]
		if j := bytes.IndexByte(text, '"'); j >= 0 {
			text = text[:j]
		}
	} else {
		return ""
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, string(text[:min(len(text), 200)]))
}

// final says whether another attempt would end the same way.
func final(err error) bool {
	var s *StatusError
	var f *finalError
	if errors.As(err, &s) {
		return s.Status != http.StatusTooManyRequests && s.Status != http.StatusRequestTimeout && s.Status < 500
	}
	return errors.As(err, &f)
}

// finalError is one that no further attempt can mend.
type finalError struct{ error }

func (e *finalError) Unwrap() error { return e.error }
