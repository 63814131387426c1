// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package secrets

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/trust/wire"
)

// me is the user of the test, to whom files may be given.
func me() specs.User { return specs.User{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())} }

// renewing makes a container with these secrets, and returns the directory that it sees as /run/db.
func renewing(t *testing.T, list ...policy.Secret) (s *Store, dir string, u *undo.Stack) {
	t.Helper()
	s, _ = store(t, "counts", map[string][]policy.Secret{"id": list})
	s.cfg.Name = func(id string) string { return "name of " + id }
	u = &undo.Stack{}
	mounts, err := s.Add(t.Context(), "id", &specs.Spec{Process: &specs.Process{User: me()}}, u)
	if err != nil || len(mounts) != 1 || mounts[0].Destination != "/run/db" {
		t.Fatalf("Add() = %+v, %v", mounts, err)
	}
	return s, mounts[0].Source, u
}

func readFile(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil || len(b) == 0 {
		t.Errorf("%s has %q, %v", name, b, err)
	}
	return string(b)
}

// A renewed file is another file of the same mode, and an unchanged secret leaves its file alone. A failure leaves the
// last secret, and does not keep others from being renewed.
func TestFilesAreRenewedOnRequest(t *testing.T) {
	s, dir, u := renewing(t,
		policy.Secret{Resource: uri("counted"), File: "/run/db/counted", Mode: "440", Renew: "1h"},
		policy.Secret{Resource: uri("same"), File: "/run/db/same", Renew: policy.RenewOnRequest})
	old, err := os.Open(filepath.Join(dir, "counted"))
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	same, err := os.Stat(filepath.Join(dir, "same"))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := s.Renew("name of id"); n != 1 || err != nil || readFile(t, dir, "counted") != "3" {
		t.Errorf("Renew() = %d, %v and the file has %q", n, err, readFile(t, dir, "counted"))
	}
	now, err := os.Stat(filepath.Join(dir, "counted"))
	if was, serr := old.Stat(); serr != nil || err != nil || now.Mode() != fs.FileMode(0o440) || os.SameFile(was, now) {
		t.Errorf("the file was changed in place: %v, %v, %v", now, err, serr)
	}
	if st, err := os.Stat(filepath.Join(dir, "same")); err != nil || !os.SameFile(st, same) {
		t.Errorf("the unchanged secret has another file: %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("the container sees %v, %v", entries, err)
	}
	if err := u.Run(t.Context()); err == nil { // the mount is none here, so that its removal fails
		t.Error("the files are gone")
	}
	if n, err := s.Renew("name of id"); n != 0 || err == nil {
		t.Errorf("Renew() after the container's end = %d, %v", n, err)
	}
}

// A link in place of the last file is not followed, and a longer file is not read to its end.
func TestTheLastFileIsReadWithCare(t *testing.T) {
	s, dir, _ := renewing(t, policy.Secret{Resource: uri("same"), File: "/run/db/same", Renew: policy.RenewOnRequest})
	at := filepath.Join(dir, "same")
	want := readFile(t, dir, "same")
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, []byte(want), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, put := range map[string]func() error{
		"a link":      func() error { return os.Symlink(other, at) },
		"a directory": func() error { return os.Mkdir(at, 0o700) },
	} {
		if err := errors.Join(os.RemoveAll(at), put()); err != nil {
			t.Fatal(err)
		}
		if n, err := s.Renew("name of id"); n != 0 || err == nil {
			t.Errorf("%s: Renew() = %d, %v", what, n, err)
		}
	}
	if err := errors.Join(os.RemoveAll(at), os.WriteFile(at, []byte(want+" and more"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Renew("name of id"); n != 1 || err != nil || readFile(t, dir, "same") != want {
		t.Errorf("a longer file: Renew() = %d, %v", n, err)
	}
}

// What fails keeps the last secret and names the resource and the code; the other file is renewed.
func TestARenewalThatFails(t *testing.T) {
	s, dir, _ := renewing(t,
		policy.Secret{Resource: uri("same"), File: "/run/db/same", Renew: policy.RenewOnRequest},
		policy.Secret{Resource: uri("counted"), File: "/run/db/counted", Renew: policy.RenewOnRequest})
	if _, err := s.get(t.Context(), request("same")); err != nil { // the third answer
		t.Fatal(err)
	}
	if _, err := s.get(t.Context(), request("same")); err != nil { // the fourth
		t.Fatal(err)
	}
	n, err := s.Renew("name of id")
	if n != 1 || err == nil || !strings.Contains(err.Error(), "secret "+uri("same")+": [unavailable] the broker is away") {
		t.Errorf("Renew() = %d, %v", n, err)
	}
	if readFile(t, dir, "counted") != "6" || readFile(t, dir, "same") != "secret of "+uri("same") {
		t.Errorf("the files have %q and %q", readFile(t, dir, "counted"), readFile(t, dir, "same"))
	}
}

// Readers of a file that is renewed all the time see a whole secret, always.
func TestFilesAreRenewedAtAnInterval(t *testing.T) {
	s, dir, u := renewing(t, policy.Secret{Resource: uri("counted"), File: "/run/db/counted", Renew: "1ms"})
	for deadline := time.Now().Add(20 * time.Second); len(readFile(t, dir, "counted")) < 2; {
		if time.Now().After(deadline) {
			t.Fatal("the file has not been renewed ten times")
		}
	}
	_ = u.Run(t.Context()) // the mount is none here, so that its removal fails
	last := readFile(t, dir, "counted")
	if _, err := s.Renew("name of id"); err == nil || readFile(t, dir, "counted") != last {
		t.Errorf("the file is renewed after the container's end: %v", err)
	}
}

func request(tag string) wire.Request { return wire.Request{Resource: uri(tag)} }
