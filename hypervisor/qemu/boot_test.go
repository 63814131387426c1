// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/jail"
	"github.com/coco-shim/coco/hypervisor/launch"
	"github.com/coco-shim/coco/internal/testvm"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == launch.Arg {
		fmt.Fprintln(os.Stderr, launch.Main())
		os.Exit(125)
	}
	goleak.VerifyTestMain(m)
}

// testInitrd is the guest image's initramfs with the init of testdata on top: the kernel unpacks
// concatenated archives one after the other.
var testInitrd = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "coco-init")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	exe := filepath.Join(dir, "init")
	build := exec.Command("go", "build", "-o", exe, "./testdata/init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build test init: %w: %s", err, out)
	}
	base, err := os.ReadFile(filepath.Join(testvm.GuestDir(), "initrd.img"))
	if err != nil {
		return nil, err
	}
	init, err := os.ReadFile(exe)
	if err != nil {
		return nil, err
	}
	b := bytes.NewBuffer(base)
	cpioEntry(b, "init", 0o100755, init)
	cpioEntry(b, "TRAILER!!!", 0, nil)
	return b.Bytes(), nil
})

// cpioEntry appends a file in "newc" format; Linux, Documentation/driver-api/early-userspace.
func cpioEntry(b *bytes.Buffer, name string, mode int, data []byte) {
	pad := func() { b.Write(make([]byte, -b.Len()&3)) }
	pad()
	fmt.Fprintf(b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", 9999, mode, 0, 0, 1, 0, len(data), 0, 0,
		0, 0, len(name)+1, 0)
	b.WriteString(name + "\x00")
	pad()
	b.Write(data)
	pad()
}

// vmSpec describes a small VM with the test init.
func vmSpec(t testing.TB) hypervisor.VMSpec {
	t.Helper()
	testvm.Need(t, testvm.QEMU, testvm.GuestImage)
	initrd, err := testInitrd()
	if err != nil {
		t.Fatal(err)
	}
	f := tempFile(t, initrd)
	kernel, err := os.Open(filepath.Join(testvm.GuestDir(), "vmlinux"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = kernel.Close() })
	return hypervisor.VMSpec{
		ID: strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-")), Machine: "q35",
		CPU: hypervisor.CPU{Count: 1}, MemoryMiB: 256, BlockBus: hypervisor.BlockSCSI, BootTimeout: 60 * time.Second,
		Boot: hypervisor.Boot{
			Kernel: kernel, Initrd: f,
			Cmdline: "console=ttyS0 quiet panic=-1 reboot=t scsi_mod.scan=none cgroup_no_v1=all",
		},
	}
}

func tempFile(t testing.TB, data []byte) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "data")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := f.Chmod(0o644); err != nil { // as a guest image is installed
		t.Fatal(err)
	}
	return f
}

func testDriver(t testing.TB) *Driver {
	t.Helper()
	path, err := exec.LookPath("qemu-system-x86_64")
	if p := os.Getenv("COCO_TEST_QEMU"); p != "" {
		path, err = p, nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return New(Options{Path: path, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
}

func launched(t testing.TB) *launch.Process {
	t.Helper()
	testvm.Need(t, testvm.Root)
	p, err := launch.Start(t.Context(), launch.Options{Jail: &jail.Options{User: 1_900_077_776}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Kill() // usually dead by now
		<-p.Done()
	})
	return p
}

// boot launches a VM and stops it after the test.
func boot(t testing.TB, spec hypervisor.VMSpec) (*machine, *launch.Process) {
	t.Helper()
	p := launched(t)
	vm, err := launchIn(t, testDriver(t), spec, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := vm.Stop(ctx); err != nil {
			t.Errorf("Stop() = %v", err)
		}
	})
	return vm.(*machine), p
}

func dial(t testing.TB, vm hypervisor.VM, port uint32) net.Conn {
	t.Helper()
	c, err := vm.Dial(t.Context(), port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// tell gives the test init a command and returns its answer: how long it took inside, and
// what it said.
func tell(t testing.TB, vm hypervisor.VM, line string) (time.Duration, string) {
	t.Helper()
	c := dial(t, vm, 1025)
	if _, err := fmt.Fprintln(c, line); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	us, text, _ := strings.Cut(strings.TrimSpace(string(answer)), " ")
	text, ok := strings.CutSuffix(text, " <nil>")
	if !ok {
		t.Fatalf("guest command %q: %s", line, text)
	}
	d, err := time.ParseDuration(us + "us")
	if err != nil {
		t.Fatal(err)
	}
	return d, text
}

func deadError(t *testing.T, err error) *hypervisor.DeadError {
	t.Helper()
	var dead *hypervisor.DeadError
	if !errors.As(err, &dead) {
		t.Fatalf("error = %v, want a DeadError", err)
	}
	return dead
}

func TestAVMBootsAnswersAndStopsWithoutATrace(t *testing.T) {
	spec := vmSpec(t)
	before := openFiles(t)
	start := time.Now()
	vm, p := boot(t, spec)
	impatientDial(t, vm)
	c := dial(t, vm, 1024)
	t.Logf("launch to answer: %v, QEMU %s", time.Since(start).Round(time.Millisecond), vm.qmp.Version())
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || line != "hello\n" {
		t.Errorf("echo = %q, %v", line, err)
	}
	if _, err := vm.Dial(t.Context(), 4711); err == nil || !strings.Contains(err.Error(), "nobody listens") {
		t.Errorf("Dial() of a port without a listener = %v", err)
	}
	if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.PID())); err != nil ||
		!strings.HasPrefix(string(comm), "qemu") {
		t.Errorf("process %d is %q, %v, want QEMU", p.PID(), comm, err)
	}
	for range 2 {
		if err := vm.Stop(t.Context()); err != nil {
			t.Errorf("Stop() = %v", err)
		}
	}
	<-p.Done()
	if got := deadError(t, vm.Err()); got.Reason != "stopped on request" || got.Phase != hypervisor.PhaseRun {
		t.Errorf("Err() = %v", got)
	}
	_ = c.Close() // its VM is gone
	if after := openFiles(t); after > before {
		t.Errorf("open files = %d, want %d as before", after, before)
	}
}

// impatientDial gives up while the VM boots: the error names the phase, and the VM goes on.
func impatientDial(t *testing.T, vm hypervisor.VM) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := vm.Dial(ctx, 1024)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Dial() = %v, want the context's error", err)
	}
	if got := deadError(t, err); got.Phase != hypervisor.PhaseKernel {
		t.Errorf("phase = %s, want kernel", got.Phase)
	}
}

func TestKillingTheVMMIsNoticedAtOnceInEveryPhase(t *testing.T) {
	for _, phase := range []hypervisor.Phase{hypervisor.PhaseKernel, hypervisor.PhaseRun} {
		t.Run(string(phase), func(t *testing.T) {
			vm, p := boot(t, vmSpec(t))
			if phase == hypervisor.PhaseRun {
				dial(t, vm, 1024)
			}
			dialed := make(chan error, 1)
			go func() {
				c, err := vm.Dial(context.Background(), 1025)
				if err == nil { // the kill may come later
					_, err = c.Read(make([]byte, 1))
					_ = c.Close()
				}
				dialed <- err
			}()
			if err := unix.Kill(p.PID(), unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			<-vm.Done()
			if d := time.Since(start); d > 500*time.Millisecond {
				t.Errorf("Done() came %v after the kill", d)
			}
			if err := <-dialed; err == nil {
				t.Error("Dial() = nil for a dead VM")
			}
			if got := deadError(t, vm.Err()); got.Reason != "VMM ended: signal: killed" || got.Phase != phase {
				t.Errorf("Err() = %v, want phase %s, signal: killed", got, phase)
			}
			if _, err := vm.PlugBlock(t.Context(), hypervisor.Block{ID: "a", File: tempFile(t, nil)}); err == nil ||
				!strings.Contains(err.Error(), "signal: killed") {
				t.Errorf("PlugBlock() = %v, want the VM's end", err)
			}
		})
	}
}

func TestBootsThatFailSayWhereAndWhy(t *testing.T) {
	tests := []struct {
		name   string
		damage func(*hypervisor.VMSpec)
		phase  hypervisor.Phase
		want   string
	}{
		{
			"init exits", func(s *hypervisor.VMSpec) { s.Boot.Cmdline += " test.exit" }, hypervisor.PhaseKernel,
			"the guest's kernel panicked: Attempted to kill init! exitcode=0x00000300",
		},
		{"the agent is silent", func(s *hypervisor.VMSpec) {
			s.Boot.Cmdline += " test.silent"
			s.BootTimeout = 3 * time.Second
		}, hypervisor.PhaseKernel, "the agent did not answer within 3s"},
		{
			"not a kernel", func(s *hypervisor.VMSpec) { s.Boot.Kernel = s.Boot.Initrd }, hypervisor.PhaseVMM,
			"exit status 1 (it closed",
		},
		{
			"too little memory", func(s *hypervisor.VMSpec) { s.MemoryMiB = minMemoryMiB }, hypervisor.PhaseKernel,
			"64 MiB of memory",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			spec := vmSpec(t)
			tt.damage(&spec)
			p := launched(t)
			vm, err := launchIn(t, testDriver(t), spec, p)
			if err == nil {
				_, err = vm.Dial(t.Context(), 1024)
			}
			<-p.Done() // Launch and the failed boot leave no process
			if err == nil {
				t.Fatal("the boot succeeded")
			}
			t.Log(err)
			got := deadError(t, err)
			if got.Phase != tt.phase || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v, want phase %s and %q", err, tt.phase, tt.want)
			}
		})
	}
}

func TestAGuestThatRestartsIsReported(t *testing.T) {
	vm, _ := boot(t, vmSpec(t))
	c := dial(t, vm, 1025)
	if _, err := fmt.Fprintln(c, "restart"); err != nil {
		t.Fatal(err)
	}
	<-vm.Done()
	if got := deadError(t, vm.Err()); got.Reason != "the guest crashed or restarted itself" ||
		got.Phase != hypervisor.PhaseRun {
		t.Errorf("Err() = %v, want that it restarted itself", got)
	}
}

func TestDisksColdAndHotOnBothBuses(t *testing.T) {
	for _, bus := range []hypervisor.BlockBus{hypervisor.BlockSCSI, hypervisor.BlockBlk} {
		t.Run(string(bus), func(t *testing.T) {
			cold, hot := bytes.Repeat([]byte("cold"), 1<<18), bytes.Repeat([]byte("hot!"), 1<<18)
			spec := vmSpec(t)
			spec.BlockBus, spec.HotplugPorts = bus, 3
			spec.Blocks = []hypervisor.Block{{ID: "cold", File: readOnly(t, cold), ReadOnly: true}}
			vm, _ := boot(t, spec)
			took, _ := tell(t, vm, "load")
			t.Logf("modules: %v", took)
			addr, ok := vm.BlockAddress("cold")
			if !ok {
				t.Fatal("BlockAddress() knows no cold disk")
			}
			checkDisk(t, vm, addr, cold)
			start := time.Now()
			addr, err := vm.PlugBlock(t.Context(), hypervisor.Block{ID: "hot", File: readOnly(t, hot), ReadOnly: true})
			if err != nil {
				t.Fatal(err)
			}
			plugged := time.Since(start)
			checkDisk(t, vm, addr, hot)
			t.Logf("%s hot: plug %v, until read in the guest %v", bus, plugged, time.Since(start))
			if _, err := vm.PlugBlock(t.Context(), hypervisor.Block{ID: "hot", File: readOnly(t, hot)}); err == nil {
				t.Error("PlugBlock() of an id in use = nil")
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			start = time.Now()
			if err := vm.UnplugBlock(ctx, "hot"); err != nil {
				t.Fatal(err)
			}
			t.Logf("%s unplug: %v", bus, time.Since(start))
			if _, ok := vm.BlockAddress("hot"); ok {
				t.Error("BlockAddress() still knows the unplugged disk")
			}
		})
	}
}

func readOnly(t *testing.T, data []byte) *os.File {
	t.Helper()
	f, err := os.Open(tempFile(t, data).Name())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func checkDisk(t *testing.T, vm hypervisor.VM, addr hypervisor.BlockAddress, data []byte) {
	t.Helper()
	took, got := tell(t, vm, addr.Driver+" "+addr.Source)
	sum := sha256.Sum256(data[:4096])
	if !strings.HasSuffix(got, hex.EncodeToString(sum[:])) {
		t.Errorf("disk %+v = %s, want the data's digest", addr, got)
	}
	t.Logf("%s %s found and read in %v: %s", addr.Driver, addr.Source, took, strings.Fields(got)[0])
}

func TestChannelThroughput(t *testing.T) {
	const size, mib = 64 << 20, 64
	vm, p := boot(t, vmSpec(t))
	c := dial(t, vm, 1026)
	report := func(way string, start time.Time, cpu time.Duration) {
		spent := processCPU(t, p.PID()) - cpu
		t.Logf("%s: %.1f MiB/s, %.1f MiB per second of the VMM's processor time", way, mib/time.Since(start).Seconds(),
			mib/spent.Seconds())
	}
	start, cpu := time.Now(), processCPU(t, p.PID())
	if _, err := io.CopyN(c, zeros{}, size); err != nil {
		t.Fatal(err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || strings.TrimSpace(string(got)) != fmt.Sprintf("%d <nil>", size) {
		t.Errorf("guest took %q, %v", got, err)
	}
	report("to the guest", start, cpu)
	c = dial(t, vm, 1027)
	start, cpu = time.Now(), processCPU(t, p.PID())
	fmt.Fprintln(c, size)
	if n, err := io.Copy(io.Discard, c); err != nil || n != size {
		t.Errorf("guest gave %d, %v", n, err)
	}
	report("from the guest", start, cpu)
}

// processCPU is the processor time that a process has used, proc(5): fields 14 and 15, in 1/100 s.
func processCPU(t *testing.T, pid int) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	f := strings.Fields(rest)
	var user, sys int
	if _, err := fmt.Sscan(f[11]+" "+f[12], &user, &sys); err != nil {
		t.Fatal(err)
	}
	return time.Duration(user+sys) * 10 * time.Millisecond
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func openFiles(t *testing.T) int {
	t.Helper()
	l, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(l)
}
