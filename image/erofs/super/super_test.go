// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package super_test

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/image/erofs"
	"github.com/coco-shim/coco/image/erofs/super"
	"github.com/coco-shim/coco/internal/worktest"
)

const at = 1024

// image is one of our own.
func image(t testing.TB) []byte {
	t.Helper()
	var text, out bytes.Buffer
	w := tar.NewWriter(&text)
	if err := w.WriteHeader(&tar.Header{Name: "a", Typeflag: tar.TypeReg, Size: 1, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	spool, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer spool.Close()
	tree, err := erofs.FromTar(t.Context(), &text, spool)
	if err == nil {
		err = tree.Write(t.Context(), &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestCheck(t *testing.T) {
	img := image(t)
	size, err := super.Check(bytes.NewReader(append(bytes.Clone(img), 1, 2, 3)), int64(len(img))+3)
	if err != nil || size != int64(len(img)) {
		t.Errorf("Check = %d, %v, want %d", size, err, len(img))
	}
	for name, damage := range map[string]func(sb []byte){
		"not an EROFS image":                     func(b []byte) { b[0] ^= 1 },
		"block size":                             func(b []byte) { b[12] = 16 },
		"other devices":                          func(b []byte) { b[86] = 1 },
		"cut off":                                func(b []byte) { b[38] = 0xff },
		"is compressed":                          func(b []byte) { b[84] = 1 },
		"features compr_cfgs or big_pcluster":    func(b []byte) { b[80] = 3 },
		"features chunked_file":                  func(b []byte) { b[80] = 4 },
		"features device_table":                  func(b []byte) { b[80] = 8 },
		"features ztailpacking, fragments":       func(b []byte) { b[80] = 0x30 },
		"features xattr_prefixes":                func(b []byte) { b[80] = 0x40 },
		"features 48bit, metabox, 0x80000000":    func(b []byte) { binary.LittleEndian.PutUint32(b[80:], 0x80000180) },
		"directory blocks of 2^1 blocks, which ": func(b []byte) { b[90] = 1 },
	} {
		b := bytes.Clone(img)
		damage(b[at:])
		if _, err := super.Check(bytes.NewReader(b), int64(len(b))); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("Check = %v, want an error with %q", err, name)
		}
	}
	if _, err := super.Check(bytes.NewReader(img[:1000]), 1000); err == nil {
		t.Error("Check of 1000 bytes succeeded")
	}
}

func TestImagesOfMkfs(t *testing.T) {
	mkfs, err := exec.LookPath("mkfs.erofs")
	if err != nil {
		t.Skip("no mkfs.erofs")
	}
	dir := t.TempDir()
	src, img := filepath.Join(dir, "src"), filepath.Join(dir, "img")
	if err := os.Mkdir(src, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(src, "a"), bytes.Repeat([]byte("text "), 20_000), 0o600); err != nil {
		t.Fatal(err)
	}
	for options, want := range map[string]string{
		"": "", "-Enoinline_data": "", "-zlz4": "compressed",
		"-zlz4hc,9": "compressed", "--chunksize=4096": "chunked_file",
	} {
		args := append(strings.Fields(options), "--quiet", img, src)
		if out, err := exec.CommandContext(t.Context(), mkfs, args...).CombinedOutput(); err != nil {
			t.Logf("mkfs.erofs %s: %v: %s", options, err, out)
			continue
		}
		f, err := os.Open(img)
		if err != nil {
			t.Fatal(err)
		}
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if _, err = super.Check(f, st.Size()); (want == "") != (err == nil) || err != nil &&
			!strings.Contains(err.Error(), want) {
			t.Errorf("an image of mkfs.erofs %s: %v, want %q", options, err, want)
		}
		_ = f.Close()
	}
}

// FuzzCheck reads superblocks that others wrote.
func FuzzCheck(f *testing.F) {
	f.Add(image(f)[:2048])
	f.Fuzz(func(t *testing.T, b []byte) {
		defer worktest.Bound(t, len(b))()
		size, err := super.Check(bytes.NewReader(b), int64(len(b)))
		if err == nil && (size <= 0 || size > int64(len(b))) {
			t.Fatalf("Check = %d for %d bytes", size, len(b))
		}
	})
}
