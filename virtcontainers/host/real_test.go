// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package host_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor/clh/clhtest"
	"github.com/coco-shim/coco/hypervisor/launch"
	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/virtcontainers"
	"github.com/coco-shim/coco/virtcontainers/host"
	"github.com/coco-shim/coco/virtcontainers/process"
	"github.com/coco-shim/coco/virtcontainers/stream"
)

// The test program is its own launcher, and Cloud Hypervisor.
func TestMain(m *testing.M) {
	if clhtest.IsVMM() {
		clhtest.Main()
	}
	if len(os.Args) > 1 && os.Args[1] == launch.Arg {
		if err := launch.Main(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(125)
	}
	os.Exit(m.Run())
}

// rootfs makes a root file system of one busybox.
func rootfs(t *testing.T, dir string) {
	t.Helper()
	for _, d := range []string{"bin", "proc", "sys", "dev", "tmp", "etc"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	bb, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(bb)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"sh", "true", "echo", "cat", "sleep", "uname", "stty", "id", "ls", "wc", "head"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", a)); err != nil {
			t.Fatal(err)
		}
	}
}

func spec(args ...string) *specs.Spec {
	var ns []specs.LinuxNamespace
	for _, k := range []specs.LinuxNamespaceType{
		specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace,
		specs.MountNamespace, specs.NetworkNamespace,
	} {
		ns = append(ns, specs.LinuxNamespace{Type: k})
	}
	caps := []string{"CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID"}
	return &specs.Spec{
		Version: "1.0.2", Root: &specs.Root{Path: "rootfs"}, Hostname: "box",
		Process: &specs.Process{
			Args: args, Cwd: "/", Env: []string{"PATH=/bin"}, NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1024, Soft: 1024}},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{
				"nosuid", "strictatime", "mode=755",
				"size=65536k",
			}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{
				"nosuid", "noexec", "newinstance",
				"ptmxmode=0666", "mode=0620", "gid=5",
			}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{
				"nosuid", "noexec", "nodev", "mode=1777",
				"size=65536k",
			}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		},
		Linux: &specs.Linux{
			Namespaces: ns, CgroupsPath: "/coco-test/" + "box",
			Resources:     &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			MaskedPaths:   []string{"/proc/kcore"},
			ReadonlyPaths: []string{"/proc/sys"},
		},
	}
}

type real struct {
	*virtcontainers.Pod
	t     *testing.T
	box   *virtcontainers.Container   // of a pod of one
	execs map[string]*process.Process // of box, which goes by ""
}

// makePod makes a real pod in dir; first may be nil.
func makePod(t *testing.T, dir string, s *specs.Spec, first *virtcontainers.ContainerRequest) real {
	t.Helper()
	testvm.Need(t, testvm.Root, testvm.QEMU, testvm.GuestImage, testvm.Busybox, testvm.Netns)
	rootfs(t, filepath.Join(dir, "rootfs"))
	cfg := configs.Default()
	cfg.Hypervisor.GuestDir = testvm.GuestDir()
	cfg.Runtime.StateDir, cfg.Runtime.LayerCache = filepath.Join(dir, "run"), filepath.Join(dir, "layers")
	cfg.Runtime.ScratchDir = filepath.Join(dir, "scratch")
	cfg.Runtime.Template = configs.TemplateOff
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	h, err := host.New(cfg, "", log)
	if err != nil {
		t.Fatal(err)
	}
	p, err := virtcontainers.CreatePod(t.Context(), virtcontainers.Options{
		ID: "box", Namespace: "test", Bundle: dir, Spec: s, Config: cfg, First: first, Host: h, Log: log,
	})
	if err != nil {
		t.Fatalf("CreatePod() = %v", err)
	}
	t.Cleanup(func() {
		for _, ph := range p.Phases() {
			t.Logf("%-24s %s", ph.Name, ph.Duration.Round(time.Millisecond/10))
		}
		start := time.Now()
		if err := p.Shutdown(context.Background()); err != nil {
			t.Errorf("Shutdown() = %v", err)
		}
		t.Logf("shutdown took %s", time.Since(start))
		for _, d := range []string{"run/*", "coco-state.json"} {
			if names, _ := filepath.Glob(filepath.Join(dir, d)); len(names) > 0 {
				t.Errorf("left: %q", names)
			}
		}
	})
	return real{p, t, nil, map[string]*process.Process{}}
}

// bootPod makes a real pod of one and starts its container.
func bootPod(t *testing.T, change func(*specs.Spec), args ...string) (real, stream.Streams) {
	t.Helper()
	dir, s := t.TempDir(), spec(args...)
	if change != nil {
		change(s)
	}
	first := &virtcontainers.ContainerRequest{ID: "box", Bundle: dir, Spec: s, Stdin: true, Stdout: true, Stderr: true}
	r := makePod(t, dir, s, first)
	c, st, err := r.CreateContainer(t.Context(), *first)
	if err != nil {
		t.Fatalf("CreateContainer() = %v", err)
	}
	r.box, r.execs[""] = c, c.Init()
	if _, err := c.Init().Start(t.Context()); err != nil {
		t.Fatalf("Start() = %v", err)
	}
	return r, st
}

func (r real) wait(exec string) process.ExitStatus {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	st, err := r.execs[exec].Wait(ctx)
	if err != nil {
		r.t.Fatalf("Wait(%q) = %v", exec, err)
	}
	return st
}

func (r real) exec(id string, tty bool, args ...string) stream.Streams {
	r.t.Helper()
	start := time.Now()
	req := virtcontainers.ExecRequest{ID: id, Process: &specs.Process{
		Args: args, Cwd: "/",
		Env: []string{"PATH=/bin"},
	}, Terminal: tty, Stdin: true, Stdout: true, Stderr: !tty}
	p, err := r.box.Exec(req)
	if err != nil {
		r.t.Fatalf("Exec() = %v", err)
	}
	r.execs[id] = p
	s, err := p.Start(r.t.Context())
	if err != nil {
		r.t.Fatalf("Start(%s) = %v", id, err)
	}
	r.t.Logf("exec of %s took %s", args[0], time.Since(start))
	return s
}

func read(t *testing.T, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Errorf("read: %v", err)
	}
	return string(b)
}

func TestRealEcho(t *testing.T) {
	r, s := bootPod(t, nil, "sh", "-c", "uname -r; hostname; echo err >&2; exit 7")
	out, errs := read(t, s.Stdout), read(t, s.Stderr)
	host, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	if out == "" || strings.HasPrefix(out, string(host)) {
		t.Errorf("uname -r in the container = %q, the host's is %q", out, host)
	}
	if errs != "err\n" {
		t.Errorf("stderr = %q", errs)
	}
	if st := r.wait(""); st.Code != 7 {
		t.Errorf("exit = %+v, want 7", st)
	}
}

func TestRealProcesses(t *testing.T) {
	hosts := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(hosts, []byte("10.1.2.3 there\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	r, s := bootPod(t, func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{
			Destination: "/etc/hosts", Type: "bind", Source: hosts,
			Options: []string{"rbind", "ro"},
		})
	}, "sleep", "1000")
	_ = s
	e := r.exec("e1", false, "sh", "-c", "cat /etc/hosts; ls -l /etc/hosts; exit 3")
	if out := read(t, e.Stdout); !strings.HasPrefix(out, "10.1.2.3 there\n-rw-r-----") {
		t.Errorf("the copied file = %q", out)
	}
	if st := r.wait("e1"); st.Code != 3 {
		t.Errorf("exit = %+v, want 3", st)
	}

	e = r.exec("tty", true, "sh", "-c", "read x; stty size; echo got $x")
	if err := r.execs["tty"].Resize(t.Context(), 91, 33); err != nil {
		t.Errorf("Resize() = %v", err)
	}
	if _, err := io.WriteString(e.Stdin, "word\n"); err != nil {
		t.Error(err)
	}
	if out := read(t, e.Stdout); !strings.Contains(out, "33 91\r\n") || !strings.Contains(out, "got word\r\n") {
		t.Errorf("terminal = %q", out)
	}
	r.wait("tty")

	e = r.exec("cat", false, "cat")
	const size = 8 << 20
	sum, start := sha256.New(), time.Now()
	go func() {
		block := make([]byte, 64<<10)
		for i := range block {
			block[i] = byte(i * 7)
		}
		for n := 0; n < size; n += len(block) {
			sum.Write(block)
			if _, err := e.Stdin.Write(block); err != nil {
				t.Errorf("stdin: %v", err)
				break
			}
		}
		if err := e.Stdin.Close(); err != nil {
			t.Errorf("close stdin: %v", err)
		}
	}()
	back := sha256.New()
	n, err := io.Copy(back, e.Stdout)
	if err != nil || n != size || string(back.Sum(nil)) != string(sum.Sum(nil)) {
		t.Errorf("cat gave %d bytes, %v; equal: %v", n, err, string(back.Sum(nil)) == string(sum.Sum(nil)))
	}
	t.Logf("8 MiB through cat in %s", time.Since(start))
	if st := r.wait("cat"); st.Code != 0 {
		t.Errorf("exit of cat = %+v", st)
	}

	if err := r.box.Pause(t.Context()); err != nil {
		t.Errorf("Pause() = %v", err)
	}
	if err := r.box.Resume(t.Context()); err != nil {
		t.Errorf("Resume() = %v", err)
	}
	if st, err := r.box.Stats(t.Context()); err != nil ||
		st.GetCgroupStats().GetMemoryStats().GetUsage().GetUsage() == 0 {
		t.Errorf("Stats() = %v, %v", st, err)
	}
	if err := r.box.Init().Kill(t.Context(), 9, true); err != nil {
		t.Errorf("Kill() = %v", err)
	}
	if st := r.wait(""); st.Code != 137 {
		t.Errorf("exit = %+v, want 137", st)
	}
	if _, err := r.box.Init().Delete(t.Context()); err != nil {
		t.Errorf("Delete() = %v", err)
	}
}

// A pod of several containers: a layer that is plugged while the VM runs, shared, unplugged with its
// last container, plugged again; a spoiled one; and the end of the VMM.
func TestRealPodOfMany(t *testing.T) {
	dir := t.TempDir()
	r := makePod(t, dir, spec("true"), nil)
	ctx := t.Context()
	create := func(id string, args ...string) (*virtcontainers.Container, stream.Streams, error) {
		return r.CreateContainer(ctx, virtcontainers.ContainerRequest{ID: id, Bundle: dir, Spec: spec(args...), Stdout: true})
	}
	run := func(id string) *virtcontainers.Container {
		t.Helper()
		c, s, err := create(id, "echo", id)
		if err != nil {
			t.Fatalf("CreateContainer(%s) = %v", id, err)
		}
		if _, err := c.Init().Start(ctx); err != nil {
			t.Fatalf("Start(%s) = %v", id, err)
		}
		if out := read(t, s.Stdout); out != id+"\n" {
			t.Errorf("%s says %q", id, out)
		}
		if st, err := c.Init().Wait(ctx); err != nil || st.Code != 0 {
			t.Errorf("Wait(%s) = %+v, %v", id, st, err)
		}
		return c
	}
	remove := func(c *virtcontainers.Container) {
		t.Helper()
		if _, err := c.Init().Delete(ctx); err != nil {
			t.Errorf("Delete(%s) = %v", c.Init(), err)
		}
	}
	one, two := run("one"), run("two")
	remove(one)
	remove(two)
	remove(run("three"))

	if c, _, err := create("none", "/does/not/exist"); err == nil {
		_, err = c.Init().Start(ctx)
		if err == nil {
			t.Error("a program that does not exist was started")
		}
		t.Logf("Start() = %v", err)
	} else {
		t.Logf("CreateContainer() = %v", err)
	}

	last, _, err := create("last", "sleep", "1000")
	if err != nil {
		t.Fatalf("CreateContainer() = %v", err)
	}
	if _, err := last.Init().Start(ctx); err != nil {
		t.Fatal(err)
	}
	vmm, err := os.FindProcess(r.PID())
	if err != nil {
		t.Fatal(err)
	}
	if err := vmm.Kill(); err != nil {
		t.Fatal(err)
	}
	wctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	st, err := last.Init().Wait(wctx)
	if err != nil || st.Code != 137 || !strings.Contains(st.Reason, "killed") {
		t.Errorf("exit after the VMM was killed = %+v, %v, want 137 with the reason", st, err)
	}
	t.Logf("reason: %s", st.Reason)
}
