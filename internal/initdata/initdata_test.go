// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package initdata_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/internal/worktest"
)

const example = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"policy.rego\" = '''\npackage " +
	"agent_policy\n'''\n\"aa.toml\" = \"[token_configs]\\n\"\n"

func zip(t testing.TB, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func annotation(t testing.TB, text string) string {
	t.Helper()
	return base64.StdEncoding.EncodeToString(zip(t, text))
}

func TestDocumentFromAnnotationTextAndDisk(t *testing.T) {
	a, err := initdata.FromAnnotation(annotation(t, example))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"policy.rego": "package agent_policy\n", "aa.toml": "[token_configs]\n"}
	if d := cmp.Diff(want, a.Data); d != "" || string(a.Text) != example || a.Algorithm != "sha256" {
		t.Errorf("FromAnnotation = %+v (-want +got):\n%s", a, d)
	}
	b, err := initdata.FromText([]byte(example))
	if err != nil {
		t.Fatal(err)
	}
	for name, d := range map[string]*initdata.Document{"annotation": a, "text": b} {
		disk := d.Disk()
		if len(disk)%512 != 0 || !bytes.HasPrefix(disk, []byte("initdata")) {
			t.Errorf("%s: disk of %d bytes begins with %q", name, len(disk), disk[:16])
		}
		again, err := initdata.FromDisk(bytes.NewReader(disk))
		if err != nil || string(again.Text) != example || !bytes.Equal(again.Digest(), d.Digest()) {
			t.Errorf("%s: FromDisk(Disk()) = %+v, %v", name, again, err)
		}
	}
}

func TestLongTextIsStoredInSeveralBlocks(t *testing.T) {
	text := example + "\"cdh.toml\" = \"" + strings.Repeat("x", 200_000) + "\"\n"
	d, err := initdata.FromText([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	again, err := initdata.FromDisk(bytes.NewReader(d.Disk()))
	if err != nil || string(again.Text) != text {
		t.Errorf("FromDisk(Disk()) fails: %v", err)
	}
}

func TestDigestIsOverTheRawText(t *testing.T) {
	for alg, sum := range map[string]func([]byte) string{
		"sha256":  func(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) },
		"sha384":  func(b []byte) string { return fmt.Sprintf("%x", sha512.Sum384(b)) },
		"sha-384": func(b []byte) string { return fmt.Sprintf("%x", sha512.Sum384(b)) },
		"sha512":  func(b []byte) string { return fmt.Sprintf("%x", sha512.Sum512(b)) },
	} {
		text := strings.Replace(example, "sha256", alg, 1) + "# a comment counts\n"
		d, err := initdata.FromAnnotation(annotation(t, text))
		if err != nil {
			t.Errorf("%s: %v", alg, err)
			continue
		}
		if got := fmt.Sprintf("%x", d.Digest()); got != sum([]byte(text)) {
			t.Errorf("%s: Digest() = %s, want %s", alg, got, sum([]byte(text)))
		}
	}
}

func TestRefusals(t *testing.T) {
	with := func(old, now string) string { return annotation(t, strings.Replace(example, old, now, 1)) }
	for _, tt := range []struct{ name, value, want string }{
		{"nothing", "", "not gzip"},
		{"no base64", "%%%", "not base64"},
		{"no gzip", base64.StdEncoding.EncodeToString([]byte(example)), "not gzip"},
		{"cut", annotation(t, example)[:40], "gzip"},
		{"no TOML", annotation(t, "= ="), "not TOML"},
		{"another version", with("0.1.0", "0.2.0"), `version "0.2.0"`},
		{"no version", with("version = \"0.1.0\"\n", ""), `version ""`},
		{"another algorithm", with("sha256", "md5"), `algorithm "md5"`},
		{"an unknown key", with("[data]", "policy = '1'\n[data]"), `key "policy"`},
		{"a path", with("aa.toml", "../aa.toml"), `"../aa.toml", which is no plain name`},
		{"a file that is no text", with("\"aa.toml\" = \"[token_configs]\\n\"", "\"aa.toml\" = 1"), "not TOML"},
		{"two streams", base64.StdEncoding.EncodeToString(append(zip(t, example), zip(t, "x")...)), "follow the gzip stream"},
		{"a bomb", annotation(t, example+strings.Repeat("#\n", 1<<20)), "larger than 1048576 bytes"},
		{"too long", strings.Repeat("A", 1<<20), "at most"},
		{"too many files", annotation(t, func() string {
			s := example
			for i := range 70 {
				s += fmt.Sprintf("f%d = \"\"\n", i)
			}
			return s
		}()), "line 70 has more than 64 keys"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, err := initdata.FromAnnotation(tt.value)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("FromAnnotation = %+v, %v, want an error with %q", d, err, tt.want)
			}
		})
	}
	if _, err := initdata.FromDisk(strings.NewReader("initdata\xff\xff\xff\xff\xff\xff\xff\xff")); err == nil ||
		!strings.Contains(err.Error(), "at most") {
		t.Errorf("FromDisk of a huge length = %v", err)
	}
	if _, err := initdata.FromDisk(strings.NewReader(strings.Repeat("x", 512))); err == nil {
		t.Error("FromDisk of something else succeeded")
	}
}

func FuzzFromDisk(f *testing.F) {
	d, err := initdata.FromText([]byte(example))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(d.Disk(), true)
	f.Add([]byte(example), false)
	f.Add(zip(f, example), false)
	f.Add([]byte(strings.Repeat("a.", 5000)+"a = 1"), false)
	f.Fuzz(func(t *testing.T, b []byte, disk bool) {
		defer worktest.Bound(t, len(b))()
		var d *initdata.Document
		var err error
		if disk {
			d, err = initdata.FromDisk(bytes.NewReader(b))
		} else if d, err = initdata.FromText(b); err != nil {
			d, err = initdata.FromGzip(b)
		}
		if err != nil {
			return
		}
		if len(d.Text) < 1<<10 { // the library takes its time
			checkAgainstLibrary(t, d)
		}
		again, err := initdata.FromDisk(bytes.NewReader(d.Disk()))
		if err != nil || !bytes.Equal(again.Text, d.Text) || len(d.Digest()) < 32 {
			t.Errorf("a document does not survive its disk: %v", err)
		}
	})
}
