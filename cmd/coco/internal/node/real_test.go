// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/node"
	"github.com/coco-shim/coco/tests/harness"
)

// runtimes of others, in the three forms of the file.
const (
	v1Disabled = "# of Docker's package\ndisabled_plugins = [\"cri\"]\n#root = \"/var/lib/containerd\"\n"

	v2Others = `version = 2 # the file's version
oom_score = -999

# pause comes from here
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.example/pause:3.9"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = true
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia.options]
        BinaryName = "/usr/bin/nvidia-container-runtime"` // no line break at the end

	v2Imports = "version = 2\nimports = [\"/etc/containerd/more/*.toml\"]\n"

	v3Others = `version = 3
[plugins.'io.containerd.cri.v1.images']
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = 'registry.example/pause:3.9'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nvidia]
  runtime_type = 'io.containerd.runc.v2'
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nvidia.options]
    BinaryName = '/usr/bin/nvidia-container-runtime'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
`
	v3Imports = "imports = [\"/etc/containerd/more/a.toml\"]\n" + v3Others
	v3More    = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.gvisor]\n" +
		"  runtime_type = 'io.containerd.runsc.v1'\n"
)

// site is a state of /etc/containerd before the installation.
type site struct {
	name  string
	files map[string]string
	flags []string
	major int // 0: all
}

var sites = []site{
	{name: "no root file"},
	{name: "version 2 with other runtimes", files: map[string]string{"config.toml": v2Others}},
	{name: "version 2 with imports", files: map[string]string{"config.toml": v2Imports, "more/a.toml": v2Others}},
	{name: "version 3", files: map[string]string{"config.toml": v3Others}, major: 2},
	{
		name:  "version 3 with imports",
		files: map[string]string{"config.toml": v3Imports, "more/a.toml": v3More}, major: 2,
	},
	{name: "CRI disabled", files: map[string]string{"config.toml": v1Disabled}},
	{
		name: "CRI disabled and enabled", files: map[string]string{"config.toml": v1Disabled},
		flags: []string{"--enable-cri"},
	},
}

const childVar = "COCO_NODE_CHILD"

// Each version of containerd runs in a mount namespace of its own, with /etc/containerd, /run/containerd,
// /var/lib/containerd and /usr/local/bin of its own: the command is the one that people use, with its usual paths.
func TestRealContainerd(t *testing.T) {
	testvm.Need(t, testvm.Root, testvm.Containerd)
	for _, version := range []string{"1.6", "1.7", "2.1", "2.4"} {
		t.Run(version, func(t *testing.T) { inNamespace(t, version, "TestInItsNamespace") })
	}
}

// inNamespace runs a test of this program as a process with a mount namespace of its own, with a version of containerd.
func inNamespace(t *testing.T, version, name string) {
	t.Helper()
	bin, err := harness.Binaries(version)
	if err != nil {
		if os.Getenv("COCO_REQUIRE") == "all" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir, err := os.MkdirTemp("/var/tmp", "coco-node-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.v", "-test.run", "^"+name+"$")
	cmd.Env = append(os.Environ(), childVar+"="+version+" "+filepath.Join(bin, "containerd")+" "+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+name)) {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestInItsNamespace is the child of TestRealContainerd.
func TestInItsNamespace(t *testing.T) {
	c := newReal(t)
	c.source = release(t, filepath.Join(c.dir, "release"), "1")
	for _, s := range sites {
		if s.major == 0 || s.major == c.major {
			t.Run(s.name, func(t *testing.T) { c.site(t, s) })
		}
	}
}

// newReal takes the places of the host that a containerd has, in the namespace of a child.
func newReal(t *testing.T) *real {
	t.Helper()
	f := strings.Fields(os.Getenv(childVar))
	if len(f) != 3 {
		t.Skip("run by a test that makes a namespace for it")
	}
	major, err := strconv.Atoi(f[0][:1])
	if err != nil {
		t.Fatal(err)
	}
	c := &real{binary: f[1], dir: f[2], major: major}
	for _, p := range []string{"/etc/containerd", "/var/lib/containerd", "/usr/local/bin", "/run/containerd"} {
		bind(t, filepath.Join(c.dir, p), p)
	}
	return c
}

func bind(t *testing.T, from, to string) {
	t.Helper()
	for _, p := range []string{from, to} {
		if err := os.MkdirAll(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("bind %s: %v", to, err)
	}
}

// release makes what an unpacked release has, with programs that do nothing.
func release(t *testing.T, dir, content string) string {
	t.Helper()
	script := "#!/bin/sh\necho '{\"version\":\"" + content + "\"}'\n"
	for name, text := range map[string]string{
		node.Shim: script, node.CLI: script, node.OCI: script,
		"share/coco/guest/manifest.json": "{}", "share/coco/guest/vmlinux": "kernel " + content,
		"share/coco/configs/config-qemu-snp.toml": "",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// real is a containerd in the namespace of the test.
type real struct {
	binary, dir, source string
	major               int
}

func (c *real) restartScript(t *testing.T) string {
	t.Helper()
	path := filepath.Join(c.dir, "restart")
	text := fmt.Sprintf(`#!/bin/sh
cd %[1]s
if [ -f pid ]; then kill $(cat pid); while kill -0 $(cat pid) 2>/dev/null; do sleep 0.05; done; fi
setsid %[2]s >>log 2>&1 </dev/null &
echo $! >pid
`, c.dir, c.binary)
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func (c *real) pid(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(c.dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// start starts the daemon and ends it with the test.
func (c *real) start(t *testing.T, restart string) {
	t.Helper()
	if out, err := exec.Command(restart).CombinedOutput(); err != nil {
		t.Fatalf("start containerd: %v: %s", err, out)
	}
	t.Cleanup(func() {
		pid := c.pid(t)
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		for range 200 {
			if syscall.Kill(pid, 0) != nil {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		if err := os.Remove(filepath.Join(c.dir, "pid")); err != nil {
			t.Error(err)
		}
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err := os.Stat("/run/containerd/containerd.sock"); err == nil {
			return
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(filepath.Join(c.dir, "log"))
			t.Fatalf("containerd does not start:\n%s", log)
		}
	}
}

// dump is the configuration as containerd has it, without handlers of coco and without names of imported files.
func (c *real) dump(t *testing.T) (rest map[string]any, ours int) {
	t.Helper()
	args := []string{"config", "dump"}
	if _, err := os.Stat("/etc/containerd/config.toml"); err != nil && c.major < 2 {
		args[1] = "default"
	}
	out, err := exec.Command(c.binary, args...).Output()
	if err != nil {
		t.Fatalf("containerd config dump: %v", err)
	}
	if _, err := toml.Decode(string(out), &rest); err != nil {
		t.Fatal(err)
	}
	delete(rest, "imports")
	var walk func(m map[string]any)
	walk = func(m map[string]any) {
		for k, v := range m {
			sub, ok := v.(map[string]any)
			if path, _ := sub["runtime_path"].(string); ok && strings.HasSuffix(path, node.Shim) {
				delete(m, k)
				ours++
			} else if ok {
				walk(sub)
				if len(sub) == 0 {
					delete(m, k)
				}
			}
		}
	}
	walk(rest)
	return rest, ours
}

func (c *real) site(t *testing.T, s site) {
	const etc = "/etc/containerd"
	saved := filepath.Join(c.dir, "saved")
	for _, dir := range []string{etc, saved} {
		clearDir(t, dir)
		for name, text := range s.files {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
				t.Fatal(err)
			}
		}
	}
	clearDir(t, "/run/containerd")
	restart := c.restartScript(t)
	c.start(t, restart)
	before, _ := c.dump(t)
	prefix := "--prefix=" + filepath.Join(c.dir, "opt", "coco")
	flags := append([]string{"install", "--from", c.source, prefix, "--restart-command", restart}, s.flags...)

	if out, log, err := run(t, append(flags, "--dry-run")...); err != nil || !strings.Contains(out, "runtime_path") {
		t.Fatalf("install --dry-run = %q, %q, %v", out, log, err)
	}
	sameFiles(t, saved, etc)
	old := c.pid(t)
	_, log, err := run(t, flags...)
	if err != nil || !strings.Contains(log, "restart containerd") || c.pid(t) == old {
		t.Fatalf("install = %q, %v, want a restart that is said", log, err)
	}
	after, ours := c.dump(t)
	enabled := len(s.flags) > 0
	if enabled {
		forgetCRI(before)
		forgetCRI(after)
	}
	if d := cmp.Diff(before, after); d != "" {
		t.Errorf("other settings (-before +after):\n%s", d)
	}
	off := s.files["config.toml"] == v1Disabled && !enabled
	if ours == 0 && (!off || c.major == 2) {
		t.Error("no handlers of coco in the dump")
	}
	c.status(t, prefix, off)

	old = c.pid(t)
	if out, log, err := run(t, flags...); out != "" || log != "" && !off || err != nil || c.pid(t) != old {
		t.Errorf("second install = %q, %q, %v, restarted %v", out, log, err, c.pid(t) != old)
	}
	if _, log, err := run(t, "uninstall", prefix); err != nil || c.pid(t) == old {
		t.Fatalf("uninstall = %q, %v", log, err)
	}
	sameFiles(t, saved, etc)
	left, err := filepath.Glob(filepath.Join(c.dir, "opt", "*"))
	if links, _ := filepath.Glob("/usr/local/bin/*"); err != nil || len(left)+len(links) > 0 {
		t.Errorf("left: %v %v, %v", left, links, err)
	}
}

// status asks the running daemon by the command.
func (c *real) status(t *testing.T, prefix string, off bool) {
	t.Helper()
	out, _, err := run(t, "status", "--json", prefix)
	var st node.Status
	if jerr := json.Unmarshal([]byte(out), &st); jerr != nil {
		t.Fatalf("status = %s, %v", out, jerr)
	}
	if off {
		if err == nil || !strings.Contains(out, "without its CRI") {
			t.Errorf("status of a containerd without CRI = %s, %v", out, err)
		}
		return
	}
	if err != nil || len(st.Engines) != 1 || len(st.Engines[0].Handlers) != 10 || st.Engines[0].Handlers[0] != "coco" {
		t.Errorf("status = %s, %v, want ten handlers that the daemon has", out, err)
	}
}

func forgetCRI(dump map[string]any) {
	delete(dump, "disabled_plugins")
	if plugins, ok := dump["plugins"].(map[string]any); ok {
		for name := range plugins {
			if strings.Contains(name, ".cri") || name == "cri" {
				delete(plugins, name)
			}
		}
	}
}

func clearDir(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
}

func sameFiles(t *testing.T, want, got string) {
	t.Helper()
	if out, err := exec.Command("git", "diff", "--no-index", want, got).CombinedOutput(); err != nil {
		t.Errorf("%s is not as before: %v\n%s", got, err, out)
	}
	if out, err := exec.Command("diff", "-r", want, got).CombinedOutput(); err != nil { // empty directories too
		t.Errorf("%s is not as before: %v\n%s", got, err, out)
	}
}

// run runs a command of the group.
func run(t *testing.T, args ...string) (out, log string, err error) {
	t.Helper()
	cmd := Command()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	var o, l bytes.Buffer
	cmd.SetOut(&o)
	cmd.SetErr(&l)
	cmd.SetArgs(args)
	err = cmd.ExecuteContext(t.Context())
	return o.String(), l.String(), err
}
