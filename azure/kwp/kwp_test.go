// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kwp

import (
	"bytes"
	"crypto/aes"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
	"sync"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// RFC 5649, section 6.
func TestTheVectorsOfTheStandard(t *testing.T) {
	kek := unhex(t, "5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8")
	for key, want := range map[string]string{
		"c37b7e6492584340bed12207808941155068f738": "138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a",
		"466f7250617369": "afbeb0f07dfbf5419200f2ccb50bb24f",
	} {
		got, err := Wrap(kek, unhex(t, key))
		if err != nil || hex.EncodeToString(got) != want {
			t.Errorf("Wrap(%s) = %x, %v, want %s", key, got, err, want)
		}
		back, err := Unwrap(kek, unhex(t, want))
		if err != nil || hex.EncodeToString(back) != key {
			t.Errorf("Unwrap(%s) = %x, %v, want %s", want, back, err, key)
		}
	}
}

func TestEachLengthAndNoAlteredByte(t *testing.T) {
	kek := bytes.Repeat([]byte{7}, 32)
	for n := 1; n <= 70; n++ {
		key := make([]byte, n)
		rand.Read(key)
		w, err := Wrap(kek, key)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Unwrap(kek, w); err != nil || !bytes.Equal(got, key) {
			t.Fatalf("%d bytes: %x, %v", n, got, err)
		}
		for i := range w {
			w[i] ^= 1
			if got, err := Unwrap(kek, w); !errors.Is(err, ErrUnwrap) {
				t.Fatalf("%d bytes, byte %d altered: %x, %v", n, i, got, err)
			}
			w[i] ^= 1
		}
	}
}

// forged wraps 8 bytes with a head of the test's choice.
func forged(t *testing.T, kek []byte, head uint32, length uint32, data [8]byte) []byte {
	t.Helper()
	c, err := aes.NewCipher(kek)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, 16)
	binary.BigEndian.PutUint32(out, head)
	binary.BigEndian.PutUint32(out[4:], length)
	copy(out[8:], data[:])
	c.Encrypt(out, out)
	return out
}

func TestForgedHeadsAndPaddingsAreRefused(t *testing.T) {
	kek := bytes.Repeat([]byte{7}, 16)
	got, err := Unwrap(kek, forged(t, kek, aiv, 3, [8]byte{1, 2, 3}))
	if err != nil || !bytes.Equal(got, []byte{1, 2, 3}) {
		t.Fatalf("%x %v", got, err)
	}
	for _, tc := range []struct {
		name         string
		head, length uint32
		data         [8]byte
	}{
		{"constant of RFC 3394", 0xA6A6A6A6, 3, [8]byte{1, 2, 3}},
		{"no byte", aiv, 0, [8]byte{}},
		{"longer than the blob", aiv, 9, [8]byte{}},
		{"a length with the highest bit", aiv, 1<<31 | 3, [8]byte{1, 2, 3}},
		{"the largest length", aiv, 1<<32 - 1, [8]byte{}},
		{"padding", aiv, 3, [8]byte{1, 2, 3, 0, 0, 0, 0, 9}},
		{"first byte of the padding", aiv, 3, [8]byte{1, 2, 3, 1}},
	} {
		if got, err := Unwrap(kek, forged(t, kek, tc.head, tc.length, tc.data)); !errors.Is(err, ErrUnwrap) || got != nil {
			t.Errorf("%s: %x, %v", tc.name, got, err)
		}
	}
	for _, n := range []int{0, 1, 8, 15, 17, MaxKey + 17, MaxKey + 24} {
		if _, err := Unwrap(kek, make([]byte, n)); err == nil || errors.Is(err, ErrUnwrap) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	for _, n := range []int{0, MaxKey + 1} {
		if _, err := Wrap(kek, make([]byte, n)); err == nil {
			t.Errorf("a key of %d bytes was wrapped", n)
		}
	}
	if _, err := Unwrap(make([]byte, 15), make([]byte, 16)); err == nil {
		t.Error("an AES key of 15 bytes was taken")
	}
}

var rsaKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

func TestKeysForAnRSAKey(t *testing.T) {
	k, err := rsaKey()
	if err != nil {
		t.Fatal(err)
	}
	key := []byte("a key of some bytes")
	for _, s := range []Scheme{RSAAES, RSAAES256, RSAAES384} {
		w, err := WrapRSA(s, &k.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := UnwrapRSA(s, k, w); err != nil || !bytes.Equal(got, key) {
			t.Errorf("%s: %q, %v", s, got, err)
		}
		for _, i := range []int{0, 255, 256, len(w) - 1} {
			w[i] ^= 1
			if _, err := UnwrapRSA(s, k, w); !errors.Is(err, ErrUnwrap) || err.Error() != ErrUnwrap.Error() {
				t.Errorf("%s, byte %d altered: %v", s, i, err)
			}
			w[i] ^= 1
		}
		for _, other := range []Scheme{RSAAES, RSAAES256, RSAAES384} {
			if _, err := UnwrapRSA(other, k, w); other != s && !errors.Is(err, ErrUnwrap) {
				t.Errorf("%s opens %s: %v", other, s, err)
			}
		}
		for _, n := range []int{0, 8, 255, 256, 257, 256 + 8, 256 + 17} {
			if _, err := UnwrapRSA(s, k, w[:min(n, len(w))]); err == nil {
				t.Errorf("%s: %d bytes unwrap", s, n)
			}
		}
	}
	if _, err := UnwrapRSA("RSA1_5", k, make([]byte, 300)); err == nil || !strings.Contains(err.Error(), "known are") {
		t.Errorf("an unknown scheme: %v", err)
	}
	// What OAEP protects is no AES key.
	h, _ := RSAAES256.hash()
	head, err := rsa.EncryptOAEP(h(), rand.Reader, &k.PublicKey, make([]byte, 31), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := UnwrapRSA(RSAAES256, k, append(head, make([]byte, 16)...)); !errors.Is(err, ErrUnwrap) {
		t.Errorf("an AES key of 31 bytes: %v", err)
	}
}

func FuzzUnwrap(f *testing.F) {
	kek := bytes.Repeat([]byte{7}, 32)
	w, err := Wrap(kek, []byte("seed"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(w)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		// What unwraps is what Wrap makes of it.
		key, err := Unwrap(kek, b)
		if err != nil {
			return
		}
		again, err := Wrap(kek, key)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("Wrap(Unwrap(%x)) = %x, %v", b, again, err)
		}
	})
}
