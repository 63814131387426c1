// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

var secret = Secret{KeyFile: bytes.Repeat([]byte{1}, 32)}

func open(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(path, secret, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func put(t *testing.T, s *Store, key, value string) {
	t.Helper()
	if _, err := s.Put("b", key, []byte(value), -1); err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, s *Store, key, value string, version int) {
	t.Helper()
	v, n, err := s.Get("b", key)
	if err != nil || string(v) != value || n != version {
		t.Errorf("%s is %q version %d, %v; want %q version %d", key, v, n, err, value, version)
	}
}

func TestValuesSurvive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	s := open(t, path)
	put(t, s, "a", "1")
	put(t, s, "a", "2")
	put(t, s, "c", "")
	if _, err := s.Put("b", "a", []byte("3"), 1); !errors.Is(err, ErrConflict) {
		t.Errorf("an old version is replaced: %v", err)
	}
	if n, err := s.Put("b", "a", []byte("3"), 2); err != nil || n != 3 {
		t.Errorf("version %d, %v", n, err)
	}
	if err := s.Delete("b", "c"); err != nil {
		t.Error(err)
	}
	if err := s.Delete("b", "c"); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	if _, err := Open(path, secret, time.Now); !errors.Is(err, ErrLocked) {
		t.Errorf("a second process: %v", err)
	}
	var copied bytes.Buffer
	if err := s.Backup(&copied); err != nil {
		t.Fatal(err)
	}
	put(t, s, "late", "x")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	want(t, s, "a", "3", 3)
	want(t, s, "late", "x", 1)
	if _, _, err := s.Get("b", "c"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a removed value is back: %v", err)
	}
	if l := s.List("b"); len(l) != 2 || l[0].Key != "a" || l[0].Version != 3 {
		t.Errorf("list: %v", l)
	}
	twin := filepath.Join(t.TempDir(), "twin")
	if err := os.WriteFile(twin, copied.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	want(t, open(t, twin), "a", "3", 3)
}

func TestKeys(t *testing.T) {
	dir := t.TempDir()
	pass := Secret{Passphrase: []byte("correct horse battery")}
	for name, made := range map[string]Secret{"file": secret, "pass": pass} {
		path := filepath.Join(dir, name)
		s, err := Open(path, made, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		put(t, s, "a", "PLAINTEXT")
		s.Close()
		for _, bad := range []Secret{
			{KeyFile: bytes.Repeat([]byte{2}, 32)},
			{Passphrase: []byte("another passphrase")},
			{},
			{KeyFile: []byte("short")},
			{Passphrase: []byte("short")},
			{KeyFile: made.KeyFile, Passphrase: []byte("and more of it")},
		} {
			if s, err := Open(path, bad, time.Now); err == nil {
				s.Close()
				if name == "file" || len(bad.KeyFile) > 0 {
					t.Errorf("%s: opens with %d and %d bytes", name, len(bad.KeyFile), len(bad.Passphrase))
				}
			}
		}
		if s, err = Open(path, made, time.Now); err != nil {
			t.Fatal(err)
		}
		want(t, s, "a", "PLAINTEXT", 1)
		s.Close()
		b, err := os.ReadFile(path)
		if err != nil || bytes.Contains(b, []byte("PLAINTEXT")) {
			t.Errorf("%s: plain text in the file, %v", name, err)
		}
	}
	if text := fmt.Sprintf("%v %+v %#v %s", pass, pass, pass, pass); strings.Contains(text, "correct") {
		t.Errorf("printed: %s", text)
	}
}

// Each byte of the file counts: a flipped bit anywhere is noticed.
func TestFlippedBytesAreNoticed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	s := open(t, path)
	for i := range 4 {
		put(t, s, fmt.Sprint("k", i), strings.Repeat("v", i*7))
	}
	s.Close()
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		for _, bit := range []byte{1, 0x80} {
			bad := bytes.Clone(good)
			bad[i] ^= bit
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if s, err := Open(path, secret, time.Now); err == nil {
				s.Close()
				t.Fatalf("byte %d of %d: not noticed", i, len(good))
			} else if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrKey) {
				t.Fatalf("byte %d: %v", i, err)
			}
		}
	}
}

// A file that ends anywhere within its last record opens without that record.
func TestTornRecordsAreCutOff(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	s := open(t, path)
	put(t, s, "a", "1")
	before := s.end
	put(t, s, "a", "2")
	s.Close()
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := int(before); n <= len(good); n++ {
		for _, tail := range [][]byte{nil, make([]byte, 100)} {
			if tail != nil && n != int(before) {
				continue
			}
			if err := os.WriteFile(path, append(bytes.Clone(good[:n]), tail...), 0o600); err != nil {
				t.Fatal(err)
			}
			s := open(t, path)
			version := 1
			if n == len(good) {
				version = 2
			}
			want(t, s, "a", fmt.Sprint(version), version)
			put(t, s, "a", "next")
			s.Close()
			s = open(t, path)
			want(t, s, "a", "next", version+1)
			s.Close()
		}
	}
}

func TestOutdatedRecordsGo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	s := open(t, path)
	for i := range 20 {
		put(t, s, "big", strings.Repeat("x", 100<<10)+fmt.Sprint(i))
	}
	put(t, s, "gone", "y")
	if err := s.Delete("b", "gone"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = open(t, path)
	if s.end > 200<<10 {
		t.Errorf("%d bytes", s.end)
	}
	want(t, s, "big", strings.Repeat("x", 100<<10)+"19", 20)
	put(t, s, "gone", "z")
	want(t, s, "gone", "z", 2) // a version never comes twice
	s.Close()
	want(t, open(t, path), "gone", "z", 2)
}

// A process that is killed while it writes loses no write that it has acknowledged.
func TestKilledWriters(t *testing.T) {
	if path := os.Getenv("COCO_STORE_WRITER"); path != "" {
		s, err := Open(path, secret, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; ; i++ {
			n, err := s.Put("b", "k", bytes.Repeat([]byte{byte(i)}, 1+i%5000), -1)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Println(n) // acknowledged
		}
	}
	rounds := 40
	if testing.Short() {
		rounds = 5
	}
	if n, err := strconv.Atoi(os.Getenv("COCO_KILL_ROUNDS")); err == nil {
		rounds = n // make kill-store
	}
	wrote, writes := 0, 0
	path := filepath.Join(t.TempDir(), "state")
	for round := range rounds {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledWriters$")
		cmd.Env = append(os.Environ(), "COCO_STORE_WRITER="+path)
		var out bytes.Buffer
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(20+round%40*3) * time.Millisecond) // a random moment of its work
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		acked := 0
		for line := range strings.Lines(out.String()) {
			if n, err := strconv.Atoi(strings.TrimSuffix(line, "\n")); err == nil && strings.HasSuffix(line, "\n") {
				acked = n
			}
		}
		if acked > 0 {
			wrote++
		}
		s, err := Open(path, secret, time.Now)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if _, n, err := s.Get("b", "k"); acked > 0 && (err != nil || n < acked) {
			t.Errorf("round %d: version %d, %v; acknowledged was %d", round, n, err, acked)
		} else {
			writes = max(writes, n)
		}
		s.Close()
	}
	t.Logf("killed %d times, %d times after an acknowledged write; %d writes in all", rounds, wrote, writes)
}
