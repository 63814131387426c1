// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package verbs

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/cmd/coco-oci/internal/state"
)

func TestSignalsAreReadAsRuncDoes(t *testing.T) {
	for in, want := range map[string]unix.Signal{
		"": unix.SIGTERM, "9": unix.SIGKILL, "KILL": unix.SIGKILL, "SIGusr1": unix.SIGUSR1, "64": 64,
	} {
		if got, err := signalOf(in); got != want || err != nil {
			t.Errorf("signalOf(%q) = %v, %v, want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"0", "65", "-1", "NONE", "9x"} {
		if got, err := signalOf(in); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("signalOf(%q) = %v, %v, want ErrInvalidArgument", in, got, err)
		}
	}
}

// An option without effect on a VM is refused, and the error names it.
func TestWhatIsNotSupportedIsRefusedByName(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"checkpoint", "x"}, "checkpoint: the processes of a VM"},
		{[]string{"restore", "x"}, "restore: the processes of a VM"},
		{[]string{"events", "--stats", "x"}, "events: "},
		{[]string{"no-such-verb"}, "no-such-verb is no command"},
		{[]string{"create", "--preserve-fds", "2", "x"}, "--preserve-fds 2: open files of the host"},
		{[]string{"exec", "--preserve-fds", "1", "x", "sh"}, "--preserve-fds 1: open files of the host"},
		{[]string{"exec", "--apparmor", "p", "x", "sh"}, "-apparmor"},
		{[]string{"create", "--no-such-flag", "x"}, "-no-such-flag"},
		{[]string{"create"}, "0 arguments; usage: coco-oci create"},
		{[]string{"update", "--memory", "1g", "x"}, "-memory"},
		{[]string{"update", "x"}, "--resources FILE"},
		{[]string{"ps", "--format", "json", "x"}, "ps: the processes run in a VM"},
		{[]string{"kill", "x", "NOSIG"}, `unknown signal "NOSIG"`},
		{[]string{"list", "--format", "xml"}, `--format "xml"`},
		{[]string{"state", "../x"}, `container id "../x"`},
		{[]string{"state", "x"}, "container x does not exist"},
		{[]string{"delete", "x"}, "container x does not exist"},
	} {
		o := options{root: t.TempDir(), stdout: &bytes.Buffer{}}
		if _, err := dispatch(o, tc.args); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("coco-oci %s: %v, want an error with %q", strings.Join(tc.args, " "), err, tc.want)
		}
	}
	_, _, err := global([]string{"--rootless", "true", "list"})
	if err == nil || !strings.Contains(err.Error(), "rootless") {
		t.Errorf("an unknown option: %v", err)
	}
}

// Engines delete what may be gone.
func TestForcedDeleteOfNothing(t *testing.T) {
	o := options{root: t.TempDir()}
	if code, err := dispatch(o, []string{"delete", "--force", "x"}); code != 0 || err != nil {
		t.Errorf("delete --force of nothing: %d, %v", code, err)
	}
}

// Podman reads the reason of a failure in the log.
func TestErrorsAreWrittenToTheLog(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	if code := fail(options{log: log, logFormat: "json"}, errors.New(`no "x" here`)); code != 1 {
		t.Errorf("exit status %d, want 1", code)
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	var line struct{ Level, Msg, Time string }
	err = json.Unmarshal(text, &line)
	if err != nil || line.Level != "error" || line.Msg != `no "x" here` || line.Time == "" {
		t.Errorf("log is %s, %v", text, err)
	}
}

func TestListOfContainersWithoutShim(t *testing.T) {
	var out bytes.Buffer
	o := options{root: t.TempDir(), stdout: &out}
	if _, err := dispatch(o, []string{"list", "--format", "json"}); err != nil || out.String() != "[]\n" {
		t.Errorf("list of nothing: %q, %v", out.String(), err)
	}
	if _, err := o.state().Claim("a"); err != nil {
		t.Fatal(err)
	}
	if _, err := o.state().Claim("a"); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("a second claim: %v, want ErrAlreadyExists", err)
	}
	c := state.Container{ID: "a", Pod: "a", Address: "unix://" + filepath.Join(o.root, "none"), Bundle: "/b"}
	if err := o.state().Save(c); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	if _, err := dispatch(o, []string{"state", "a"}); err != nil {
		t.Fatal(err)
	}
	var got shown
	err := json.Unmarshal(out.Bytes(), &got)
	if err != nil || got.Status != "stopped" || got.PID != 0 || got.Bundle != "/b" {
		t.Errorf("state of a container whose shim is gone: %s, %v", out.String(), err)
	}
	out.Reset()
	if _, err := dispatch(o, []string{"list", "-q"}); err != nil || out.String() != "a\n" {
		t.Errorf("list -q: %q, %v", out.String(), err)
	}
}

func TestTerminalsNeedTheRightSocket(t *testing.T) {
	for _, tc := range []struct {
		terminal, foreground bool
		console, want        string
	}{
		{true, false, "", "cannot allocate tty"},
		{false, false, "/s", "cannot use console socket"},
		{true, true, "", ""},
		{true, false, "/s", ""},
		{false, false, "", ""},
	} {
		err := checkTerminal(tc.terminal, tc.console, tc.foreground)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v", tc, err)
		}
	}
}

// The specification that spec writes can be read by create, and exec takes over its process.
func TestExampleOfASpecification(t *testing.T) {
	o := options{root: t.TempDir()}
	dir, err := o.state().Claim("a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dispatch(o, []string{"spec", "-b", dir}); err != nil {
		t.Fatal(err)
	}
	s, err := readSpec(dir)
	if err != nil || s.Process.Args[0] != "sh" || netns(s) != "" {
		t.Fatalf("the example: %+v, %v", s, err)
	}
	if _, err := dispatch(o, []string{"spec", "-b", dir}); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("spec over a file: %v", err)
	}
	f := further{user: "1:2", cwd: "/tmp", env: repeated{"A=b"}}
	p, err := f.read(o, "a", []string{"ls", "-l"})
	want := specs.User{UID: 1, GID: 2}
	if err != nil || p.Args[1] != "-l" || p.Cwd != "/tmp" || p.Env[len(p.Env)-1] != "A=b" || p.Terminal ||
		p.User.UID != want.UID || p.User.GID != want.GID {
		t.Errorf("process of exec: %+v, %v", p, err)
	}
	f.user = "bin"
	if _, err := f.read(o, "a", []string{"ls"}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a name as user: %v", err)
	}
}
