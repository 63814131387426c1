// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package idauth_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io/fs"
	"strings"
	"testing"

	"github.com/coco-shim/coco/internal/worktest"
	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/snp/idauth"
	"github.com/coco-shim/coco/measurement/snp/idblock"
	"github.com/coco-shim/coco/tests/vectors"
)

func TestIDBlockAgreesWithPublishedVector(t *testing.T) {
	dir := vectors.Dir(t)
	var cases map[string]struct {
		LD     []byte `json:"ld_b64"`
		ID     string `json:"id_key"`
		Author string `json:"author_key"`
		Block  []byte `json:"id_block_b64"`
		IDDig  []byte `json:"id_key_digest_b64"`
		AuDig  []byte `json:"author_key_digest_b64"`
	}
	if err := json.Unmarshal(vectors.Read(t, dir, "idblock/cases.json"), &cases); err != nil || len(cases) == 0 {
		t.Fatal(len(cases), err)
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			block, err := idblock.New(c.LD, idblock.DefaultPolicy)
			if err != nil {
				t.Fatal(err)
			}
			if got := block.Marshal(); !bytes.Equal(got, c.Block) {
				t.Errorf("Marshal = %x, want %x", got, c.Block)
			}
			auth, err := idauth.Sign(block, readKey(t, dir, "idblock/"+c.ID), readKey(t, dir, "idblock/"+c.Author))
			if err != nil {
				t.Fatal(err)
			}
			got, err := idauth.Verify(c.Block, auth)
			if err != nil || !bytes.Equal(got.ID, c.IDDig) || !bytes.Equal(got.Author, c.AuDig) {
				t.Errorf("VerifyIDAuth = %+v, %v, want %x, %x", got, err, c.IDDig, c.AuDig)
			}
		})
	}
}

func readKey(t *testing.T, dir fs.FS, path string) *ecdsa.PrivateKey {
	t.Helper()
	b, _ := pem.Decode(vectors.Read(t, dir, path))
	if b == nil {
		t.Fatalf("%s is no PEM", path)
	}
	k, err := x509.ParseECPrivateKey(b.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func testBlock() idblock.Block {
	return idblock.Block{
		LaunchDigest: [48]byte{1, 2, 3}, FamilyID: [16]byte{4}, ImageID: [16]byte{5}, GuestSVN: 7,
		Policy: idblock.DefaultPolicy,
	}
}

func TestIDBlockSurvivesEncoding(t *testing.T) {
	want := testBlock()
	if got, err := idblock.Parse(want.Marshal()); err != nil || got != want {
		t.Errorf("ParseIDBlock = %+v, %v, want %+v", got, err, want)
	}
}

// authForms are the ways to authenticate the block.
func authForms(t testing.TB, b idblock.Block) map[string][]byte {
	t.Helper()
	id, author := newKey(t, elliptic.P384()), newKey(t, elliptic.P384())
	out := map[string][]byte{}
	for name, f := range map[string]func() ([]byte, error){
		"own key":        func() ([]byte, error) { return idauth.Sign(b, id, nil) },
		"own and author": func() ([]byte, error) { return idauth.Sign(b, id, author) },
		"anonymous":      func() ([]byte, error) { return idblock.Anonymous(b) },
	} {
		a, err := f()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		again, err := f()
		if err != nil || !bytes.Equal(a, again) {
			t.Errorf("%s: a second run gives other bytes (%v)", name, err)
		}
		out[name] = a
	}
	return out
}

func TestVerifyIDAuthRefusesEverySingleBitChange(t *testing.T) {
	b := testBlock()
	raw := b.Marshal()
	for name, auth := range authForms(t, b) {
		t.Run(name, func(t *testing.T) {
			want, err := idauth.Verify(raw, auth)
			if err != nil || (len(want.Author) != 0) != strings.Contains(name, "author") {
				t.Fatalf("VerifyIDAuth = %+v, %v", want, err)
			}
			for i := range raw {
				raw[i] ^= 1
				if _, err := idauth.Verify(raw, auth); err == nil {
					t.Errorf("ID block with byte %d changed was accepted", i)
				}
				raw[i] ^= 1
			}
			for i := 0; i < len(auth); i += 7 {
				auth[i] ^= 1
				got, err := idauth.Verify(raw, auth)
				if err == nil && got.ID.Equal(want.ID) && bytes.Equal(got.Author, want.Author) {
					t.Errorf("authentication with byte %#x changed was accepted", i)
				}
				auth[i] ^= 1
			}
		})
	}
}

func TestAnonymousKeyIsAFunctionOfTheBlock(t *testing.T) {
	digest := func(b idblock.Block) measurement.Digest {
		a, err := idblock.Anonymous(b)
		if err != nil {
			t.Fatal(err)
		}
		k, err := idauth.Verify(b.Marshal(), a)
		if err != nil {
			t.Fatal(err)
		}
		return k.ID
	}
	a, b := testBlock(), testBlock()
	b.GuestSVN++
	if digest(a).Equal(digest(b)) {
		t.Error("two ID blocks have the same anonymous key")
	}
	// as first published; it must never change
	const golden = "58cd1e97d543914be4d329f651f1c49804ef1ae36b0e59be26435043eee75f81dcf116a6ab152494b05fa2b6ab7a778d"
	if got := digest(a).String(); got != golden {
		t.Errorf("anonymous key digest = %s, want %s", got, golden)
	}
}

func TestIDBlockRefusals(t *testing.T) {
	if _, err := idblock.New(make([]byte, 32), idblock.DefaultPolicy); err == nil {
		t.Error("NewIDBlock(32 bytes) was accepted; only SNP has ID blocks")
	}
	if _, err := idblock.New(make([]byte, 48), 0x10000); err == nil {
		t.Error("policy without bit 17 was accepted")
	}
	if _, err := idblock.New(make([]byte, 48), idblock.DefaultPolicy|1<<40); err == nil {
		t.Error("policy with reserved bits was accepted")
	}
	if err := (idblock.DefaultPolicy | idblock.PolicyDebug).CheckProduction(); err == nil {
		t.Error("debug policy passes for production")
	}
	if _, err := idauth.Sign(testBlock(), newKey(t, elliptic.P256()), nil); err == nil {
		t.Error("a P-256 key was accepted")
	}
	if _, err := idauth.Sign(testBlock(), nil, nil); err == nil {
		t.Error("no key at all was accepted")
	}
}

func FuzzVerifyIDAuth(f *testing.F) {
	b := testBlock()
	for _, a := range authForms(f, b) {
		f.Add(b.Marshal(), a)
	}
	f.Fuzz(func(t *testing.T, block, auth []byte) {
		defer worktest.Bound(t, len(block)+len(auth))()
		if k, err := idauth.Verify(block, auth); err == nil && len(k.ID) != 48 {
			t.Errorf("VerifyIDAuth = %+v without an ID key", k)
		}
	})
}
