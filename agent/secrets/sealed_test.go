// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package secrets

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/trust/wire"
)

// volume makes a directory as the kubelet does for a Secret.
func volume(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	state := filepath.Join(dir, "..2026_12_01")
	err := errors.Join(os.Mkdir(state, 0o755), os.Symlink("..2026_12_01", filepath.Join(dir, "..data")))
	for name, text := range files {
		err = errors.Join(err, os.WriteFile(filepath.Join(state, name), []byte(text), 0o440),
			os.Symlink("..data/"+name, filepath.Join(dir, name)))
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func content(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A sealed text is replaced in the variable and the file that the policy names, in this container, and nowhere else.
func TestSealedTextsAreReplacedAtTheirPlaces(t *testing.T) {
	s, started := store(t, "ok", map[string][]policy.Secret{"one": {
		{Resource: uri("v"), Env: "V", Sealed: true},
		{Resource: uri("f"), File: "/etc/s/password", Sealed: true},
		{Resource: uri("g"), File: "/etc/s/second", Sealed: true},
		{Resource: uri("h"), File: "/one", Sealed: true},
		{Resource: uri("a"), Env: "A"},
	}})
	source := volume(t, map[string]string{"password": "sealed.f\n", "second": "sealed.g", "other": "sealed.x"})
	single := filepath.Join(t.TempDir(), "single")
	if err := os.WriteFile(single, []byte("sealed.h"), 0o600); err != nil {
		t.Fatal(err)
	}
	spec := &specs.Spec{
		Process: &specs.Process{Env: []string{"W=sealed.v", "V=sealed.v", "VV=sealed.v"}},
		Mounts: []specs.Mount{
			{Destination: "/etc", Source: "/nowhere"},
			{Destination: "/etc/s/", Source: source, Options: []string{"ro"}},
			{Destination: "/one", Source: single},
			{Destination: "/again", Source: source},
		},
	}
	var u undo.Stack
	mounts, err := s.Add(t.Context(), "one", spec, &u)
	if err != nil || mounts != nil || *started != 1 {
		t.Fatalf("Add() = %v, %v, coco-trust was started %d times", mounts, err, *started)
	}
	want := []string{"W=sealed.v", "V=sealed.v opened for one as " + uri("v"), "VV=sealed.v", "A=secret of " + uri("a")}
	if !slices.Equal(spec.Process.Env, want) {
		t.Errorf("the environment is %q, want %q", spec.Process.Env, want)
	}
	copied := spec.Mounts[1].Source
	for name, want := range map[string]string{
		copied + "/password":     "sealed.f opened for one as " + uri("f"),
		copied + "/second":       "sealed.g opened for one as " + uri("g"),
		copied + "/other":        "sealed.x",
		spec.Mounts[2].Source:    "sealed.h opened for one as " + uri("h"),
		source + "/password":     "sealed.f\n",
		single:                   "sealed.h",
		source + "/..data/other": "sealed.x",
	} {
		if got := content(t, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	st, err := os.Stat(copied + "/password")
	link, lerr := os.Readlink(copied + "/password")
	if err != nil || st.Mode() != 0o440 || lerr != nil || link != "..data/password" {
		t.Errorf("the file in the copy has %v, %v, and is a link to %q, %v", st, err, link, lerr)
	}
	if spec.Mounts[0].Source != "/nowhere" || spec.Mounts[3].Source != source {
		t.Errorf("other mounts have the sources %q and %q", spec.Mounts[0].Source, spec.Mounts[3].Source)
	}
}

func TestASealedTextThatIsNotOpened(t *testing.T) {
	escaping := volume(t, nil)
	secretOfTheGuest := filepath.Join(t.TempDir(), "guest")
	deep := filepath.Join(escaping, "..2026_12_01")
	pipe := volume(t, nil)
	if err := errors.Join(os.WriteFile(secretOfTheGuest, []byte("sealed.canary"), 0o600),
		os.Symlink(secretOfTheGuest, filepath.Join(deep, "password")),
		unix.Mkfifo(filepath.Join(pipe, "password"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("..data/password", filepath.Join(escaping, "password")); err != nil {
		t.Fatal(err)
	}
	variable := policy.Secret{Resource: uri("x"), Env: "X", Sealed: true}
	file := policy.Secret{Resource: uri("x"), File: "/s/password", Sealed: true}
	for name, tc := range map[string]struct {
		secret policy.Secret
		env    string
		source string
		want   string
	}{
		"no variable":       {variable, "Y=sealed.ok", "", "[missing] sealed secret: variable X is not there"},
		"an empty variable": {variable, "X=", "", "[missing] sealed secret: variable X is not there or is empty"},
		"a wrong signature": {
			variable, "X=sealed.bad", "", "variable X: [signature] sealed secret: kbs:///a/b/c: it is wrong",
		},
		"binary content": {variable, "X=sealed.binary", "", "no UTF-8 text"},
		"no mount":       {file, "", "", "[missing] sealed secret: no mount of the container has it"},
		"no file":        {file, "", volume(t, nil), "[missing] sealed secret: the host has not brought it"},
		"an empty file":  {file, "", volume(t, map[string]string{"password": ""}), "[missing] sealed secret: it is empty"},
		"a file with a line's end alone": {
			file, "", volume(t, map[string]string{"password": "\n"}), "[missing] sealed secret: it is empty",
		},
		"a file whose text is wrong": {
			file, "", volume(t, map[string]string{"password": "sealed.bad"}), "file /s/password: [signature]",
		},
		"a link out of the mount": {file, "", escaping, "the host has brought a link that leads out of the mount"},
		"a pipe":                  {file, "", pipe, "is not a regular file"},
	} {
		s, _ := store(t, "ok", map[string][]policy.Secret{"c": {tc.secret}})
		spec := &specs.Spec{Process: &specs.Process{Env: []string{tc.env}}}
		if tc.source != "" {
			spec.Mounts = []specs.Mount{{Destination: "/s", Source: tc.source}}
		}
		var u undo.Stack
		mounts, err := s.Add(t.Context(), "c", spec, &u)
		if err == nil || mounts != nil || !strings.Contains(err.Error(), tc.want) ||
			!strings.HasPrefix(err.Error(), "secret "+uri("x")+": ") {
			t.Errorf("%s: Add() = %v, %v, want %q", name, mounts, err, tc.want)
		}
		if err != nil && (strings.Contains(err.Error(), "sealed.") || strings.Contains(err.Error(), "opened for")) {
			t.Errorf("%s: the error has the text: %v", name, err)
		}
		if !slices.Equal(spec.Process.Env, []string{tc.env}) {
			t.Errorf("%s: the environment is %q", name, spec.Process.Env)
		}
	}
}

// A mount that is copied is bounded.
func TestTheCopyOfAMountIsBounded(t *testing.T) {
	dir := t.TempDir()
	for i := range maxEntries {
		if err := os.Symlink("x", filepath.Join(dir, strconv.Itoa(i))); err != nil {
			t.Fatal(err)
		}
	}
	to := filepath.Join(t.TempDir(), "to")
	if err := copyTree(dir, to); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("copyTree() = %v", err)
	}
	if err := copyTree(filepath.Join(dir, "none"), to); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("copyTree() of nothing = %v", err)
	}
}

// A pod that names a broker and has no policy is not started with a sealed text that nothing opens.
func TestSealedTextsWithoutAPolicy(t *testing.T) {
	const text = "sealed.eyJhbGciOiJFUzI1NiJ9.eyJ0eXBlIjoidmF1bHQifQ.AAAA"
	add := func(initdata, value string) error {
		s := New(Config{Setup: wire.Setup{Initdata: initdata}})
		_, err := s.Add(t.Context(), "c", &specs.Spec{Process: &specs.Process{Env: []string{"A=" + value}}}, &undo.Stack{})
		return err
	}
	err := add("document", text)
	if err == nil || !strings.Contains(err.Error(), `[no-policy] sealed secret: variable "A" has a sealed text`) ||
		strings.Contains(err.Error(), text) {
		t.Errorf("Add() = %v", err)
	}
	if err := errors.Join(add("document", "sealed.txt"), add("", text)); err != nil {
		t.Errorf("Add() = %v", err)
	}
}
