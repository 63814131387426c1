// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package docker runs containers in microVMs with `docker run --runtime io.containerd.coco.v2`, through a real dockerd
// on a real containerd, with both of Docker's ways to store images.
package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/internal/testimage"
	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/tests/frontends"
	"github.com/coco-shim/coco/tests/harness"
)

// perCommand bounds one docker command; a VM boot under TCG takes seconds.
const perCommand = 90 * time.Second

const image = "busybox:coco"

// Files in the directory of a daemon.
const (
	archive = "busybox.tar" // the image, as docker save writes it
	pinned  = "pinned.toml" // the configuration of the runtime of that name
)

func TestMain(m *testing.M) {
	harness.AdoptOrphans()
	if err := harness.UseTemplates(configs.TemplatePrivate); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.Exit(code)
}

// daemon is a private dockerd.
type daemon struct {
	t          *testing.T
	dir        string
	socket     string
	bin        string // directory of Docker's programs
	containerd *harness.Daemon
	namespace  string // of containerd
}

// start brings up containerd and dockerd. snapshotter is whether images live in containerd's snapshotter; otherwise
// in Docker's own overlay2.
func start(t *testing.T, snapshotter bool, bridge, address string) *daemon {
	t.Helper()
	testvm.Need(t, testvm.Docker)
	return startVersion(t, "docker", snapshotter, bridge, address)
}

// startVersion does so with the Docker of a directory of the cache.
func startVersion(t *testing.T, version string, snapshotter bool, bridge, address string) *daemon {
	t.Helper()
	testvm.Need(t, testvm.Root, testvm.Netns, testvm.Tap, testvm.QEMU, testvm.GuestImage)
	dir, err := os.MkdirTemp("/var/tmp", "coco-docker-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	c, err := harness.Start(t.Context(), "2.1", dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	run(t, "ip", "link", "add", bridge, "type", "bridge")
	t.Cleanup(func() { run(t, "ip", "link", "delete", bridge) })
	run(t, "ip", "address", "add", address, "dev", bridge)
	run(t, "ip", "link", "set", bridge, "up")
	d := &daemon{
		t: t, dir: dir, socket: filepath.Join(dir, "d.sock"), bin: filepath.Dir(testvm.Unpacked(version, "dockerd")),
		containerd: c, namespace: bridge,
	}
	config := fmt.Sprintf(
		`{"data-root": %q, "exec-root": %q, "pidfile": %q, "hosts": ["unix://%s"], "containerd": %q, "bridge": %q,
 "features": {"containerd-snapshotter": %t}, "default-ulimits": {"nofile": {"Name": "nofile", "Hard": 4096, "Soft": 4096}},
 "runtimes": {"coco": {"runtimeType": "io.containerd.coco.v2"},
  "pinned": {"runtimeType": "io.containerd.coco.v2", "options": {"ConfigPath": %q}}},
 "containerd-namespace": %q, "containerd-plugins-namespace": %q}`,
		filepath.Join(dir, "docker"), filepath.Join(dir, "exec"), filepath.Join(dir, "d.pid"), d.socket, c.Socket(),
		bridge, snapshotter, filepath.Join(dir, pinned),
		bridge, bridge+"-plugins")
	if !snapshotter {
		config = strings.Replace(config, "{", `{"storage-driver": "overlay2", `, 1)
	}
	if err := os.WriteFile(filepath.Join(dir, "daemon.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	d.serve()
	archive := filepath.Join(dir, archive)
	im, err := testimage.Busybox("")
	if err == nil {
		err = im.WriteFile(archive, "docker.io/library/"+image)
	}
	if err != nil {
		t.Fatal(err)
	}
	d.must("load", "-i", archive)
	return d
}

// serve starts dockerd and waits until it answers.
func (d *daemon) serve() {
	d.t.Helper()
	// A dockerd that switches forwarding on drops what it does not forward, on the whole host and also after its end:
	// pods of tests/k8s then do not reach each other.
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o600); err != nil {
		d.t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(d.dir, "dockerd.log"))
	if err != nil {
		d.t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(d.bin, "dockerd"), "--config-file", filepath.Join(d.dir, "daemon.json"))
	cmd.Env = append(os.Environ(), "PATH="+d.bin+":/usr/sbin:/usr/bin:/sbin:/bin")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	_ = log.Close() // dockerd has its own
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	d.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			_ = cmd.Process.Kill()
			d.t.Error("dockerd ignored SIGTERM")
		}
		if d.t.Failed() {
			text, _ := os.ReadFile(log.Name())
			d.t.Logf("dockerd's log ends with: %s", text[max(0, len(text)-3000):])
			text, _ = os.ReadFile(filepath.Join(d.dir, "containerd.log"))
			var ours []string
			for line := range strings.Lines(string(text)) {
				if strings.Contains(line, "coco") && !strings.Contains(line, "level=debug") {
					ours = append(ours, line)
				}
			}
			d.t.Logf("containerd's log: %s", strings.Join(ours[max(0, len(ours)-20):], ""))
		}
	})
	for deadline := time.Now().Add(60 * time.Second); ; { // a client has no event to wait for
		if _, _, code := d.docker("version"); code == 0 {
			return
		}
		select {
		case <-ended:
			d.t.Fatal("dockerd ended at start")
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			d.t.Fatal("dockerd does not answer")
		}
	}
}

// docker runs a docker command.
func (d *daemon) docker(args ...string) (stdout, stderr string, code int) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), perCommand)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(d.bin, "docker"),
		append([]string{"-H", "unix://" + d.socket}, args...)...)
	cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+d.dir)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &errs, 5*time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		d.t.Fatalf("docker %s: %v, %v: %s", strings.Join(args, " "), err, ctx.Err(), errs.String())
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// must is docker for a command that has to succeed.
func (d *daemon) must(args ...string) string {
	d.t.Helper()
	out, errs, code := d.docker(args...)
	if code != 0 {
		d.t.Fatalf("docker %s: exit %d: %s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

func run(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// TestDockerRunsContainersInMicroVMs goes through what a user of Docker does first.
func TestDockerRunsContainersInMicroVMs(t *testing.T) {
	for i, store := range []string{"overlay2", "containerd-snapshotter"} {
		t.Run(store, func(t *testing.T) {
			before, err := harness.TakeTraces()
			if err != nil {
				t.Fatal(err)
			}
			t.Run("work", func(t *testing.T) {
				d := start(t, i == 1, fmt.Sprintf("cocodk%d", i), fmt.Sprintf("10.213.%d.1/24", i))
				checkForeground(t, d)
				checkService(t, d)
				checkPolicy(t, d, i == 0)
				if i == 0 { // how images are stored makes no difference to it
					checkNetworks(t, d)
					checkNoNetworkAtFirst(t, d)
					checkNoCommand(t, d)
					checkSharing(t, d)
					checkVolumes(t, d)
					checkNames(t, d)
					checkActions(t, d, frontends.QuickWork(frontends.Docker))
				}
			})
			left, err := harness.Leaks(t.Context(), before, 10*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range left {
				if !strings.HasPrefix(l, "cgroup ") || !strings.HasSuffix(l, "/docker") { // one for all containers, kept by Docker
					t.Errorf("left behind: %s", l)
				}
			}
		})
	}
}

// checkForeground runs one command: its output, its errors and its exit code come through.
func checkForeground(t *testing.T, d *daemon) {
	t.Helper()
	out, errs, code := d.docker("run", "--rm", "--runtime", "io.containerd.coco.v2", "-e", "WORD=hello",
		"-w", "/tmp", image,
		"sh", "-c", "echo $WORD from $PWD; uname -r; echo oops >&2; exit 7")
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	if code != 7 || !strings.HasPrefix(out, "hello from /tmp\n") || !strings.Contains(errs, "oops") ||
		strings.Contains(out, strings.TrimSpace(string(kernel))) {
		t.Fatalf("docker run: exit %d, %q, %q; want 7, hello and a kernel other than %s", code, out, errs, kernel)
	}
}

// checkService runs a web server behind a published port, and does with it what one does.
func checkService(t *testing.T, d *daemon) {
	t.Helper()
	d.must("run", "-d", "--name", "web", "--runtime", "coco", "-p", "127.0.0.1::80", "--memory", "256m", image,
		"sh", "-c", "trap 'echo bye; exit 5' TERM; mkdir -p /www; echo served >/www/index.html; httpd -f -p 80 -h /www & "+
			"echo ready; wait; wait")
	addr := strings.TrimSpace(strings.Split(d.must("port", "web", "80"), "\n")[0])
	if got := d.must("exec", "web", "cat", "/etc/hostname"); strings.TrimSpace(got) != strings.TrimSpace(d.must("inspect",
		"-f", "{{.Config.Hostname}}", "web")) {
		t.Errorf("hostname in the container = %q", got)
	}
	if out, _, code := d.docker("exec", "-e", "A=b", "web", "sh", "-c", "echo $A; exit 3"); code != 3 || out != "b\n" {
		t.Errorf("docker exec: exit %d, %q, want 3 and b", code, out)
	}
	if got, err := harness.Get("http://" + addr + "/"); err != nil || got != "served\n" {
		t.Errorf("GET of the published port %s = %q, %v", addr, got, err)
	}
	if shim, vmm, err := harness.Pids(strings.TrimSpace(d.must("inspect", "-f", "{{.Id}}", "web"))); err != nil {
		t.Error(err)
	} else if err := harness.ShimConfined(shim, vmm); err != nil {
		t.Errorf("the shim, pid %d: %v", shim, err)
	} else if _, err := harness.Confined(vmm); err != nil {
		t.Errorf("the VMM, pid %d: %v", vmm, err)
	}
	gateway := strings.TrimSpace(d.must("inspect", "-f", "{{.NetworkSettings.Gateway}}", "web"))
	if _, errs, code := d.docker("exec", "web", "ping", "-c", "1", "-W", "5", gateway); code != 0 {
		t.Errorf("the container does not reach %s: %s", gateway, errs)
	}
	if got := d.must("logs", "web"); !strings.Contains(got, "ready") {
		t.Errorf("docker logs = %q", got)
	}
	if out, errs, code := d.docker("top", "web", "-o", "pid,comm"); code == 0 ||
		!strings.Contains(errs, "exec CONTAINER ps") {
		t.Errorf("docker top: exit %d, %q, %q; want a refusal with the way out", code, out, errs)
	}
	if got := d.must("ps", "--format", "{{.Names}} {{.State}}"); got != "web running\n" {
		t.Errorf("docker ps = %q", got)
	}
	d.must("stop", "-t", "20", "web")
	if got := d.must("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "web"); got != "exited 5\n" {
		t.Errorf("after docker stop: %q, want exited 5", got)
	}
	if got := d.must("logs", "web"); !strings.Contains(got, "bye") {
		t.Errorf("docker logs after the end = %q", got)
	}
	d.must("rm", "web")
}
