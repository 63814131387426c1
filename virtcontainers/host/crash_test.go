// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package host_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/jail"
	"github.com/coco-shim/coco/hypervisor/launch"
	"github.com/coco-shim/coco/hypervisor/vmm"
	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/network"
	"github.com/coco-shim/coco/network/netns"
	"github.com/coco-shim/coco/virtcontainers"
	"github.com/coco-shim/coco/virtcontainers/boot"
	"github.com/coco-shim/coco/virtcontainers/host"
	"github.com/coco-shim/coco/virtcontainers/nic"
)

// A crash is rehearsed in a child, which makes a pod with everything real but the VMM (a sleep) and
// kills itself at one step.
const (
	crashDir   = "COCO_TEST_CRASH_DIR"
	crashStep  = "COCO_TEST_CRASH_STEP"
	crashNetNS = "COCO_TEST_CRASH_NETNS"
	// sleepFor marks the VMM among the processes of the machine.
	sleepFor = "98765.4321"
)

var crashSteps = []string{"make netns", "launch", "attach", "driver", "dial"}

func crash(step string) {
	if os.Getenv(crashStep) == step {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		time.Sleep(time.Hour) // not select {}: without cgo the runtime would call that a deadlock
	}
}

type crashingNetwork struct{ boot.Network }

func (n crashingNetwork) Make(path string) error {
	err := n.Network.Make(path)
	crash("make netns")
	return err
}

func (n crashingNetwork) Attach(ctx context.Context, netns string, standby bool,
	record func([]network.Redirect) error,
) (nic.Attachment, error) {
	a, err := n.Network.Attach(ctx, netns, standby, record)
	crash("attach")
	return a, err
}

// crashingFork forks as the host's driver does.
func crashingFork(ctx context.Context, p hypervisor.Place) (hypervisor.Process, error) {
	proc, err := launch.Start(ctx, launch.Options{NetNS: p.NetNS, Jail: &jail.Options{
		User: p.User, Processes: p.Processes, Devices: []string{"/dev/kvm"},
	}})
	crash("launch")
	return proc, err
}

type sleepKind struct{}

func (sleepKind) Name() string { return "sleep" }
func (sleepKind) Launch(ctx context.Context, spec hypervisor.VMSpec, p hypervisor.Process,
	_ string,
) (hypervisor.VM, error) {
	var files []*os.File
	for _, n := range spec.NICs {
		files = append(files, n.Tap...)
	}
	if err := p.Exec(ctx, []string{"/bin/sleep", sleepFor}, nil, files); err != nil {
		return nil, err
	}
	crash("driver")
	return sleepVM{p}, nil
}

type sleepVM struct{ hypervisor.Process }

func (v sleepVM) ID() string        { return "box" }
func (v sleepVM) Err() error        { return nil }
func (v sleepVM) Console() []string { return nil }
func (v sleepVM) Stop(context.Context) error {
	err := v.Kill()
	<-v.Done()
	return err
}

func (v sleepVM) Dial(context.Context, uint32) (net.Conn, error) {
	crash("dial")
	return nil, errors.New("no agent in a sleep")
}

// TestCrashChild is the child.
func TestCrashChild(t *testing.T) {
	dir := os.Getenv(crashDir)
	if dir == "" {
		t.Skip("is run by TestACrashAtAnyStepIsCleanedUp")
	}
	cfg := crashConfig(dir)
	h, err := host.New(cfg, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	h.Driver, h.Network = vmm.NewDriver(sleepKind{}, crashingFork), crashingNetwork{h.Network}
	s := spec("true")
	s.Linux.CgroupsPath = "/coco-crash-test/" + filepath.Base(dir)
	if ns := os.Getenv(crashNetNS); ns != "" {
		for i := range s.Linux.Namespaces {
			if s.Linux.Namespaces[i].Type == specs.NetworkNamespace {
				s.Linux.Namespaces[i].Path = ns
			}
		}
	}
	s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{
		Path: "/bin/sh",
		Args: []string{"sh", "-c", "cat > " + filepath.Join(dir, "poststop")},
	}}}
	_, err = virtcontainers.CreatePod(t.Context(), virtcontainers.Options{
		ID: "box", Namespace: "test",
		Bundle: filepath.Join(dir, "bundle"), Spec: s, Config: cfg, Host: h,
	})
	t.Logf("CreatePod() = %v", err)
}

func crashConfig(dir string) configs.Config {
	cfg := configs.Default()
	cfg.Hypervisor.Path, cfg.Hypervisor.Kernel, cfg.Hypervisor.Initrd = "/bin/sleep", "/bin/sleep", "/bin/sleep"
	cfg.Hypervisor.GuestDir = dir
	cfg.Runtime.StateDir, cfg.Runtime.LayerCache = filepath.Join(dir, "run"), filepath.Join(dir, "layers")
	cfg.Runtime.ScratchDir = filepath.Join(dir, "scratch")
	return cfg
}

func TestACrashAtAnyStepIsCleanedUp(t *testing.T) {
	testvm.Need(t, testvm.Root, testvm.Netns, testvm.Tap)
	for _, given := range []bool{false, true} {
		for _, step := range append(crashSteps, "never") {
			t.Run(fmt.Sprintf("%s, netns given %v", step, given), func(t *testing.T) {
				if given && step == "make netns" {
					t.Skip("none is made")
				}
				crashOnce(t, step, given)
			})
		}
	}
}

func crashOnce(t *testing.T, step string, given bool) {
	dir := t.TempDir()
	bundle := filepath.Join(dir, "bundle")
	if err := os.Mkdir(bundle, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestCrashChild$", "-test.v")
	cmd.Env = append(os.Environ(), crashDir+"="+dir, crashStep+"="+step)
	ns := filepath.Join(dir, "given")
	if given {
		makeNetNS(t, ns)
		cmd.Env = append(cmd.Env, crashNetNS+"="+ns)
	}
	out, err := cmd.CombinedOutput()
	if killed := err != nil && strings.Contains(err.Error(), "killed"); killed != (step != "never") {
		t.Fatalf("the child: %v\n%s", err, out)
	}
	if step == "never" && !bytes.Contains(out, []byte("no agent in a sleep")) {
		t.Errorf("the child said:\n%s", out)
	}
	for range 2 {
		if err := virtcontainers.Cleanup(t.Context(), bundle); err != nil {
			t.Errorf("Cleanup() = %v", err)
		}
	}
	checkNothingLeft(t, dir, ns, given)
	_, serr := os.Stat(filepath.Join(dir, "poststop"))
	if due := step != "make netns" && step != "launch"; due != (serr == nil) {
		t.Errorf("poststop hook ran: %v, want %v", serr == nil, due)
	}
}

func makeNetNS(t *testing.T, path string) {
	t.Helper()
	if err := netns.New(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Delete(path); err != nil {
			t.Error(err)
		}
	})
	err := netns.In(path, func() error {
		return exec.CommandContext(t.Context(), "sh", "-c",
			"ip link add eth0 type veth peer name peer0 && ip addr add 10.9.8.7/24 dev eth0 && ip link set eth0 up").Run()
	})
	if err != nil {
		t.Fatal(err)
	}
}

func checkNothingLeft(t *testing.T, dir, ns string, given bool) {
	t.Helper()
	var left []string
	for _, p := range []string{"bundle/*", "run/*"} {
		names, _ := filepath.Glob(filepath.Join(dir, p))
		left = append(left, names...)
	}
	cgs, _ := filepath.Glob("/sys/fs/cgroup/*/coco-crash-test")
	more, _ := filepath.Glob("/sys/fs/cgroup/coco-crash-test")
	left = append(append(left, cgs...), more...)
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir+"/run") {
			left = append(left, line)
		}
	}
	left = append(left, sleepers()...)
	if given {
		err := netns.In(ns, func() error {
			for _, c := range [][]string{{"ip", "-o", "link"}, {"tc", "qdisc", "show", "dev", "eth0"}} {
				out, err := exec.CommandContext(t.Context(), c[0], c[1:]...).CombinedOutput()
				if err != nil {
					return fmt.Errorf("%v: %w: %s", c, err, out)
				}
				if bytes.Contains(out, []byte("coco")) || bytes.Contains(out, []byte("ingress")) {
					left = append(left, string(out))
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	if len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// sleepers lists the living VMMs of these tests; they get a moment, because a parent-death signal is
// delivered after the parent was reaped.
func sleepers() []string {
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		var found []string
		dirs, _ := filepath.Glob("/proc/[0-9]*")
		for _, d := range dirs {
			if b, err := os.ReadFile(filepath.Join(d, "cmdline")); err == nil && bytes.Contains(b, []byte(sleepFor)) {
				found = append(found, string(b))
			}
		}
		if len(found) == 0 || time.Now().After(deadline) {
			return found
		}
	}
}
