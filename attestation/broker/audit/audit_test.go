// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func open(t *testing.T, path string) *Log {
	t.Helper()
	l, err := Open(path, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func write(t *testing.T, l *Log, n int) {
	t.Helper()
	for range n {
		if err := l.Write("attest", "ok", map[string]string{"tee": "snp"}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestChains(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	l := open(t, path)
	write(t, l, 3)
	third := l.Head()
	l.Close()
	l = open(t, path)
	write(t, l, 2)
	head := l.Head()
	l.Close()
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Verify(bytes.NewReader(good), third, Head{0, start})
	if err != nil || r.Head != head || r.Head.Number != 5 {
		t.Errorf("%v, %v", r, err)
	}
	lines := strings.SplitAfter(string(good), "\n")
	for name, bad := range map[string]string{
		"removed":  strings.Join(append(lines[:1:1], lines[2:]...), ""),
		"repeated": lines[0] + string(good),
		"swapped":  lines[0] + lines[2] + lines[1] + lines[3] + lines[4],
		"first":    strings.Join(lines[1:], ""),
	} {
		if _, err := Verify(strings.NewReader(bad)); err == nil {
			t.Errorf("%s: not noticed", name)
		}
	}
	if _, err := Verify(strings.NewReader(strings.Join(lines[:2], "")), third); err == nil {
		t.Error("cut off: not noticed")
	}
	for i := range len(good) - 1 {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if _, err := Verify(bytes.NewReader(bad)); err == nil {
			t.Errorf("byte %d: not noticed", i)
		}
	}
}

// A crash may cut the last line anywhere. The log goes on, and says so for ever.
func TestTornLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	l := open(t, path)
	write(t, l, 2)
	l.Close()
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	first := bytes.IndexByte(good, '\n') + 1
	for n := first + 1; n < len(good); n++ {
		if err := os.WriteFile(path, good[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		l := open(t, path)
		write(t, l, 1)
		l.Close()
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if r, err := Verify(bytes.NewReader(text)); err != nil || r.Incomplete != 1 && n < len(good)-1 {
			t.Fatalf("cut at %d: %v, %v", n, r, err)
		}
	}
}
