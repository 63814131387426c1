// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package volumes

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/virtcontainers"
)

// daemons are the programs that serve live files: the host's, and that of Debian 13.
func daemons(t *testing.T, test func(t *testing.T, change func(*configs.Config))) {
	live := func(path string) func(*configs.Config) {
		return func(c *configs.Config) { c.Runtime.HostPath, c.Runtime.Virtiofsd = "live", path }
	}
	t.Run("installed", func(t *testing.T) {
		testvm.Need(t, testvm.Virtiofsd)
		test(t, live(""))
	})
	t.Run("1.13", func(t *testing.T) {
		testvm.Need(t, testvm.Virtiofsd13)
		test(t, live(testvm.Unpacked("virtiofsd-1.13", "virtiofsd")))
	})
}

// servers lists the processes that serve a pod's live files: the program's two, once it is confined.
func servers(dir string) (pids []int) {
	names, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, n := range names {
		line, err := os.ReadFile(n)
		if err != nil || !bytes.Contains(line, []byte(filepath.Join(dir, "run"))) ||
			!bytes.Contains(line, []byte("virtiofsd")) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(n)))
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids
}

// nothingServed expects that no process and no mount of a pod is left; a moment is given to those that
// end with another.
func nothingServed(t *testing.T, dir string) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); len(servers(dir)) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("left: processes %v", servers(dir))
			break
		}
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if strings.Contains(string(table), dir+"/run") {
		t.Errorf("left: mounts\n%s", table)
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	must(t, os.WriteFile(name, []byte(text), 0o644))
}

// The container sees what the host writes, and the other way round; a read-only mount refuses writes; a file
// is a file; claims that the host has mounted are live as well. The host has no mount of it, at any time.
func TestLiveFilesOfTheHost(t *testing.T) { daemons(t, liveFiles) }

func liveFiles(t *testing.T, change func(*configs.Config)) {
	p := newPod(t, change)
	t.Cleanup(func() { nothingServed(t, p.dir) })
	host := filepath.Join(p.dir, "host")
	must(t, os.MkdirAll(filepath.Join(host, "sub"), 0o755))
	write(t, filepath.Join(host, "f"), "one\n")
	write(t, filepath.Join(host, "sub/g"), "two\n")
	must(t, os.Chown(filepath.Join(host, "sub/g"), 7, 8))
	other := filepath.Join(p.dir, "other") // a mount within what is shared
	must(t, os.MkdirAll(other, 0o755))
	p.tmpfs(other, "mode=0755")
	write(t, filepath.Join(other, "deep"), "three\n")
	inner := filepath.Join(host, "inner")
	must(t, os.MkdirAll(inner, 0o755))
	must(t, unix.Mount(other, inner, "", unix.MS_BIND, ""))
	t.Cleanup(func() { must(t, unix.Unmount(inner, 0)) })
	before, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)

	mounts := []specs.Mount{bind(host, "/h", "rw"), bind(host, "/r", "ro"), bind(filepath.Join(host, "f"), "/file", "rw")}
	if got := p.run(mounts, `cat /h/f /r/f /file /h/sub/g /h/inner/deep; stat -c '%u:%g' /h/sub/g; ls /h
		echo no >/r/new || echo read-only; echo of the guest >/h/new; cat /r/new; mkdir /h/dir; echo x >/h/dir/x
		rm /h/sub/g; mv /h/dir /h/moved`); got != "one\none\none\ntwo\nthree\n7:8\nf\ninner\nsub\nread-only\nof the guest\n" {
		t.Errorf("the container says %q", got)
	}
	if b, err := os.ReadFile(filepath.Join(host, "new")); string(b) != "of the guest\n" {
		t.Errorf("the host has %q, %v", b, err)
	}
	if _, err := os.Stat(filepath.Join(host, "moved/x")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(host, "sub/g")); !os.IsNotExist(err) {
		t.Errorf("what the container has removed: %v", err)
	}
	_, out, done := p.start(mounts,
		`echo started >/h/started; until test -e /h/go; do sleep 0.1; done; until grep -q changed /r/f && grep -q changed /file; do sleep 0.1; done; cat /file`, nil)
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(host, "started")); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the container does not start")
		}
	}
	write(t, filepath.Join(host, "f"), "changed\n")
	write(t, filepath.Join(host, "go"), "")
	if code := done(); code != 0 || out.String() != "changed\n" {
		t.Errorf("of a change on the host the container says %q, exit %d", out, code)
	}
	claim := filepath.Join(p.make("csi", "pvc-1", 0o755), "mount")
	must(t, os.MkdirAll(claim, 0o755))
	p.tmpfs(claim, "mode=0755")
	p.run([]specs.Mount{bind(claim, "/claim", "rw")}, "echo kept >/claim/f")
	if b, err := os.ReadFile(filepath.Join(claim, "f")); string(b) != "kept\n" {
		t.Errorf("the claim has %q, %v", b, err)
	}
	// No mount of the host's has come, but for the claim's; and what is served is mounted by nobody else.
	after, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if n := strings.Count(string(after), "\n") - strings.Count(string(before), "\n"); n != 1 {
		t.Errorf("%d mounts have come to the host:\n%s", n, after)
	}
	pids := servers(p.dir)
	if len(pids) == 0 {
		t.Error("no process serves")
	}
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if err != nil || !strings.Contains(string(b), "/coco-test/volumes") {
			t.Errorf("process %d is in the cgroups\n%s%v", pid, b, err)
		}
	}
	m := p.Metrics(t.Context()).String()
	for _, line := range strings.Split(m, "\n") {
		if strings.HasPrefix(line, "coco_vmm_") && strings.Contains(line, "memory") {
			t.Log(line)
		}
	}
	fifo := filepath.Join(p.dir, "fifo")
	must(t, unix.Mkfifo(fifo, 0o600))
	p.refused([]specs.Mount{bind(fifo, "/x")}, "a named pipe or a device", nil)
	p.refused([]specs.Mount{bind("/proc/sys", "/x")}, "a view of the host's kernel", nil)
	p.refused([]specs.Mount{bind(filepath.Join(p.dir, "nowhere"), "/x")}, "does not exist", nil)
	must(t, p.Shutdown(t.Context()))
	nothingServed(t, p.dir)
	if b, err := os.ReadFile(filepath.Join(host, "new")); string(b) != "of the guest\n" {
		t.Errorf("after the pod the host has %q, %v", b, err)
	}
}

// When its server is killed the pod ends, and says so.
func TestAPodWhoseFilesAreGoneEnds(t *testing.T) {
	daemons(t, func(t *testing.T, change func(*configs.Config)) {
		p := newPod(t, change)
		host := t.TempDir()
		id, _, _ := p.start([]specs.Mount{bind(host, "/h")}, "touch /h/up; sleep 1000", nil)
		pids := servers(p.dir)
		if len(pids) == 0 {
			t.Fatal("no process serves")
		}
		must(t, unix.Kill(pids[len(pids)-1], unix.SIGKILL))
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c, err := p.Container(id)
		must(t, err)
		x, err := c.Init().Wait(ctx)
		if err != nil || x.Code != 137 ||
			!strings.Contains(x.Reason, "virtiofsd, which serves the live files of the host, ended") {
			t.Errorf("Wait() = %+v, %v", x, err)
		}
		t.Logf("reason: %s", x.Reason)
		must(t, p.Shutdown(t.Context()))
		nothingServed(t, p.dir)
	})
}

// childDir makes a test program the shim of a pod in that directory.
const childDir = "COCO_TEST_LIVE_DIR"

func TestLiveChild(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		t.Skip("is run by TestNothingIsLeftOfAPodWhoseShimIsKilled")
	}
	p := newPodIn(t, dir, func(c *configs.Config) {
		c.Runtime.HostPath, c.Runtime.Virtiofsd = "live", os.Getenv("COCO_TEST_VIRTIOFSD")
	})
	p.start([]specs.Mount{bind(filepath.Join(dir, "host"), "/h")}, "touch /h/up; sleep 1000", nil)
	time.Sleep(patience)
}

func TestNothingIsLeftOfAPodWhoseShimIsKilled(t *testing.T) {
	testvm.Need(t, testvm.Root, testvm.QEMU, testvm.GuestImage, testvm.Busybox, testvm.Netns)
	daemons(t, func(t *testing.T, change func(*configs.Config)) {
		var cfg configs.Config
		change(&cfg)
		dir := podDir(t)
		must(t, os.Mkdir(filepath.Join(dir, "host"), 0o755))
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestLiveChild$", "-test.v")
		cmd.Env = append(os.Environ(), childDir+"="+dir, "COCO_TEST_VIRTIOFSD="+cfg.Runtime.Virtiofsd)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		must(t, cmd.Start())
		up := filepath.Join(dir, "host/up")
		for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
			if _, err := os.Stat(up); err == nil {
				break
			}
			if time.Now().After(deadline) {
				_ = cmd.Process.Kill()
				_ = cmd.Wait() // killed
				t.Fatalf("the container does not start:\n%s", &out)
			}
		}
		if len(servers(dir)) == 0 {
			t.Error("no process serves")
		}
		must(t, cmd.Process.Kill())
		_ = cmd.Wait() // killed
		for range 2 {
			if err := virtcontainers.Cleanup(t.Context(), dir); err != nil {
				t.Errorf("Cleanup() = %v", err)
			}
		}
		nothingServed(t, dir)
		var left []string
		for _, g := range []string{"run/*", "coco-state.json"} {
			names, _ := filepath.Glob(filepath.Join(dir, g))
			left = append(left, names...)
		}
		if len(left) > 0 {
			t.Errorf("left: %q", left)
		}
		if _, err := os.Stat(up); err != nil {
			t.Error(fmt.Errorf("the clean-up took a file of the host: %w", err))
		}
	})
}

// A bind mount of ctr's or Docker's is as live; without one the VM has nothing of the host.
func TestABindMountOfAPersonIsLive(t *testing.T) {
	testvm.Need(t, testvm.Root, testvm.QEMU, testvm.GuestImage, testvm.Busybox, testvm.Netns, testvm.Virtiofsd)
	for _, with := range []bool{true, false} {
		dir, host := podDir(t), t.TempDir()
		rootfs(t, filepath.Join(dir, "rootfs"))
		write(t, filepath.Join(host, "f"), "of the host\n")
		var mounts []specs.Mount
		script := "mount | grep -c virtiofs; true"
		if with {
			mounts, script = []specs.Mount{bind(host, "/h")}, "cat /h/f; echo back >/h/g"
		}
		s := spec(mounts, "sh", "-c", script)
		s.Annotations = nil
		cfg, h, log := machine(t, dir, func(*configs.Config) {})
		first := &virtcontainers.ContainerRequest{ID: "one", Bundle: dir, Spec: s, Stdout: true}
		p, err := virtcontainers.CreatePod(t.Context(), virtcontainers.Options{
			ID: "one", Namespace: "test", Bundle: dir, Spec: s, Config: cfg, Host: h, Log: log, First: first,
		})
		must(t, err)
		c, st, err := p.CreateContainer(t.Context(), *first)
		must(t, err)
		if got := len(servers(dir)) > 0; got != with {
			t.Errorf("with a mount %v: files are served: %v", with, got)
		}
		_, err = c.Init().Start(t.Context())
		must(t, err)
		out, err := io.ReadAll(st.Stdout)
		if want := map[bool]string{true: "of the host\n", false: "0\n"}[with]; err != nil || string(out) != want {
			t.Errorf("the container says %q, %v", out, err)
		}
		if _, err := os.Stat(filepath.Join(host, "g")); (err == nil) != with {
			t.Errorf("with a mount %v: %v", with, err)
		}
		must(t, p.Shutdown(t.Context()))
		nothingServed(t, dir)
	}
}
