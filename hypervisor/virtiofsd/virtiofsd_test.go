// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtiofsd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/hypervisor/jail"
	"github.com/coco-shim/coco/hypervisor/launch"
	"github.com/coco-shim/coco/internal/testvm"
)

// The test program is its own launcher.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == launch.Arg {
		if err := launch.Main(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(125)
	}
	os.Exit(m.Run())
}

func script(t *testing.T, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "virtiofsd")
	if err := os.WriteFile(p, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestFindAsksTheProgramWhatItIs(t *testing.T) {
	legacy := script(t, "echo virtiofsd version 7.2.22; echo Copyright")
	modern, other, broken := script(t, "echo virtiofsd 1.13.2"), script(t, "echo hello"), script(t, "exit 3")
	for _, tt := range []struct {
		name, path string
		places     []string
		want       Daemon
		wrong      string
	}{
		{name: "QEMU's", path: legacy, want: Daemon{legacy, "virtiofsd version 7.2.22", true}},
		{
			name: "its successor", places: []string{"/nowhere/x", modern, legacy},
			want: Daemon{modern, "virtiofsd 1.13.2", false},
		},
		{name: "another program", path: other, wrong: `no virtiofsd: it says "hello"`},
		{name: "a program that fails", path: broken, wrong: "exit status 3"},
		{
			name: "none", path: "/nowhere/x", places: []string{modern},
			wrong: "no program /nowhere/x; install the package virtiofsd",
		},
		{name: "none anywhere", places: []string{"/nowhere/x", "/nowhere/y"}, wrong: "/nowhere/x, /nowhere/y"},
	} {
		got, err := find(t.Context(), tt.path, tt.places)
		switch {
		case tt.wrong == "" && err != nil, tt.wrong != "" && (err == nil || !strings.Contains(err.Error(), tt.wrong)):
			t.Errorf("%s: %v, want %q in it", tt.name, err, tt.wrong)
		case got != tt.want:
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

func TestCommandLines(t *testing.T) {
	want := []string{
		"/v", "-f", "--fd=3", "-o", `source=/run/a\,b`, "-o",
		"sandbox=namespace,announce_submounts,log_level=warn",
	}
	if diff := cmp.Diff(want, Daemon{Path: "/v", legacy: true}.argv(3, "/run/a,b")); diff != "" {
		t.Errorf("QEMU's (-want +got):\n%s", diff)
	}
	want = []string{
		"/v", "--fd=3", "--shared-dir=/run/a,b", "--sandbox=namespace", "--announce-submounts",
		"--log-level=error",
	}
	if diff := cmp.Diff(want, Daemon{Path: "/v"}.argv(3, "/run/a,b")); diff != "" {
		t.Errorf("its successor (-want +got):\n%s", diff)
	}
}

// each runs a test with each program: the host's, and that of Debian 13.
func each(t *testing.T, test func(t *testing.T, path string)) {
	t.Run("installed", func(t *testing.T) {
		testvm.Need(t, testvm.Virtiofsd)
		test(t, "")
	})
	t.Run("1.13", func(t *testing.T) {
		testvm.Need(t, testvm.Virtiofsd13)
		test(t, testvm.Unpacked("virtiofsd-1.13", "virtiofsd"))
	})
}

// start starts a real one.
func start(t *testing.T, path string) (*Server, *launch.Process, *os.File) {
	t.Helper()
	testvm.Need(t, testvm.Root, testvm.Netns)
	d, err := Find(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 40), "a,b") // longer than a socket's path
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p, err := launch.Start(t.Context(),
		launch.Options{Jail: &jail.Options{Capabilities: Capabilities, Kept: []string{dir}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
		<-p.Done()
	})
	s, socket, err := d.Serve(t.Context(), p, dir)
	if err != nil {
		t.Fatalf("Serve() = %v", err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	t.Cleanup(func() {
		for range 2 {
			if err := s.Close(); err != nil {
				t.Errorf("Close() = %v", err)
			}
		}
	})
	return s, p, socket
}

// open opens what is shared, as the shim does.
func open(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := os.OpenFile(name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() }) // a test's
	return f
}

// In its namespace the program has the directory and what was shared, and the host has no mount of it.
func TestOnlyWhatIsSharedIsThere(t *testing.T) { each(t, onlyWhatIsSharedIsThere) }

func onlyWhatIsSharedIsThere(t *testing.T, path string) {
	s, p, _ := start(t, path)
	host := t.TempDir()
	file := filepath.Join(host, "file")
	if err := os.WriteFile(file, []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"rw": s.Share(open(t, host), "rw", false), "ro": s.Share(open(t, host), "ro", true),
		"file": s.Share(open(t, file), "file", false),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if after, err := os.ReadFile("/proc/self/mountinfo"); err != nil || string(after) != string(before) {
		t.Errorf("the host's mounts changed: %v\n%s", err, after)
	}
	err = s.inside(func() error {
		read := func(name string) string {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Error(err)
			}
			return string(b)
		}
		if got := read("/rw/file") + read("/ro/file") + read("/file"); got != "texttexttext" {
			t.Errorf("the files are %q", got)
		}
		for _, name := range []string{"/new", "/ro/new"} {
			if err := os.WriteFile(name, nil, 0o600); !errors.Is(err, unix.EROFS) {
				t.Errorf("writing %s: %v, want a read-only file system", name, err)
			}
		}
		return errors.Join(os.WriteFile("/rw/new", []byte("n"), 0o600), os.WriteFile("/file", []byte("changed"), 0o600))
	})
	if err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "changed" {
		t.Errorf("on the host the file is %q, %v", b, err)
	}
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", p.PID()))
	if err != nil || strings.Count(string(table), "\n") != 4 {
		t.Errorf("its mounts are\n%s%v", table, err)
	}
	checkConfined(t, p.PID())
	if err := os.RemoveAll(s.dir); err != nil { // while it runs: the files are not in the way
		t.Errorf("the directory cannot be removed: %v", err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "changed" {
		t.Errorf("removing the directory did something to the file: %q, %v", b, err)
	}
}

// checkConfined looks at the process that was launched and the one that it has forked, which serves.
func checkConfined(t *testing.T, pid int) {
	t.Helper()
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	most := map[string]uint64{strconv.Itoa(pid): bits(Capabilities)}
	for _, c := range strings.Fields(string(children)) {
		most[c] = bits(Capabilities[:8]) // without what was for its sandbox
	}
	if len(most) != 2 {
		t.Errorf("%d processes, want one that waits and one that serves", len(most))
	}
	for p, most := range most {
		status, err := os.ReadFile("/proc/" + p + "/status")
		if err != nil {
			t.Fatal(err)
		}
		for _, set := range []string{"CapPrm", "CapEff", "CapBnd"} {
			_, rest, _ := strings.Cut(string(status), set+":\t")
			n, err := strconv.ParseUint(rest[:16], 16, 64)
			if set == "CapBnd" {
				most = bits(Capabilities)
			}
			if err != nil || n&^most != 0 {
				t.Errorf("process %s: %s is %#x, %v, want some of %#x", p, set, n, err, most)
			}
		}
		if !strings.Contains(string(status), "NoNewPrivs:\t1\n") || !strings.Contains(string(status), "Groups:\t \n") {
			t.Errorf("process %s may gain privileges, or is in groups:\n%s", p, status)
		}
		limits, err := os.ReadFile("/proc/" + p + "/limits")
		if err != nil || !regexp.MustCompile(`Max core file size +0 +0 `).Match(limits) {
			t.Errorf("process %s: %s%v", p, limits, err)
		}
		for _, ns := range []string{"mnt", "pid", "ipc", "uts"} {
			ours, err := os.Readlink("/proc/self/ns/" + ns)
			its, ierr := os.Readlink("/proc/" + p + "/ns/" + ns)
			if its == ours || err != nil || ierr != nil {
				t.Errorf("process %s: %s namespace %s, the host's %s: %v, %v", p, ns, its, ours, err, ierr)
			}
		}
	}
}

func bits(capabilities []int) (set uint64) {
	for _, c := range capabilities {
		set |= 1 << c
	}
	return set
}

func TestWhatCannotBeShared(t *testing.T) { each(t, whatCannotBeShared) }

func whatCannotBeShared(t *testing.T, path string) {
	s, _, _ := start(t, path)
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Share(open(t, fifo), "fifo", false); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a named pipe: %v", err)
	}
	if names, err := os.ReadDir(s.dir); err != nil || len(names) != 0 {
		t.Errorf("left: %v, %v", names, err)
	}
	// A namespace that is not the program's is never touched.
	own, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	s.ns, own = own, s.ns
	if err := s.Share(open(t, t.TempDir()), "y", false); err == nil || !strings.Contains(err.Error(), "not confined") {
		t.Errorf("in the host's namespace: %v", err)
	}
	if err := own.Close(); err != nil {
		t.Error(err)
	}
}

// Without a VMM the program ends by itself.
func TestItEndsWithItsConnection(t *testing.T) { each(t, itEndsWithItsConnection) }

func itEndsWithItsConnection(t *testing.T, path string) {
	_, p, socket := start(t, path)
	if err := socket.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
	case <-time.After(10 * time.Second):
		t.Error("it runs on")
	}
}

func TestAProgramThatDoesNotServeIsTold(t *testing.T) {
	for text, want := range map[string]string{
		"echo no such option >&2; exit 1": "no such option",
		"exit 0":                          "does not answer",
	} {
		p, err := launch.Start(t.Context(), launch.Options{})
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = Daemon{Path: script(t, text)}.Serve(t.Context(), p, t.TempDir())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
		<-p.Done()
	}
}
