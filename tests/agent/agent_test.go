// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/testvm"
)

func TestVM(t *testing.T) {
	testvm.Need(t, testvm.QEMU, testvm.GuestImage, testvm.Busybox)
	v := boot(t, buildInitrd(t))
	if _, err := v.agent.CreateContainer(within(t, 10*time.Second), &pb.CreateContainerRequest{
		ContainerId: "early",
		OCI:         spec("true"),
	}); !is(err, errdefs.IsFailedPrecondition) {
		t.Errorf("CreateContainer before CreateSandbox = %v, want FAILED_PRECONDITION", err)
	}
	if _, err := v.agent.CreateSandbox(within(t, 10*time.Second), &pb.CreateSandboxRequest{
		Hostname:  "pod-host",
		SandboxId: "pod", SandboxPidns: true,
	}); err != nil {
		t.Fatalf("CreateSandbox: %v", err)
	}
	v.busybox(t)
	if !t.Run("exit code and output", v.testOutput) {
		t.FailNow()
	}
	t.Run("lifecycle errors", v.testErrors)
	t.Run("exec", v.testExec)
	t.Run("binary data both ways", v.testData)
	t.Run("read and write calls", v.testCalls)
	t.Run("terminal", v.testTerminal)
	t.Run("signals", v.testSignals)
	t.Run("pause and resume", v.testPause)
	t.Run("limits and statistics", v.testLimits)
	t.Run("out of memory", v.testOOM)
	t.Run("seccomp", v.testSeccomp)
	t.Run("isolation", v.testIsolation)
	t.Run("shared process ids", v.testSharedPID)
	t.Run("guest calls", v.testGuest)
	t.Run("growth", v.testGrowth)
	t.Run("destroy", v.testDestroy)
}

func is(err error, class func(error) bool) bool { return err != nil && class(errgrpc.ToNative(err)) }

// run runs a container to its end and returns what it wrote and its code.
func (v *vm) run(t *testing.T, id string, spec *pb.Spec) (string, int32) {
	t.Helper()
	s := v.create(t, id, spec)
	v.start(t, id)
	_ = closeWrite(s.in)
	out, _ := io.ReadAll(s.out)
	if !spec.Process.Terminal {
		e, _ := io.ReadAll(s.err)
		out = append(out, e...)
	}
	code := v.wait(t, id, "")
	v.remove(t, id)
	return string(out), code
}

func (v *vm) exec(t *testing.T, id, execID string, args ...string) (streams, error) {
	t.Helper()
	s := v.open(t)
	p := spec(args...).Process
	_, err := v.agent.ExecProcess(within(t, 30*time.Second), &pb.ExecProcessRequest{
		ContainerId: id, ExecId: execID, Process: p, StdinPort: s.ports[0], StdoutPort: s.ports[1], StderrPort: s.ports[2],
	})
	return s, err
}

func (v *vm) testOutput(t *testing.T) {
	begin := time.Now()
	s := v.create(t, "c1", spec("sh", "-c", "cat; echo err >&2; hostname; exit 7"))
	t.Logf("create: %v", time.Since(begin))
	begin = time.Now()
	v.start(t, "c1")
	t.Logf("start: %v", time.Since(begin))
	_, _ = io.WriteString(s.in, "hello\n")
	_ = closeWrite(s.in)
	out, _ := io.ReadAll(s.out)
	e, _ := io.ReadAll(s.err)
	if string(out) != "hello\npod-host\n" || string(e) != "err\n" {
		t.Errorf("output %q, %q", out, e)
	}
	for range 2 { // any number of waiters
		if got := v.wait(t, "c1", ""); got != 7 {
			t.Errorf("exit code %d, want 7", got)
		}
	}
	begin = time.Now()
	v.remove(t, "c1")
	t.Logf("remove: %v", time.Since(begin))
}

func (v *vm) testErrors(t *testing.T) {
	ctx := within(t, 60*time.Second)
	v.create(t, "e1", spec("sleep", "1000"))
	create := func(req *pb.CreateContainerRequest) error {
		_, err := v.agent.CreateContainer(ctx, req)
		return err
	}
	bind := spec("true")
	bind.Mounts = append(bind.Mounts, &pb.Mount{
		Destination: "/x", Type: "bind", Source: "/etc",
		Options: []string{"bind"},
	})
	link := spec("true")
	link.Mounts = append(link.Mounts, &pb.Mount{
		Destination: "/x", Type: "bind", Source: shared + "escape",
		Options: []string{"bind"},
	})
	if err := v.link(t, "escape", "/etc"); !is(err, errdefs.IsInvalidArgument) {
		t.Errorf("a link to /etc: %v", err)
	}
	if err := v.link(t, "escape", "busybox"); err != nil { // what a link leads to can change, so none is followed
		t.Fatal(err)
	}
	noroot := spec("true")
	noroot.Root.Path = shared + "nothing"
	_, execErr := v.exec(t, "e1", "x", "true")
	_, startErr := v.agent.StartContainer(ctx, &pb.StartContainerRequest{ContainerId: "nobody"})
	_, sandboxErr := v.agent.CreateSandbox(ctx, &pb.CreateSandboxRequest{SandboxId: "pod"})
	_, resizeErr := v.agent.TtyWinResize(ctx, &pb.TtyWinResizeRequest{ContainerId: "e1", Row: 1, Column: 1})
	_, policyErr := v.agent.SetPolicy(ctx, &pb.SetPolicyRequest{})
	_, pathErr := v.agent.CopyFile(ctx, &pb.CopyFileRequest{Path: shared + "../../x", FileMode: unix.S_IFREG})
	for _, tc := range []struct {
		name  string
		err   error
		class func(error) bool
	}{
		{"create twice", create(&pb.CreateContainerRequest{ContainerId: "e1", OCI: spec("true")}), errdefs.IsAlreadyExists},
		{
			"reserved id", create(&pb.CreateContainerRequest{ContainerId: "shared", OCI: spec("true")}),
			errdefs.IsInvalidArgument,
		},
		{
			"id with slash", create(&pb.CreateContainerRequest{ContainerId: "../a", OCI: spec("true")}),
			errdefs.IsInvalidArgument,
		},
		{"no spec", create(&pb.CreateContainerRequest{ContainerId: "e2"}), errdefs.IsInvalidArgument},
		{"no rootfs", create(&pb.CreateContainerRequest{ContainerId: "e2", OCI: noroot}), errdefs.IsInvalidArgument},
		{"mount of the guest", create(&pb.CreateContainerRequest{ContainerId: "e2", OCI: bind}), errdefs.IsInvalidArgument},
		{
			"mount of the guest by a link", create(&pb.CreateContainerRequest{ContainerId: "e2", OCI: link}),
			errdefs.IsInvalidArgument,
		},
		{
			"unknown stream", create(&pb.CreateContainerRequest{ContainerId: "e2", OCI: spec("true"), StdoutPort: 99999}),
			errdefs.IsInvalidArgument,
		},
		{"no such command", create(&pb.CreateContainerRequest{ContainerId: "e2", OCI: spec("nonesuch")}), errdefs.IsUnknown},
		{"exec before start", execErr, errdefs.IsFailedPrecondition},
		{"unknown container", startErr, errdefs.IsNotFound},
		{"second sandbox", sandboxErr, errdefs.IsAlreadyExists},
		{"resize without terminal", resizeErr, errdefs.IsUnavailable},
		{"policy", policyErr, errdefs.IsNotImplemented},
		{"copy outside", pathErr, errdefs.IsInvalidArgument},
	} {
		if !is(tc.err, tc.class) {
			t.Errorf("%s: %v", tc.name, tc.err)
		} else {
			t.Logf("%s: %v", tc.name, tc.err)
		}
	}
	v.remove(t, "e1") // created, never started
}

func (v *vm) testExec(t *testing.T) {
	s := v.create(t, "x1", spec("sleep", "1000"))
	defer s.in.Close()
	v.start(t, "x1")
	begin := time.Now()
	x, err := v.exec(t, "x1", "one", "sh", "-c", "cat; echo err >&2; exit 9")
	if err != nil {
		t.Fatalf("ExecProcess: %v", err)
	}
	t.Logf("exec: %v", time.Since(begin))
	_, _ = io.WriteString(x.in, "in")
	_ = closeWrite(x.in)
	out, _ := io.ReadAll(x.out)
	e, _ := io.ReadAll(x.err)
	if string(out) != "in" || string(e) != "err\n" {
		t.Errorf("output %q, %q", out, e)
	}
	for range 3 {
		if got := v.wait(t, "x1", "one"); got != 9 {
			t.Errorf("exit code %d, want 9", got)
		}
	}
	if _, err := v.exec(t, "x1", "two", "nonesuch"); err == nil || !strings.Contains(err.Error(), "nonesuch") {
		t.Errorf("exec of what does not exist = %v, want its name", err)
	}
	if _, err := v.exec(t, "x1", "three", "sleep", "1000"); err != nil {
		t.Fatal(err)
	}
	_, err = v.exec(t, "x1", "three", "true")
	if !is(err, errdefs.IsAlreadyExists) {
		t.Errorf("exec id twice = %v", err)
	}
	if _, err := v.agent.SignalProcess(within(t, 10*time.Second), &pb.SignalProcessRequest{
		ContainerId: "x1",
		ExecId:      "three", Signal: 15,
	}); err != nil {
		t.Error(err)
	}
	if got := v.wait(t, "x1", "three"); got != 143 {
		t.Errorf("exit code %d after SIGTERM, want 143", got)
	}
	// A grandchild that keeps the output open must not keep the host waiting once it lets go.
	g, err := v.exec(t, "x1", "four", "sh", "-c", "echo early; sleep 1000 & exit 3")
	if err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 6)
	_, _ = io.ReadFull(g.out, line)
	if got := v.wait(t, "x1", "four"); got != 3 || string(line) != "early\n" {
		t.Errorf("exit code %d, output %q", got, line)
	}
	g.out.Close()
	g.err.Close()
	if _, err := v.agent.SignalProcess(within(t, 10*time.Second), &pb.SignalProcessRequest{
		ContainerId: "x1",
		Signal:      9,
	}); err != nil {
		t.Error(err)
	}
	if got := v.wait(t, "x1", ""); got != 137 {
		t.Errorf("exit code %d after kill, want 137", got)
	}
	if _, err := v.exec(t, "x1", "late", "true"); !is(err, errdefs.IsFailedPrecondition) {
		t.Errorf("exec in a stopped container = %v", err)
	}
	v.remove(t, "x1")
}

func (v *vm) testSignals(t *testing.T) {
	s := v.create(t, "s1",
		spec("sh", "-c", "trap 'echo usr1' USR1; trap 'exit 4' TERM; echo ready; while :; do sleep 1; done"))
	v.start(t, "s1")
	buf := make([]byte, 6)
	_, _ = io.ReadFull(s.out, buf)
	send := func(sig uint32) {
		if _, err := v.agent.SignalProcess(within(t, 10*time.Second), &pb.SignalProcessRequest{
			ContainerId: "s1",
			ExecId:      "s1", Signal: sig,
		}); err != nil {
			t.Error(err)
		}
	}
	send(10)
	_, _ = io.ReadFull(s.out, buf[:5])
	if string(buf[:5]) != "usr1\n" {
		t.Errorf("after SIGUSR1: %q", buf)
	}
	send(15)
	if got := v.wait(t, "s1", ""); got != 4 {
		t.Errorf("exit code %d, want 4", got)
	}
	v.remove(t, "s1")
}

func (v *vm) testPause(t *testing.T) {
	s := v.create(t, "p1", spec("cat"))
	v.start(t, "p1")
	ctx := within(t, 20*time.Second)
	if _, err := v.agent.PauseContainer(ctx, &pb.PauseContainerRequest{ContainerId: "p1"}); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(s.in, "x")
	_ = s.out.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	if n, err := s.out.Read(make([]byte, 1)); err == nil {
		t.Errorf("a paused process answered with %d bytes", n)
	}
	_ = s.out.SetReadDeadline(time.Time{})
	if _, err := v.agent.PauseContainer(ctx, &pb.PauseContainerRequest{ContainerId: "p1"}); !is(err,
		errdefs.IsFailedPrecondition) {
		t.Errorf("pause twice = %v", err)
	}
	if _, err := v.agent.ResumeContainer(ctx, &pb.ResumeContainerRequest{ContainerId: "p1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s.out, make([]byte, 1)); err != nil {
		t.Errorf("after resume: %v", err)
	}
	v.remove(t, "p1") // running: it is killed
}

func (v *vm) testLimits(t *testing.T) {
	s := v.create(t, "l1", spec("cat"))
	defer s.in.Close()
	v.start(t, "l1")
	ctx := within(t, 20*time.Second)
	if _, err := v.agent.UpdateContainer(ctx, &pb.UpdateContainerRequest{ContainerId: "l1", Resources: &pb.LinuxResources{
		Memory: &pb.LinuxMemory{Limit: 64 << 20}, CPU: &pb.LinuxCPU{Shares: 512, Quota: 50000, Period: 100000},
		Pids: &pb.LinuxPids{Limit: 50},
	}}); err != nil {
		t.Errorf("UpdateContainer: %v", err)
	}
	r, err := v.agent.StatsContainer(ctx, &pb.StatsContainerRequest{ContainerId: "l1"})
	if err != nil {
		t.Fatal(err)
	}
	c := r.CgroupStats
	if c.MemoryStats.Usage.Limit != 64<<20 || c.MemoryStats.Usage.Usage == 0 || c.PidsStats.Limit != 50 ||
		c.PidsStats.Current != 1 ||
		c.CpuStats.CpuUsage.TotalUsage == 0 || len(c.MemoryStats.Stats) == 0 {
		t.Errorf("statistics: %v", c)
	}
	v.remove(t, "l1")
}

func (v *vm) testOOM(t *testing.T) {
	events := make(chan string, 1)
	go func() {
		e, err := v.agent.GetOOMEvent(within(t, 60*time.Second), &pb.GetOOMEventRequest{})
		events <- fmt.Sprint(e.GetContainerId(), err)
	}()
	sp := spec("dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1")
	sp.Linux.Resources.Memory = &pb.LinuxMemory{Limit: 30 << 20, Swap: 30 << 20}
	if _, code := v.run(t, "o1", sp); code != 137 {
		t.Errorf("exit code %d, want 137", code)
	}
	if got := <-events; got != "o1<nil>" {
		t.Errorf("memory event %q, want of o1", got)
	}
}

func (v *vm) testSeccomp(t *testing.T) {
	sp := spec("sh", "-c", "mkdir /x || echo refused; cat /proc/self/status | grep Seccomp:")
	sp.Process.Args = []string{"sh", "-c", "kill -0 1 && echo not refused; exit 0"}
	sp.Linux.Seccomp = &pb.LinuxSeccomp{
		DefaultAction: "SCMP_ACT_ALLOW",
		Syscalls: []*pb.LinuxSyscall{{
			Names: []string{"kill"}, Action: "SCMP_ACT_ERRNO",
			ErrnoRet: &pb.LinuxSyscall_Errnoret{Errnoret: 99},
		}},
	}
	if out, _ := v.run(t, "sec1", sp); strings.Contains(out, "not refused") {
		t.Errorf("the filter had no effect: %q", out)
	}
}

func (v *vm) testIsolation(t *testing.T) {
	sp := spec("sh", "-c", "echo $$; id -u; id -g; ls /; echo x >/dev/stdout; ps | wc -l; mount | wc -l")
	sp.Process.User = &pb.User{UID: 1000, GID: 1000}
	out, code := v.run(t, "i1", sp)
	if code != 0 || !strings.HasPrefix(out, "1\n1000\n1000\n") || !strings.Contains(out, "\nx\n") {
		t.Errorf("code %d, output %q", code, out)
	}
	sp = spec("hostname")
	sp.Hostname = "other"
	if out, _ := v.run(t, "i2", sp); out != "other\n" {
		t.Errorf("host name %q, want the container's own", out)
	}
}

func (v *vm) testSharedPID(t *testing.T) {
	ctx := within(t, 30*time.Second)
	s := v.open(t)
	if _, err := v.agent.CreateContainer(ctx, &pb.CreateContainerRequest{
		ContainerId: "sp1", OCI: spec("sh", "-c", "echo $$; head -c 5 /proc/1/cmdline; sleep 1000 & exit 2"),
		SandboxPidns: true, StdoutPort: s.ports[1], StderrPort: s.ports[2],
	}); err != nil {
		t.Fatal(err)
	}
	v.start(t, "sp1")
	out, _ := io.ReadAll(s.out) // ends although the background process would keep it
	if code := v.wait(t, "sp1", ""); code != 2 || strings.HasPrefix(string(out), "1\n") ||
		!strings.HasSuffix(string(out), "pause") {
		t.Errorf("code %d, output %q", code, out)
	}
	v.remove(t, "sp1")
}

func (v *vm) testGuest(t *testing.T) {
	ctx := within(t, 20*time.Second)
	d, err := v.agent.GetGuestDetails(ctx, &pb.GuestDetailsRequest{MemBlockSize: true})
	if err != nil || d.MemBlockSizeBytes == 0 || !strings.Contains(fmt.Sprint(d.AgentDetails.ExtraFeatures),
		contract.FeatureStreams) {
		t.Errorf("details %v, %v", d, err)
	}
	m, err := v.agent.GetMetrics(ctx, &pb.GetMetricsRequest{})
	if err != nil {
		t.Error(err)
	}
	t.Log(m.GetMetrics())
	if _, err := v.agent.ReseedRandomDev(ctx, &pb.ReseedRandomDevRequest{Data: pattern(64)}); err != nil {
		t.Error(err)
	}
	for _, to := range []time.Time{time.Unix(86400, 0), time.Unix(1_900_000_000, 0), time.Now().Add(time.Hour)} {
		if _, err := v.agent.SetGuestDateTime(ctx, &pb.SetGuestDateTimeRequest{Sec: to.Unix()}); !is(err,
			errdefs.IsPermissionDenied) {
			t.Errorf("SetGuestDateTime(%v) = %v, want a refusal: the clock has a window", to, err)
		}
	}
	to := time.Now().Add(-5 * time.Minute)
	if _, err := v.agent.SetGuestDateTime(ctx, &pb.SetGuestDateTimeRequest{Sec: to.Unix()}); err != nil {
		t.Error(err)
	}
	out, _ := v.run(t, "g1", spec("sh", "-c", "ls -l /proc/self/exe >/dev/null; busybox date +%s"))
	if got, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64); err != nil || got < to.Unix() ||
		got > to.Add(4*time.Minute).Unix() {
		t.Errorf("time %q, %v, want five minutes ago (%d)", out, err, to.Unix())
	}
	if r, err := v.agent.GetVolumeStats(ctx, &pb.VolumeStatsRequest{VolumeGuestPath: shared}); err != nil ||
		len(r.Usage) != 2 {
		t.Errorf("volume statistics %v, %v", r, err)
	}
}

// testGrowth: many execs and containers leave nothing in the agent.
func (v *vm) testGrowth(t *testing.T) {
	v.create(t, "many", spec("sleep", "1000"))
	v.start(t, "many")
	round := func(from, n int) {
		for i := range n {
			x, err := v.exec(t, "many", fmt.Sprintf("x%d", from+i), "true")
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.ReadAll(x.out)
			v.wait(t, "many", fmt.Sprintf("x%d", from+i))
			for _, c := range []io.Closer{x.in, x.out, x.err} {
				c.Close()
			}
		}
	}
	round(0, 5)
	before := v.gauges(t)
	round(5, 15)
	for i := range 3 {
		v.run(t, fmt.Sprintf("many%d", i), spec("true"))
	}
	after := v.gauges(t)
	t.Logf("before %v, after %v", before, after)
	for k, b := range before {
		if !strings.HasSuffix(k, "_bytes") && !strings.HasPrefix(k, "coco_guest") && after[k] > b {
			t.Errorf("%s grew from %d to %d", k, b, after[k])
		}
	}
	v.remove(t, "many")
}

func (v *vm) gauges(t *testing.T) map[string]uint64 {
	t.Helper()
	m, err := v.agent.GetMetrics(within(t, 10*time.Second), &pb.GetMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]uint64{}
	for line := range strings.Lines(m.Metrics) {
		var k string
		var n uint64
		if c, _ := fmt.Sscanf(line, "%s %d", &k, &n); c == 2 && k != "#" {
			out[k] = n
		}
	}
	return out
}

func (v *vm) testDestroy(t *testing.T) {
	v.create(t, "last", spec("sleep", "1000"))
	v.start(t, "last")
	begin := time.Now()
	if _, err := v.agent.DestroySandbox(within(t, 20*time.Second), &pb.DestroySandboxRequest{}); err != nil {
		t.Errorf("DestroySandbox: %v", err)
	}
	select {
	case err := <-v.exited:
		v.exited <- err
		t.Logf("QEMU ended %v later", time.Since(begin))
		if err != nil {
			t.Errorf("QEMU: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the guest did not power off")
	}
	if log := v.console.String(); strings.Contains(log, "panic") || strings.Contains(log, "level=ERROR") {
		t.Errorf("console:\n%s", log)
	}
}
