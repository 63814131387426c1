// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/hypervisor/jail"
	"github.com/coco-shim/coco/internal/testvm"
)

const testUser = 1_900_077_777

// inJail runs a shell script in a jail; say writes a line to the script, and hear reads one from it.
func inJail(t *testing.T, o jail.Options, script string) (p *Process, say func(string), hear func() string) {
	t.Helper()
	testvm.Need(t, testvm.Root)
	o.User = testUser
	p = start(t, Options{Jail: &o})
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { inW.Close(); outR.Close() })
	inR.Fd() // which makes it a blocking one, as the script expects
	outW.Fd()
	err = p.Exec(t.Context(), []string{"/bin/sh", "-c", script}, []string{"PATH=/usr/bin:/bin"}, []*os.File{inR, outW})
	inR.Close()
	outW.Close()
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(outR)
	return p, func(s string) { fmt.Fprintln(inW, s) }, func() string {
		if !lines.Scan() {
			<-p.Done()
			t.Fatalf("the script ended: %s, %s", p.ExitStatus(), p.Stderr())
		}
		return lines.Text()
	}
}

func TestAJailedProgramOwnsNothing(t *testing.T) {
	p, say, hear := inJail(t, jail.Options{Processes: 50, Devices: []string{"/dev/kvm", "/dev/missing"}}, `
while read -r cmd <&3; do eval "$cmd" >&4 2>&1; done`)
	ask := func(cmd string) string {
		t.Helper()
		say("{ " + cmd + "; } | tr '\\n' ' '; echo")
		return strings.TrimSpace(hear())
	}
	for cmd, want := range map[string]string{
		"id -u; id -g; id -G":                         fmt.Sprintf("%d %[1]d %[1]d", testUser),
		"grep Cap /proc/self/status | cut -f2":        strings.TrimSpace(strings.Repeat("0000000000000000 ", 5)),
		"grep NoNewPrivs /proc/self/status | cut -f2": "1",
		"echo $$": "1",
		fmt.Sprintf("ls -d /proc/%d /proc/%d 2>/dev/null", os.Getpid(), os.Getppid()): "",
		"ulimit -c; ulimit -p": "0 50",
		"ls -d /root /home /etc/passwd /var /run /sys 2>/dev/null": "",
		"touch /x /usr/x /dev/x 2>&1 | grep -c 'Read-only'":        "3",
		"hostname": "vmm",
		"kill -0 $PPID 2>/dev/null; kill -0 2 2>/dev/null; echo $?": "1",
	} {
		if got := ask(cmd); got != want {
			t.Errorf("%s = %q, want %q", cmd, got, want)
		}
	}
	for _, ns := range []string{"mnt", "pid", "ipc", "uts"} {
		ours, err := os.Readlink("/proc/self/ns/" + ns)
		its, ierr := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", p.PID(), ns))
		if err != nil || ierr != nil || its == ours {
			t.Errorf("its %s namespace is %s, ours %s: %v, %v", ns, its, ours, err, ierr)
		}
	}
	var st syscall.Stat_t
	if err := syscall.Stat(fmt.Sprintf("/proc/%d/maps", p.PID()), &st); err != nil || st.Uid != 0 {
		t.Errorf("its memory belongs to user %d, %v: it is dumpable", st.Uid, err)
	}
	if err := p.Empty(); err != nil {
		t.Fatal(err)
	}
	say("echo /* /.*")
	if got := strings.TrimSpace(hear()); got != "/* /." && got != "/* /. /.." && got != "/* /.*" {
		t.Errorf("its root holds %s", got)
	}
	if err := os.Mkdir(fmt.Sprintf("/proc/%d/root/made", p.PID()), 0o700); !strings.Contains(fmt.Sprint(err),
		"read-only") {
		t.Errorf("the root can be written to: %v", err)
	}
	if err := p.Empty(); err != nil {
		t.Errorf("a second Empty() = %v", err)
	}
}

// A VMM that opens its disks by name may read and write what is root's, and sees no file but those that are shown to
// it. It owns them there, or it has a capability where files cannot be lent.
func TestAJailedProgramIsShownItsDisks(t *testing.T) {
	testvm.Need(t, testvm.Root)
	t.Run("lent", func(t *testing.T) {
		if err := jail.Lends(testUser, t.TempDir()); err != nil {
			t.Skipf("files cannot be lent here: %v", err)
		}
		isShownItsDisks(t, jail.Options{Disks: true}, "0000000000000000 ")
	})
	t.Run("by capability", func(t *testing.T) {
		isShownItsDisks(t, jail.Options{Capabilities: []int{unix.CAP_DAC_OVERRIDE}, Disks: true}, "0000000000000002 ")
	})
}

func isShownItsDisks(t *testing.T, o jail.Options, capabilities string) {
	t.Helper()
	dir := t.TempDir()
	file := func(name string) *os.File {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		if _, err := f.WriteString(name + "\n"); err != nil {
			t.Fatal(err)
		}
		return f
	}
	layer, scratch, gone := file("layer"), file("scratch"), file("gone")
	if err := os.Remove(gone.Name()); err != nil {
		t.Fatal(err)
	}
	p, say, hear := inJail(t, o, `
while read -r cmd <&3; do eval "$cmd" >&4 2>&1; done`)
	ask := func(cmd string) string {
		t.Helper()
		say(cmd + "; echo end")
		var lines []string
		for line := hear(); line != "end"; line = hear() {
			lines = append(lines, line)
		}
		return strings.Join(lines, " ")
	}
	if got, want := ask("grep Cap /proc/self/status | cut -f2"),
		strings.TrimSpace(strings.Repeat(capabilities, 5)); got != want {
		t.Errorf("its capabilities are %s, want %s", got, want)
	}
	if err := p.Empty(); err != nil {
		t.Fatal(err)
	}
	for _, d := range []struct {
		name     string
		file     *os.File
		readOnly bool
	}{{"a", layer, true}, {"b", scratch, false}} {
		if at, err := p.Place(d.file, d.name, d.readOnly); err != nil || at != "/disks/"+d.name {
			t.Fatalf("Place(%s) = %s, %v", d.name, at, err)
		}
	}
	if _, err := p.Place(gone, "c", true); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Place() of a file that was removed = %v", err)
	}
	if got := ask("echo /disks/*"); got != "/disks/*" { // which it may not list
		t.Errorf("it lists %s", got)
	}
	if got := ask("[ ! -e /disks/c ] && read -r x </disks/a; echo $x; exec 5<>/disks/b; echo of the " +
		"VMM >&5"); got != "layer" {
		t.Errorf("it reads %q", got)
	}
	if got := ask("(: >>/disks/a) || (: >/disks/new) || (: >/new)"); strings.Count(got, "Read-only") != 3 {
		t.Errorf("writing where it must not: %s", got)
	}
	for _, name := range []string{"a", "b"} {
		if err := p.Displace(name); err != nil {
			t.Error(err)
		}
	}
	if got := ask("(: </disks/a); (: </disks/b); echo still open >&5"); strings.Count(got, "o such file") != 2 {
		t.Errorf("opening what was taken away: %s", got)
	}
	if b, err := os.ReadFile(scratch.Name()); err != nil || string(b) != "of the VMM\nstill open\n" {
		t.Errorf("the disk holds %q, %v", b, err)
	}
}

// The directory that a program's bin is in comes along, further paths where they are named, and nothing beside them.
func TestAJailShowsWhatAProgramNeedsToStart(t *testing.T) {
	testvm.Need(t, testvm.Root)
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{
		"p/bin/vmm": 0o755, "p/lib/part": 0o644, "more/file": 0o644,
		"beside/file": 0o644,
	} {
		at := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		script := fmt.Sprintf("#!/bin/sh\ncd %s; cat p/lib/part more/file; for f in p more beside; do [ -e $f ] && echo $f "+
			">&3; done; exit 9\n", dir)
		if err := os.WriteFile(at, []byte(script), mode); err != nil {
			t.Fatal(err)
		}
	}
	link := filepath.Join(t.TempDir(), "vmm")
	if err := os.Symlink(filepath.Join(dir, "p/bin/vmm"), link); err != nil {
		t.Fatal(err)
	}
	p := start(t, Options{Jail: &jail.Options{User: testUser, Paths: []string{filepath.Join(dir, "more")}}})
	out, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := p.Exec(t.Context(), []string{link}, []string{"PATH=/usr/bin:/bin"}, []*os.File{out}); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if p.ExitStatus() != "exit status 9" || p.Stderr() != "" {
		t.Errorf("it ended with %s, saying %q", p.ExitStatus(), p.Stderr())
	}
	if got, err := os.ReadFile(out.Name()); err != nil || string(got) != "p\nmore\n" {
		t.Errorf("it sees %q, %v", got, err)
	}
}

func TestWhatAJailCannotHoldIsRefusedByName(t *testing.T) {
	testvm.Need(t, testvm.Root)
	dir := t.TempDir()
	secret := filepath.Join(dir, "vmm")
	if err := os.WriteFile(secret, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, binary, want string
		opts               jail.Options
	}{
		{"no user", "/bin/sh", "a user of its own", jail.Options{}},
		{
			"no such program", "/nonexistent/vmm", "/nonexistent/vmm: lstat /nonexistent: no such file",
			jail.Options{User: testUser},
		},
		{
			"no such path", "/bin/sh", "/nonexistent: no such file",
			jail.Options{User: testUser, Paths: []string{"/nonexistent"}},
		},
		{"all of the host", "/bin/sh", `"/" cannot be shown`, jail.Options{User: testUser, Paths: []string{"/"}}},
		{
			"no device", "/bin/sh", "/dev/shm is not a character device",
			jail.Options{User: testUser, Devices: []string{"/dev/shm"}},
		},
		{"a program of root's", secret, "become " + secret + ": permission denied", jail.Options{User: testUser}},
	} {
		p := start(t, Options{Jail: &tt.opts})
		err := p.Exec(t.Context(), []string{tt.binary}, nil, nil)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Exec() = %v, want %q in it", tt.name, err, tt.want)
		}
	}
}
