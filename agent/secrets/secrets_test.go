// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package secrets

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/agent/cotrust"
	"github.com/coco-shim/coco/agent/reap"
	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/trust/wire"
)

// helperMode, set in its environment, makes the test's own program a coco-trust that behaves as its value says.
const helperMode = "COCO_TEST_HELPER"

func TestMain(m *testing.M) {
	if mode := os.Getenv(helperMode); mode != "" {
		help(mode)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// help answers like coco-trust with a broker: secrets are named after what they are.
func help(mode string) {
	conn := os.NewFile(wire.Socket, "agent")
	var s wire.Setup
	if err := wire.Read(conn, &s); err != nil || s.Initdata != "document" || s.TEE != "sample" {
		os.Exit(3)
	}
	if wire.Write(conn, wire.Hello{Insecure: []string{"a switch of " + mode}}) != nil {
		return
	}
	for n := 1; ; n++ {
		var req wire.Request
		if err := wire.Read(conn, &req); err != nil {
			return
		}
		a := wire.Answer{Secret: []byte("secret of " + req.Resource)}
		switch {
		case mode == "counts" && strings.HasSuffix(req.Resource, "/counted"):
			a.Secret = []byte(strconv.Itoa(n))
		case mode == "counts" && n == 5:
			a = wire.Answer{Error: &wire.Failure{Code: "unavailable", Text: "the broker is away"}}
		case req.Sealed == "sealed.bad":
			a = wire.Answer{Error: &wire.Failure{Code: "signature", Text: "sealed secret: kbs:///a/b/c: it is wrong"}}
		case req.Sealed == "sealed.binary":
			a.Secret = []byte{0xff, 1}
		case req.Sealed != "":
			a.Secret = []byte(req.Sealed + " opened for " + req.Container + " as " + req.Resource)
		case mode == "silent":
			time.Sleep(time.Hour)
		case mode == "dies":
			os.Exit(1)
		case strings.HasSuffix(req.Resource, "/denied"):
			a = wire.Answer{Error: &wire.Failure{Code: "denied", Text: "key broker, resource: executables are contraindicated"}}
		case strings.HasSuffix(req.Resource, "/empty"):
			a = wire.Answer{}
		case strings.HasSuffix(req.Resource, "/binary"):
			a.Secret = []byte{0xff, 1}
		case strings.HasSuffix(req.Resource, "/zero"):
			a.Secret = []byte("a\x00b")
		}
		if err := wire.Write(conn, a); err != nil {
			return
		}
	}
}

var reaper = sync.OnceValue(reap.New)

// store is a Store whose coco-trust is this program. started counts its starts.
func store(t *testing.T, mode string, of map[string][]policy.Secret) (s *Store, started *int) {
	t.Helper()
	part := t.TempDir()
	me, err := os.Executable()
	if err == nil {
		err = os.Symlink(me, filepath.Join(part, cotrust.Name))
	}
	if err != nil {
		t.Fatal(err)
	}
	started = new(int)
	s = New(Config{
		Of:    func(id string) []policy.Secret { return of[id] },
		Setup: wire.Setup{Initdata: "document", TEE: "sample"},
		Open:  func(context.Context, string) (string, error) { return part, nil },
		Spawn: func(path string, argv []string, attr *syscall.ProcAttr) (*reap.Child, error) {
			*started++
			c := attr.Sys.Credential
			if c == nil || c.Uid != cotrust.User || c.Gid != cotrust.User || len(attr.Sys.AmbientCaps) > 0 {
				t.Errorf("coco-trust would have rights: %+v", attr.Sys)
			}
			attr.Sys, attr.Env = nil, []string{helperMode + "=" + mode}
			return reaper().Spawn(path, argv, attr)
		},
		Dir: filepath.Join(t.TempDir(), "secrets"),
	})
	s.mount = func(string) error { return nil }
	t.Cleanup(s.Close)
	return s, started
}

func uri(tag string) string { return "kbs:///default/x/" + tag }

func TestSecretsBecomeFilesAndVariables(t *testing.T) {
	s, started := store(t, "ok", map[string][]policy.Secret{
		"one": {
			{Resource: uri("a"), File: "/run/secrets/a"},
			{Resource: uri("a"), Env: "A"},
			{Resource: uri("b"), File: "/etc/b", Mode: "444"},
		},
		"two": {{Resource: uri("c"), Env: "C"}},
	})
	p := &specs.Process{Env: []string{"PATH=/bin"}, User: specs.User{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}}
	var u undo.Stack
	mounts, err := s.Add(t.Context(), "one", &specs.Spec{Process: p}, &u)
	if err != nil || len(mounts) != 2 {
		t.Fatalf("Add() = %v, %v", mounts, err)
	}
	if want := []string{"PATH=/bin", "A=secret of " + uri("a")}; !slices.Equal(p.Env, want) {
		t.Errorf("the environment is %q, want %q", p.Env, want)
	}
	for i, want := range []struct {
		dest, text string
		mode       fs.FileMode
	}{{"/run/secrets/a", "secret of " + uri("a"), 0o400}, {"/etc/b", "secret of " + uri("b"), 0o444}} {
		text, err := os.ReadFile(mounts[i].Source)
		st, serr := os.Stat(mounts[i].Source)
		if errors.Join(err, serr) != nil || string(text) != want.text || st.Mode() != want.mode ||
			mounts[i].Destination != want.dest || !slices.Contains(mounts[i].Options, "ro") {
			t.Errorf("mount %+v has %q, %v, %v", mounts[i], text, st, errors.Join(err, serr))
		}
	}
	other := &specs.Process{}
	if mounts, err := s.Add(t.Context(), "two", &specs.Spec{Process: other}, &u); err != nil || mounts != nil ||
		!slices.Equal(other.Env, []string{"C=secret of " + uri("c")}) {
		t.Errorf("another container: %v, %v, %q", mounts, err, other.Env)
	}
	mounts, err = s.Add(t.Context(), "three", &specs.Spec{Process: other}, &u)
	if err != nil || mounts != nil || len(other.Env) != 1 {
		t.Errorf("a container without secrets: %v, %v, %q", mounts, err, other.Env)
	}
	if *started != 1 {
		t.Errorf("coco-trust was started %d times", *started)
	}
}

func TestAFailureLeavesNoContainerWithoutItsSecret(t *testing.T) {
	for tag, want := range map[string]string{
		"denied": "secret " + uri("denied") + ": [denied] key broker, resource: executables are contraindicated",
		"empty":  "answered with nothing", "binary": "no UTF-8 text", "zero": "a zero byte",
	} {
		s, _ := store(t, "ok", map[string][]policy.Secret{"c": {
			{Resource: uri("fine"), File: "/f"}, {Resource: uri(tag), Env: "X"},
		}})
		p := &specs.Process{User: specs.User{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}}
		var u undo.Stack
		mounts, err := s.Add(t.Context(), "c", &specs.Spec{Process: p}, &u)
		if err == nil || mounts != nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret of") {
			t.Errorf("%s: Add() = %v, %v, want %q", tag, mounts, err, want)
		}
		if tag == "denied" && !errdefs.IsPermissionDenied(err) {
			t.Errorf("the class of %v", err)
		}
	}
}

func TestAHelperThatDiesIsStartedAgain(t *testing.T) {
	s, started := store(t, "dies", map[string][]policy.Secret{"c": {{Resource: uri("a"), Env: "A"}}})
	for range 2 {
		if _, err := s.Add(t.Context(), "c", &specs.Spec{Process: &specs.Process{}}, &undo.Stack{}); err == nil ||
			!strings.Contains(err.Error(), "coco-trust has ended") {
			t.Errorf("Add() = %v", err)
		}
	}
	if *started != 2 {
		t.Errorf("it was started %d times", *started)
	}
}

func TestWaitingEndsWithTheRequest(t *testing.T) {
	s, _ := store(t, "silent", map[string][]policy.Secret{"c": {{Resource: uri("a"), Env: "A"}}})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	p := &specs.Process{}
	_, err := s.Add(ctx, "c", &specs.Spec{Process: p}, &undo.Stack{})
	if !errors.Is(err, context.DeadlineExceeded) || len(p.Env) != 0 {
		t.Errorf("Add() = %v, %q", err, p.Env)
	}
}

func TestAPodWithoutABroker(t *testing.T) {
	s := New(Config{Of: func(string) []policy.Secret { return []policy.Secret{{Resource: uri("a"), Env: "A"}} }})
	if _, err := s.Add(t.Context(), "c", &specs.Spec{Process: &specs.Process{}}, &undo.Stack{}); err == nil ||
		!strings.Contains(err.Error(), "[config] initdata names no key broker") {
		t.Errorf("Add() = %v", err)
	}
}
