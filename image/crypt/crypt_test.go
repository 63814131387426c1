// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package crypt

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strings"
	"testing"
	"testing/iotest"
)

var owner = Recipient{Kid: "kbs:///default/image-kek/one", Key: bytes.Repeat([]byte{7}, keySize)}

// keysOf knows the keys of these recipients.
func keysOf(all ...Recipient) Keys {
	return func(_ context.Context, kid string) ([]byte, error) {
		for _, r := range all {
			if r.Kid == kid {
				return r.Key, nil
			}
		}
		return nil, errors.New("there is no such key")
	}
}

func digestOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// encrypt encrypts a layer, and returns its bytes and annotations.
func encrypt(t testing.TB, plain []byte, to Recipient) ([]byte, map[string]string) {
	t.Helper()
	e, err := Encrypt(iotest.OneByteReader(bytes.NewReader(plain)), digestOf(plain), to)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Annotations(); err == nil {
		t.Error("there are annotations before the end")
	}
	out, err := io.ReadAll(e)
	if err != nil {
		t.Fatal(err)
	}
	notes, err := e.Annotations()
	if err != nil {
		t.Fatal(err)
	}
	return out, notes
}

func decrypt(t testing.TB, in []byte, notes map[string]string, keys Keys) ([]byte, error) {
	t.Helper()
	r, err := Decrypt(t.Context(), bytes.NewReader(in), notes, keys)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func TestEncryptAndDecrypt(t *testing.T) {
	for _, algorithm := range []string{"", GCM, CTR} {
		to := owner
		to.Algorithm = algorithm
		for _, plain := range [][]byte{nil, []byte("x"), bytes.Repeat([]byte("layer"), 50000)} {
			in, notes := encrypt(t, plain, to)
			if len(plain) > 1 && bytes.Contains(in, plain[:20]) || len(in) != len(plain) {
				t.Errorf("%d bytes became %d", len(plain), len(in))
			}
			got, err := decrypt(t, in, notes, keysOf(to))
			if err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%s, %d bytes: got %d, %v", algorithm, len(plain), len(got), err)
			}
		}
	}
	to := owner
	to.Algorithm = "A128GCM"
	if _, err := Wrap([]byte("x"), to); err == nil {
		t.Error("an unknown algorithm is taken")
	}
}

// testdata/ocicrypt-1.3.2.json has layers that containers/ocicrypt 1.3.2 encrypted through coco image keyprovider. The
// key is 32 times "k".
func TestLayersOfOcicrypt(t *testing.T) {
	text, err := os.ReadFile("testdata/ocicrypt-1.3.2.json")
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]struct {
		Plain, Encrypted []byte
		Annotations      map[string]string
	}
	if err := json.Unmarshal(text, &all); err != nil || len(all) != 2 {
		t.Fatalf("%d vectors, %v", len(all), err)
	}
	to := Recipient{Kid: "kbs:///default/image-kek/app", Key: bytes.Repeat([]byte("k"), keySize)}
	for algorithm, v := range all {
		got, err := decrypt(t, v.Encrypted, v.Annotations, keysOf(to))
		if err != nil || !bytes.Equal(got, v.Plain) {
			t.Errorf("%s: %q, %v", algorithm, got, err)
		}
	}
}

func TestAWrongDigestIsFoundWhenEncrypting(t *testing.T) {
	e, err := Encrypt(strings.NewReader("x"), digestOf([]byte("y")), owner)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(e); err == nil {
		t.Error("encrypted under another digest")
	}
	if _, err := e.Annotations(); err == nil {
		t.Error("there are annotations")
	}
}

func TestChangedLayersAreRefused(t *testing.T) {
	plain := []byte("forty bytes of a layer that is encrypted")
	in, notes := encrypt(t, plain, owner)
	for i := range in {
		changed := bytes.Clone(in)
		changed[i] ^= 1
		if got, err := decrypt(t, changed, notes, keysOf(owner)); err == nil {
			t.Fatalf("byte %d changed: %q", i, got)
		}
	}
	if _, err := decrypt(t, in[:len(in)-1], notes, keysOf(owner)); err == nil {
		t.Error("a layer cut short is accepted")
	}
	if _, err := decrypt(t, append(bytes.Clone(in), 0), notes, keysOf(owner)); err == nil {
		t.Error("a longer layer is accepted")
	}
	other, foreign := encrypt(t, plain, owner)
	if _, err := decrypt(t, other, notes, keysOf(owner)); err == nil {
		t.Error("another layer is accepted")
	}
	mixed := maps.Clone(notes)
	mixed[optionsAnnotation] = foreign[optionsAnnotation]
	if _, err := decrypt(t, in, mixed, keysOf(owner)); err == nil {
		t.Error("the public options of another layer are accepted")
	}
	if _, err := decrypt(t, in, notes, keysOf()); err == nil || !strings.Contains(err.Error(), owner.Kid) {
		t.Errorf("without a key: %v", err)
	}
	wrong := owner
	wrong.Key = bytes.Repeat([]byte{8}, keySize)
	for _, r := range []Recipient{wrong, {Kid: owner.Kid, Key: []byte("short")}} {
		if _, err := decrypt(t, in, notes, keysOf(r)); err == nil {
			t.Error("decrypted with another key")
		}
	}
}

// A layer may be for several recipients.
func TestTheFirstPacketWithAKeyCounts(t *testing.T) {
	plain := []byte("a layer")
	in, notes := encrypt(t, plain, owner)
	secret, err := Unwrap(t.Context(), unbase64(t, notes[packetAnnotation]), keysOf(owner))
	if err != nil {
		t.Fatal(err)
	}
	second := Recipient{Kid: "kbs:///default/image-kek/two", Key: bytes.Repeat([]byte{9}, keySize)}
	p, err := Wrap(secret, second)
	if err != nil {
		t.Fatal(err)
	}
	notes[packetAnnotation] += "," + b64.EncodeToString(p)
	for _, r := range []Recipient{owner, second} {
		if got, err := decrypt(t, in, notes, keysOf(r)); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s: %q, %v", r.Kid, got, err)
		}
	}
	notes[packetAnnotation] = strings.Repeat(notes[packetAnnotation]+",", maxPackets)
	if _, err := decrypt(t, in, notes, keysOf(second)); err == nil {
		t.Error("there are too many packets, and they are read")
	}
}

func unbase64(t *testing.T, text string) []byte {
	t.Helper()
	b, err := b64.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestOtherRecipientsAreNamed(t *testing.T) {
	_, notes := encrypt(t, nil, owner)
	for annotation, want := range map[string]string{
		keysAnnotation + "jwe": "jwe", keysAnnotation + "pkcs7": "pkcs7",
		keysAnnotation + "provider.other": "provider.other", "unrelated": "no annotation with its key",
	} {
		other := map[string]string{annotation: "x", optionsAnnotation: notes[optionsAnnotation]}
		if _, err := decrypt(t, nil, other, keysOf(owner)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", annotation, err)
		}
	}
	notes["kept"] = "x"
	if got := Plain(notes); len(got) != 1 || got["kept"] != "x" {
		t.Errorf("Plain() = %v", got)
	}
}

func TestPackets(t *testing.T) {
	text, err := Wrap([]byte("secret"), owner)
	if err != nil {
		t.Fatal(err)
	}
	open := func(old, repl string) ([]byte, error) {
		return Unwrap(t.Context(), []byte(strings.Replace(string(text), old, repl, 1)), keysOf(owner))
	}
	version2 := `{"version":"0.1.0","provider":"kbs","provider_settings":{},"annotations":{},"kid"`
	if got, err := open(`{"kid"`, version2); err != nil || string(got) != "secret" {
		t.Errorf("version 2: %q, %v", got, err)
	}
	for name, c := range map[string][2]string{
		"other kid":      {"kek/one", "kek/two"},
		"unknown member": {`{"kid"`, `{"x":1,"kid"`},
		"kid twice":      {`{"kid"`, `{"kid":"a","kid"`},
		"other version":  {`{"kid"`, `{"version":"0.2.0","kid"`},
		"provider":       {`{"kid"`, `{"provider":"aliyun","kid"`},
		"settings":       {`{"kid"`, `{"provider_settings":{"a":1},"kid"`},
		"other type":     {GCM, "A128GCM"},
		"CTR's IV":       {GCM, CTR},
		"no base64":      {`"iv":"`, `"iv":"%`},
		"short IV":       {`"iv":"`, `"iv":"","x":"`},
	} {
		if got, err := open(c[0], c[1]); err == nil {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestOptionsThatAreRefused(t *testing.T) {
	plain := []byte("a layer")
	in, notes := encrypt(t, plain, owner)
	open := string(unbase64(t, notes[optionsAnnotation]))
	secret, err := Unwrap(t.Context(), unbase64(t, notes[packetAnnotation]), keysOf(owner))
	if err != nil {
		t.Fatal(err)
	}
	try := func(public, private string) error {
		p, err := Wrap([]byte(private), owner)
		if err != nil {
			t.Fatal(err)
		}
		_, err = decrypt(t, in, map[string]string{
			packetAnnotation: b64.EncodeToString(p), optionsAnnotation: b64.EncodeToString([]byte(public)),
		}, keysOf(owner))
		return err
	}
	if err := try(open, string(secret)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string][2]string{
		"nonce of the host's": {`"cipheroptions":{}`, `"cipheroptions":{"nonce":"AAAAAAAAAAAAAAAAAAAAAA=="}`},
		"other cipher":        {"AES_256", "AES_128"},
		"no HMAC":             {`"hmac"`, `"mac"`},
		"short HMAC":          {`"hmac":"`, `"hmac":"AAAA","x":"`},
		"unknown member":      {`{"cipher"`, `{"x":1,"cipher"`},
		"nothing":             {open, ""},
	} {
		if try(strings.Replace(open, c[0], c[1], 1), string(secret)) == nil {
			t.Errorf("public: %s: accepted", name)
		}
	}
	for name, c := range map[string][2]string{
		"short key":      {`"symkey":"`, `"symkey":"AAAA","x":"`},
		"no nonce":       {`"nonce"`, `"once"`},
		"unknown member": {`{"symkey"`, `{"x":1,"symkey"`},
	} {
		if try(open, strings.Replace(string(secret), c[0], c[1], 1)) == nil {
			t.Errorf("private: %s: accepted", name)
		}
	}
}

func FuzzDecrypt(f *testing.F) {
	in, notes := encrypt(f, []byte("a layer"), owner)
	secret, err := Unwrap(f.Context(), []byte(fromBase64(f, notes[packetAnnotation])), keysOf(owner))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(notes[packetAnnotation], notes[optionsAnnotation], secret, in)
	f.Fuzz(func(t *testing.T, packets, options string, secret, in []byte) {
		_, _ = decrypt(t, in, map[string]string{packetAnnotation: packets, optionsAnnotation: options}, keysOf(owner))
		// Private options of the fuzzer's, wrapped: they reach what lies behind the key.
		p, err := Wrap(secret, owner)
		if err != nil {
			t.Fatal(err)
		}
		layer := map[string]string{packetAnnotation: b64.EncodeToString(p), optionsAnnotation: options}
		got, err := decrypt(t, in, layer, keysOf(owner))
		if _, other := decrypt(t, append(bytes.Clone(in), 0), layer, keysOf(owner)); err == nil && other == nil {
			t.Errorf("%q is decrypted also with a byte more", got)
		}
	})
}

func fromBase64(f *testing.F, text string) string {
	f.Helper()
	b, err := b64.DecodeString(text)
	if err != nil {
		f.Fatal(err)
	}
	return string(b)
}
