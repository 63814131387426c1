// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/tests/harness"
)

// visible is what a user sees of a command.
type visible struct {
	Stdout, Stderr string
	Code           int
}

// parity are `ctr run` invocations whose visible result must be the same under runc and under coco.
// FILE is replaced by a host file that holds "from the host\n".
var parity = []struct {
	name  string
	flags []string
	image string
	cmd   []string
	stdin string
	// want replaces runc's result where ctr itself is at fault: it tells the runtime of the end of
	// stdin only if that end comes after the task was made, so `true | ctr run … cat` hangs under runc.
	want *visible
}{
	{name: "stdout", cmd: []string{"echo", "hello"}},
	{name: "stderr and exit code", cmd: []string{"sh", "-c", "echo to-err >&2; exit 7"}},
	{name: "exit code 255", cmd: []string{"sh", "-c", "exit 255"}},
	{name: "dies of SIGKILL", cmd: []string{"sh", "-c", "sh -c 'kill -9 $$'; echo $?"}},
	{name: "dies of SIGTERM itself", cmd: []string{"sh", "-c", "kill -ABRT $$; sleep 5"}},
	{
		name: "environment", flags: []string{"--env", "A=1", "--env", "B=two words"},
		cmd: []string{"sh", "-c", "echo $A/$B/$PATH"},
	},
	{name: "working directory", flags: []string{"--cwd", "/usr/bin"}, cmd: []string{"pwd"}},
	{name: "user", flags: []string{"--user", "1000:1000"}, cmd: []string{"id"}},
	{name: "user by name", flags: []string{"--user", "user"}, cmd: []string{"id", "-u"}},
	{
		name: "read-only root", flags: []string{"--read-only"},
		cmd: []string{"sh", "-c", "touch /x 2>/dev/null && echo writable || echo refused"},
	},
	{name: "writable root", cmd: []string{"sh", "-c", "echo data > /x && cat /x"}},
	{
		name: "dropped capability", flags: []string{"--cap-drop", "CAP_CHOWN"},
		cmd: []string{"sh", "-c", "touch /f; chown 1:1 /f 2>/dev/null && echo changed || echo refused"},
	},
	{name: "capability sets", cmd: []string{"grep", "^Cap", "/proc/self/status"}},
	{
		name: "added capability", flags: []string{"--cap-add", "CAP_NET_ADMIN"},
		cmd: []string{"grep", "CapEff", "/proc/self/status"},
	},
	{name: "seccomp", flags: []string{"--seccomp"}, cmd: []string{"grep", "^Seccomp:", "/proc/self/status"}},
	{name: "no new privileges", flags: []string{}, cmd: []string{"grep", "NoNewPrivs", "/proc/self/status"}},
	{
		name: "stdin to its end", cmd: []string{"cat"}, stdin: "line one\nline two without newline",
		want: &visible{Stdout: "line one\nline two without newline"},
	},
	{
		name: "bind mount of a file", flags: []string{"--mount", "type=bind,src=FILE,dst=/etc/from-host,options=rbind:ro"},
		cmd: []string{"cat", "/etc/from-host"},
	},
	{
		name: "bind mount of a directory", flags: []string{"--mount", "type=bind,src=DIR,dst=/mnt,options=rbind:ro"},
		cmd: []string{"sh", "-c", "cd /mnt; find . | sort; cat sub/two"},
	},
	{
		name: "tmpfs mount", flags: []string{"--mount", "type=tmpfs,src=tmpfs,dst=/new,options=size=1m:mode=700"},
		cmd: []string{"sh", "-c", "stat -c %a /new; grep ' /new ' /proc/mounts | cut -d' ' -f1-3"},
	},
	{name: "hostname", flags: []string{"--hostname", "some-host"}, cmd: []string{"hostname"}},
	{
		name: "layers", image: harness.LayeredImage,
		cmd: []string{"sh", "-c", "cat /layer/added /layer/top /etc/passwd; ls /etc; stat -c '%u %g %a' /layer/top"},
	},
	{name: "pid one", cmd: []string{"sh", "-c", "echo $$"}},
	{
		name: "masked and read-only paths",
		cmd:  []string{"sh", "-c", "wc -c < /proc/keys; echo 1 2>/dev/null > /proc/sysrq-trigger || echo refused"},
	},
	{
		name: "standard devices",
		cmd:  []string{"sh", "-c", "ls /dev | grep -v core; head -c 4 /dev/zero | wc -c; echo x > /dev/null"},
	},
	{name: "no network", cmd: []string{"sh", "-c", "ls /sys/class/net"}},
	{name: "missing command", cmd: []string{"/does/not/exist"}},
	{name: "limits that nobody asked for", cmd: []string{"sh", "-c", "ulimit -a; ulimit -Ha"}},
	{name: "rlimits", flags: []string{"--rlimit-nofile", "512"}, cmd: []string{"sh", "-c", "ulimit -n"}},
}

func TestRunLooksTheSameAsUnderRunc(t *testing.T) {
	d := daemon(t, primary)
	noLeaks(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	tree := filepath.Join(dir, "tree")
	write(t, file, "from the host\n")
	write(t, filepath.Join(tree, "one"), "1\n")
	write(t, filepath.Join(tree, "sub", "two"), "2\n")
	for _, c := range parity {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			see := func(runtime string) visible {
				args := []string{"run", "--rm", "--runtime", runtime}
				for _, f := range c.flags {
					args = append(args, strings.NewReplacer("FILE", file, "DIR", tree).Replace(f))
				}
				image := c.image
				if image == "" {
					image = harness.Image
				}
				id := newID(t)
				args = append(append(args, image, id), c.cmd...)
				r := ctrInput(t, d, []byte(c.stdin), args...)
				t.Cleanup(func() { remove(t, d, id) })
				return visible{Stdout: r.Stdout, Stderr: r.Stderr, Code: r.Code}
			}
			got := see(harness.Runtime)
			if c.want != nil {
				if d := cmp.Diff(*c.want, got); d != "" {
					t.Errorf("visible result (-want +coco):\n%s", d)
				}
				return
			}
			want := see(harness.RuncRuntime)
			if c.name == "missing command" { // the sentence is the runtime's own
				if got.Code == 0 || !strings.Contains(got.Stderr, "/does/not/exist") {
					t.Errorf("got %+v, want a failure that names the command", got)
				}
				return
			}
			if c.name == "no network" {
				want.Stdout = "lo\n" // the guest has no tunnels of its own either
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("visible result (-runc +coco):\n%s", d)
			}
		})
	}
}

func write(t *testing.T, path, data string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}
