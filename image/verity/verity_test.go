// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package verity

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/internal/worktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func randomData(blocks int) []byte {
	b := make([]byte, blocks*BlockSize)
	r := rand.NewChaCha8([32]byte{byte(blocks), byte(blocks >> 8)})
	_, _ = r.Read(b) // never fails
	return b
}

// format writes data and tree to a file.
func format(t testing.TB, data []byte) (*os.File, Params) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "device"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	w, err := NewWriter(f, int64(len(data)), Salt)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if n, err := w.ReadFrom(iotest.HalfReader(bytes.NewReader(data))); err != nil || n != int64(len(data)) {
		t.Fatalf("ReadFrom = %d, %v", n, err)
	}
	p, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return f, p
}

// Sizes around the steps at which a level fills up or a new one begins.
var interesting = []int{1, 2, 127, 128, 129, 255, 256, 257, 128*128 - 1, 128 * 128, 128*128 + 1}

func TestTreeEqualsVeritysetup(t *testing.T) {
	testvm.Need(t, testvm.Veritysetup)
	for _, blocks := range interesting {
		data := randomData(blocks)
		f, p := format(t, data)
		dir := t.TempDir()
		d, h := filepath.Join(dir, "data"), filepath.Join(dir, "hash")
		if err := os.WriteFile(d, data, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), "veritysetup", "format", "--no-superblock",
			"--salt="+hex.EncodeToString(Salt), d, h).CombinedOutput()
		if err != nil {
			t.Fatalf("veritysetup: %v: %s", err, out)
		}
		if !strings.Contains(string(out), p.Hex()) {
			t.Errorf("%d blocks: root hash %s, veritysetup says:\n%s", blocks, p.Hex(), out)
		}
		want, err := os.ReadFile(h)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, append(data, want...)) {
			t.Errorf("%d blocks: file differs from data and veritysetup's tree", blocks)
		}
	}
}

// The digest was computed by veritysetup 2.6.1 for 129 blocks of 0xA5 with 32 zero bytes of salt.
func TestKnownRootHash(t *testing.T) {
	_, p := format(t, bytes.Repeat([]byte{0xa5}, 129*BlockSize))
	if want := "7dcc12f5d4f93911e9ebfd27cce097f294005013a269acd0d6a87ade3f0cebf6"; p.Hex() != want {
		t.Errorf("root hash = %s, want %s", p.Hex(), want)
	}
}

func TestVerifyFindsEveryFlippedByte(t *testing.T) {
	for _, blocks := range interesting {
		f, p := format(t, randomData(blocks))
		if err := Verify(t.Context(), f, p); err != nil {
			t.Fatalf("%d blocks: Verify of good data = %v", blocks, err)
		}
		r := rand.New(rand.NewPCG(1, uint64(blocks)))
		for range 5 {
			off := r.Int64N(int64(p.Size()))
			flip(t, f, off)
			var corrupt *CorruptError
			if err := Verify(t.Context(), f, p); !errors.As(err, &corrupt) {
				t.Errorf("%d blocks: Verify with byte %d flipped = %v, want a CorruptError", blocks, off, err)
			} else if !strings.Contains(err.Error(), p.Hex()) {
				t.Errorf("error %q does not name the root hash", err)
			}
			flip(t, f, off)
		}
	}
}

func flip(t *testing.T, f *os.File, off int64) {
	t.Helper()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x40
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

func TestVerifyTop(t *testing.T) {
	f, p := format(t, randomData(300))
	if err := VerifyTop(f, p); err != nil {
		t.Error(err)
	}
	p.RootHash[0] ^= 1
	if err := VerifyTop(f, p); err == nil {
		t.Error("VerifyTop accepted another root hash")
	}
}

func TestWriterRefuses(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int64{0, -BlockSize, 1, BlockSize + 1} {
		if _, err := NewWriter(f, size, Salt); err == nil {
			t.Errorf("NewWriter of %d bytes succeeded", size)
		}
	}
	w, err := NewWriter(f, 2*BlockSize, Salt)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 3*BlockSize)); !errors.Is(err, errTooMuch) {
		t.Errorf("Write of too much = %v", err)
	}
	w.Close()
	w, err = NewWriter(f, 2*BlockSize, Salt)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, BlockSize)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(); err == nil || !strings.Contains(err.Error(), "4096 bytes shorter") {
		t.Errorf("Finish of too little = %v", err)
	}
}

type failAfter struct{ n int }

func (f *failAfter) WriteAt(b []byte, _ int64) (int, error) {
	if f.n--; f.n < 0 {
		return 0, unix.ENOSPC
	}
	return len(b), nil
}

func TestWriteErrorsComeBack(t *testing.T) {
	w, err := NewWriter(lockedWriter(&failAfter{3}), 100*chunkSize, Salt)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	_, err = w.Write(make([]byte, 100*chunkSize))
	if err == nil {
		_, err = w.Finish()
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("error = %v, want ENOSPC", err)
	}
}

type locked struct {
	turn chan struct{}
	w    *failAfter
}

func lockedWriter(w *failAfter) locked { return locked{make(chan struct{}, 1), w} }

func (l locked) WriteAt(b []byte, off int64) (int, error) {
	l.turn <- struct{}{}
	defer func() { <-l.turn }()
	return l.w.WriteAt(b, off)
}

func TestOptionsRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		blocks := rapid.Uint64Range(1, 1<<32).Draw(rt, "blocks")
		p := Params{
			Salt:       rapid.SliceOfN(rapid.Byte(), 0, 256).Draw(rt, "salt"),
			DataBlocks: blocks,
			HashOffset: blocks*BlockSize + rapid.Uint64Range(0, 100).Draw(rt, "gap")*BlockSize,
		}
		copy(p.RootHash[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(rt, "root"))
		got, ok, err := ParseOptions(append([]string{"other=1"}, p.Options()...))
		if err != nil || !ok {
			rt.Fatalf("ParseOptions = %v, %v", ok, err)
		}
		if diff := cmp.Diff(p, got); diff != "" {
			rt.Fatal(diff)
		}
	})
}

func TestBadOptions(t *testing.T) {
	good := Params{Salt: Salt, DataBlocks: 2, HashOffset: 2 * BlockSize}.Options()
	replace := func(name, value string) []string {
		var out []string
		for _, o := range good {
			if strings.HasPrefix(o, name+"=") {
				o = name + "=" + value
			}
			out = append(out, o)
		}
		return out
	}
	for name, opts := range map[string][]string{
		"missing":        good[:3],
		"twice":          append(good, good[0]),
		"unknown":        append(good, contract.VerityPrefix+"extra=1"),
		"hexadecimal":    replace(contract.VerityRootHash, "abcd"),
		"upper-case":     replace(contract.VerityRootHash, strings.Repeat("A", 64)),
		"not a number":   replace(contract.VerityDataBlocks, "+2"),
		"data blocks":    replace(contract.VerityDataBlocks, "0"),
		"overlaps":       replace(contract.VerityHashOffset, "4096"),
		"not a multiple": replace(contract.VerityHashOffset, "8193"),
		"out of range":   replace(contract.VerityHashOffset, "9223372036854771712"),
		"longer than":    replace(contract.VeritySalt, strings.Repeat("00", 257)),
	} {
		_, ok, err := ParseOptions(opts)
		if !ok || err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("ParseOptions(%s) = %v, %v", name, ok, err)
		}
	}
	if _, ok, err := ParseOptions([]string{"a=b"}); ok || err != nil {
		t.Errorf("ParseOptions without verity options = %v, %v", ok, err)
	}
}

func TestTable(t *testing.T) {
	p := Params{Salt: []byte{1, 2}, DataBlocks: 3, HashOffset: 3 * BlockSize}
	want := "1 8:0 8:0 4096 4096 3 3 sha256 " + strings.Repeat("0", 64) + " 0102"
	if got := p.Table("8:0"); got != want {
		t.Errorf("Table = %q, want %q", got, want)
	}
}

func FuzzParseOptions(f *testing.F) {
	f.Add(strings.Join(Params{Salt: Salt, DataBlocks: 2, HashOffset: 2 * BlockSize}.Options(), "\n"))
	f.Fuzz(func(t *testing.T, s string) {
		defer worktest.Bound(t, len(s))()
		p, ok, err := ParseOptions(strings.Split(s, "\n"))
		if !ok || err != nil {
			return
		}
		if again, _, err := ParseOptions(p.Options()); err != nil || !cmp.Equal(again, p) {
			t.Fatalf("%+v came back as %+v, %v", p, again, err)
		}
	})
}

func BenchmarkWriter(b *testing.B) {
	data := randomData(64 << 8)
	f, err := os.CreateTemp(b.TempDir(), "")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		w, err := NewWriter(f, int64(len(data)), Salt)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Finish(); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	if err := Verify(context.Background(), f, Params{}); err == nil {
		b.Fatal("zero Params verified")
	}
}
