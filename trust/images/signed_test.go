// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package images

import (
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/coco-shim/coco/image/sign"
	"github.com/coco-shim/coco/trust/wire"
)

// signedPod is a pod whose policy has the key of a signer, who puts images under the tag stable.
type signedPod struct {
	*pod
	t      *testing.T
	signer sign.Signer
}

func newSigner(t *testing.T) (s sign.Signer, public string) {
	t.Helper()
	s, err := sign.NewSigner()
	if err != nil {
		t.Fatal(err)
	}
	_, text, err := s.PEM()
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	return s, base64.StdEncoding.EncodeToString(block.Bytes)
}

func newSignedPod(t *testing.T) signedPod {
	t.Helper()
	p := signedPod{pod: newPod(t), t: t}
	p.signer, p.image.SignedBy = newSigner(t)
	p.image.Tag, p.image.MinVersion = "stable", "1.4"
	return p
}

func (p signedPod) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p signedPod) ref(tag string) name.Reference {
	p.t.Helper()
	r, err := name.ParseReference(p.image.Pull + ":" + tag)
	p.must(err)
	return r
}

// release puts an image of a version under a tag, with an annotation that makes it another than that of the policy.
func (p signedPod) release(tag, version string) sign.Image {
	p.t.Helper()
	img, ok := mutate.Annotations(encrypted(p.t), map[string]string{
		"org.opencontainers.image.version": version, "release": version,
	}).(v1.Image)
	if !ok {
		p.t.Fatal("no image")
	}
	p.must(remote.Write(p.ref(tag), img, remote.WithTransport(p.Client().Transport)))
	d, err := img.Digest()
	p.must(err)
	return sign.Image{Repository: p.image.Pull, Digest: d.String()}
}

// payload stores cosign's payload: of statement, signed by s, at the place for at.
func (p signedPod) payload(s sign.Signer, statement, at sign.Image) {
	p.t.Helper()
	text, err := sign.Payload(statement)
	p.must(err)
	sig, err := s.Sign(text)
	p.must(err)
	img, err := mutate.Append(mutate.MediaType(empty.Image, types.OCIManifestSchema1), mutate.Addendum{
		Layer: static.NewLayer(text, sign.PayloadType), MediaType: sign.PayloadType,
		Annotations: map[string]string{sign.SignatureAnnotation: base64.StdEncoding.EncodeToString(sig)},
	})
	p.must(err)
	p.must(remote.Write(p.ref(sign.Tag(at)), img, remote.WithTransport(p.Client().Transport)))
}

// bundle stores a bundle as a referrer of at, under the tag that registries without the API have.
func (p signedPod) bundle(s sign.Signer, statement, at sign.Image) {
	p.t.Helper()
	text, err := sign.SignatureBundle(s, statement)
	p.must(err)
	img, err := mutate.Append(mutate.MediaType(empty.Image, types.OCIManifestSchema1), mutate.Addendum{
		Layer: static.NewLayer(text, sign.BundleType), MediaType: sign.BundleType,
	})
	p.must(err)
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img})
	tag := strings.Replace(at.Digest, ":", "-", 1)
	p.must(remote.WriteIndex(p.ref(tag), index, remote.WithTransport(p.Client().Transport)))
}

func (p signedPod) runs(what string) {
	p.t.Helper()
	if got, _ := p.pull(p.t, p.image.Source()); got.Error != nil || len(got.Layers) != 1 {
		p.t.Errorf("%s: Pull() = %+v, %v", what, got, got.Error)
	}
}

func (p signedPod) refused(what, want string) {
	p.t.Helper()
	got, _ := p.pull(p.t, p.image.Source())
	if got.Error == nil || got.Error.Code != wire.Image || !strings.Contains(got.Error.Text, want) {
		p.t.Errorf("%s: Pull() = %v, want %q", what, got.Error, want)
	}
}

// A later image runs under the same policy, whichever form its signature has; so does one in a signed index.
func TestALaterImageThatIsSigned(t *testing.T) {
	p := newSignedPod(t)
	i := p.release("stable", "1.4.0")
	if i.Digest == p.image.Manifest {
		t.Fatal("it is the image of the policy")
	}
	p.payload(p.signer, i, i)
	p.runs("a payload")

	i = p.release("stable", "v1.10")
	p.bundle(p.signer, i, i)
	p.runs("a bundle")

	// the payload of another key lies there, too
	i = p.release("stable", "2")
	other, _ := newSigner(t)
	p.payload(other, i, i)
	p.bundle(p.signer, i, i)
	p.runs("a bundle beside another's payload")
}

func TestASignedIndex(t *testing.T) {
	p := newSignedPod(t)
	img, ok := mutate.Annotations(encrypted(t), map[string]string{"org.opencontainers.image.version": "3.0"}).(v1.Image)
	if !ok {
		t.Fatal("no image")
	}
	write := func(platforms ...v1.Platform) sign.Image {
		var index v1.ImageIndex = empty.Index
		for _, at := range platforms {
			index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &at}})
		}
		p.must(remote.WriteIndex(p.ref("stable"), index, remote.WithTransport(p.Client().Transport)))
		d, err := index.Digest()
		p.must(err)
		return sign.Image{Repository: p.image.Pull, Digest: d.String()}
	}
	i := write(v1.Platform{OS: "linux", Architecture: "amd64"}, v1.Platform{OS: "linux", Architecture: "arm64"})
	p.refused("an index without a signature", "the image has no signature")
	p.payload(p.signer, i, i)
	p.runs("an index")
	i = write(v1.Platform{OS: "windows", Architecture: "amd64"})
	p.payload(p.signer, i, i)
	p.refused("an index for others", "has 0 images for linux/")
}

func TestImagesThatAreNotSignedAsThePolicyWants(t *testing.T) {
	p := newSignedPod(t)
	other, _ := newSigner(t)
	elsewhere := func(i sign.Image) sign.Image {
		return sign.Image{Repository: "mirror.example/team/app", Digest: i.Digest}
	}
	p.refused("no such tag", "404 Not Found")
	n := 0
	fresh := func() sign.Image {
		n++
		return p.release("stable", fmt.Sprintf("1.4.%d", n))
	}
	old := fresh()
	p.payload(p.signer, old, old)
	for what, c := range map[string]struct {
		put  func(sign.Image)
		want string
	}{
		"unsigned":              {func(sign.Image) {}, "the image has no signature"},
		"another key's payload": {func(i sign.Image) { p.payload(other, i, i) }, "the signature is not that of this key"},
		"another key's bundle":  {func(i sign.Image) { p.bundle(other, i, i) }, "the signature is not that of this key"},
		"another repository, payload": {
			func(i sign.Image) { p.payload(p.signer, elsewhere(i), i) }, `an image in "mirror.example`,
		},
		"another repository, bundle": {
			func(i sign.Image) { p.bundle(p.signer, elsewhere(i), i) }, `an image in "mirror.example`,
		},
		"another image's payload": {func(i sign.Image) { p.payload(p.signer, old, i) }, "the statement is about"},
		"another image's bundle":  {func(i sign.Image) { p.bundle(p.signer, old, i) }, "the statement is about"},
	} {
		c.put(fresh())
		p.refused(what, c.want)
	}
	for version, want := range map[string]string{
		"1.3.9": "it has version 1.3.9, older than the policy's 1.4", "": `is "", which is not of numbers`,
		"1.4-rc1": `is "1.4-rc1", which is not of numbers`,
	} {
		i := p.release("stable", version)
		p.payload(p.signer, i, i)
		p.refused("version "+version, want)
	}
	p.image.MinVersion = ""
	p.runs("any version")
	p.image.SignedBy = base64.StdEncoding.EncodeToString([]byte("no key"))
	p.refused("a key that is none", "the policy's key: ")
}

// A registry that lies about a signature's manifest or bytes changes nothing.
func TestARegistryThatLiesAboutSignatures(t *testing.T) {
	p := newSignedPod(t)
	i := p.release("stable", "1.5")
	p.payload(p.signer, i, i)
	good := p.Config.Handler
	for what, c := range map[string]struct{ part, body, want string }{
		"no JSON":          {"/manifests/" + sign.Tag(i), "[", "signatures: "},
		"another manifest": {"/manifests/stable", `{"schemaVersion":2}`, "the image has no signature"},
		"another payload":  {"/blobs/", "{}", "signature: "},
	} {
		p.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, c.part) {
				_, _ = w.Write([]byte(c.body))
				return
			}
			good.ServeHTTP(w, r)
		})
		p.refused(what, c.want)
	}
	p.Config.Handler = good
	p.runs("a registry that does not lie")
}
