// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	taskapi "github.com/coco-shim/coco/api/containerd"
	"github.com/coco-shim/coco/internal/worktest"
	"github.com/coco-shim/coco/shim/shimtest/hostpod"
	"github.com/coco-shim/coco/shim/task"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type noEvents struct{}

func (noEvents) Send(proto.Message)          {}
func (noEvents) Flush(context.Context) error { return nil }
func (noEvents) Close(context.Context) error { return nil }

// fixture is both services over pods of host processes; the sandbox service is called as containerd does.
type fixture struct {
	api.TTRPCSandboxService
	t     *testing.T
	tasks *task.Service
	pod   *hostpod.Pod
	asked task.PodRequest
	make  func(ctx context.Context) error // before a pod is made
	dir   string
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, dir: t.TempDir(), make: func(context.Context) error { return nil }}
	f.tasks = task.New(task.Config{
		Namespace: "ns", Events: noEvents{}, Log: slog.New(slog.DiscardHandler),
		MakePod: func(ctx context.Context, r task.PodRequest) (task.Pod, error) {
			f.asked = r
			if err := f.make(ctx); err != nil {
				return nil, err
			}
			p, err := hostpod.New()
			if err != nil {
				return nil, err
			}
			f.pod = p
			return task.PodOf(p), nil
		},
	})
	boxes := New(f.tasks, slog.New(slog.DiscardHandler))
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	boxes.Register(server)
	l, err := net.Listen("unix", filepath.Join(f.dir, "s.sock"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(context.Background(), l)
	}()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	f.TTRPCSandboxService = api.NewTTRPCSandboxClient(client)
	t.Cleanup(func() {
		defer func() {
			_ = client.Close()
			_ = server.Close()
			<-served
		}()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := f.tasks.Stop(ctx); err != nil {
			t.Errorf("Stop: %v", err)
		}
		boxes.Wait()
	})
	return f
}

func (f *fixture) create(c *cri.PodSandboxConfig) error {
	f.t.Helper()
	data, err := proto.Marshal(c)
	if err != nil {
		f.t.Fatal(err)
	}
	_, err = f.CreateSandbox(f.t.Context(), &api.CreateSandboxRequest{
		SandboxID: "s1", BundlePath: f.dir, NetnsPath: "/run/netns/x", Options: &anypb.Any{TypeUrl: configType, Value: data},
	})
	return errgrpc.ToNative(err)
}

// up creates and starts the sandbox.
func (f *fixture) up() {
	f.t.Helper()
	if err := f.create(&cri.PodSandboxConfig{Hostname: "h"}); err != nil {
		f.t.Fatal(err)
	}
	r, err := f.StartSandbox(f.t.Context(), &api.StartSandboxRequest{SandboxID: "s1"})
	if err != nil || int(r.GetPid()) != f.pod.PID() {
		f.t.Fatalf("StartSandbox = %v, %v", r, err)
	}
}

func (f *fixture) status() *api.SandboxStatusResponse {
	f.t.Helper()
	r, err := f.SandboxStatus(f.t.Context(), &api.SandboxStatusRequest{SandboxID: "s1"})
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

func (f *fixture) wait() *api.WaitSandboxResponse {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 5*time.Second)
	defer cancel()
	r, err := f.WaitSandbox(ctx, &api.WaitSandboxRequest{SandboxID: "s1"})
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

func (f *fixture) stop() error {
	_, err := f.StopSandbox(f.t.Context(), &api.StopSandboxRequest{SandboxID: "s1", TimeoutSecs: 5})
	return err
}

func TestLifeOfASandbox(t *testing.T) {
	f := newFixture(t)
	f.up()
	if st := f.status(); st.GetState() != "SANDBOX_READY" || st.GetPid() == 0 || st.GetCreatedAt() == nil ||
		st.GetExitedAt() != nil {
		t.Errorf("status of a ready sandbox = %v", st)
	}
	if _, err := f.PingSandbox(t.Context(), &api.PingRequest{SandboxID: "s1"}); err != nil {
		t.Errorf("ping: %v", err)
	}
	if r, err := f.Platform(t.Context(), &api.PlatformRequest{SandboxID: "s1"}); err != nil ||
		r.GetPlatform().GetOS() != "linux" {
		t.Errorf("Platform = %v, %v", r, err)
	}
	if r, err := f.SandboxMetrics(t.Context(), &api.SandboxMetricsRequest{SandboxID: "s1"}); err != nil ||
		len(r.GetMetrics().GetData().GetValue()) == 0 {
		t.Errorf("SandboxMetrics = %v, %v", r, err)
	}
	// The task API's shutdown of a container is not the sandbox's.
	if _, err := f.tasks.Shutdown(t.Context(), &taskapi.ShutdownRequest{}); err != nil {
		t.Error(err)
	}
	select {
	case <-f.tasks.Done():
		t.Fatal("the shim ends with a sandbox")
	default:
	}
	if err := f.create(&cri.PodSandboxConfig{}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second create = %v, want ErrAlreadyExists", err)
	}
	if _, err := f.StartSandbox(t.Context(),
		&api.StartSandboxRequest{SandboxID: "s1"}); !errdefs.IsFailedPrecondition(errgrpc.ToNative(err)) {
		t.Errorf("second start = %v, want ErrFailedPrecondition", err)
	}
	for range 2 {
		if err := f.stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
	}
	if w := f.wait(); w.GetExitStatus() != 0 || w.GetExitedAt() == nil {
		t.Errorf("WaitSandbox = %v, want 0", w)
	}
	if st := f.status(); st.GetState() != "SANDBOX_NOTREADY" || st.GetInfo()["reason"] != "" {
		t.Errorf("status after stop = %v", st)
	}
	if _, err := f.PingSandbox(t.Context(), &api.PingRequest{SandboxID: "s1"}); err == nil {
		t.Error("ping of a stopped sandbox succeeds")
	}
	if _, err := f.ShutdownSandbox(t.Context(), &api.ShutdownSandboxRequest{SandboxID: "s1"}); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	<-f.tasks.Done()
}

func TestVMThatDies(t *testing.T) {
	f := newFixture(t)
	f.up()
	if err := syscall.Kill(f.pod.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if w := f.wait(); w.GetExitStatus() != 137 {
		t.Errorf("WaitSandbox = %v, want 137", w)
	}
	st := f.status()
	if st.GetState() != "SANDBOX_NOTREADY" || !strings.Contains(st.GetInfo()["reason"], "vm ended: signal: killed") {
		t.Errorf("status = %v, want the reason", st)
	}
	if _, err := f.SandboxMetrics(t.Context(), &api.SandboxMetricsRequest{SandboxID: "s1"}); err == nil ||
		!strings.Contains(err.Error(), "vm ended") {
		t.Errorf("metrics of a dead VM: %v", err)
	}
	if err := f.stop(); err != nil {
		t.Error(err)
	}
}

func TestStartThatFails(t *testing.T) {
	f := newFixture(t)
	boom := errors.New("no kernel")
	f.make = func(context.Context) error { return boom }
	if err := f.create(&cri.PodSandboxConfig{}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.StartSandbox(t.Context(), &api.StartSandboxRequest{SandboxID: "s1"}); err == nil ||
		!strings.Contains(err.Error(), boom.Error()) {
		t.Errorf("StartSandbox = %v, want %v", err, boom)
	}
	if w := f.wait(); w.GetExitStatus() != 137 {
		t.Errorf("WaitSandbox = %v", w)
	}
	if st := f.status(); st.GetInfo()["reason"] != "no kernel" {
		t.Errorf("status = %v", st)
	}
	if _, err := f.ShutdownSandbox(t.Context(), &api.ShutdownSandboxRequest{SandboxID: "s1"}); err != nil {
		t.Error(err)
	}
	<-f.tasks.Done()
}

func TestStopOvertakesStart(t *testing.T) {
	f := newFixture(t)
	making := make(chan struct{})
	f.make = func(ctx context.Context) error {
		close(making)
		<-ctx.Done()
		return context.Cause(ctx)
	}
	if err := f.create(&cri.PodSandboxConfig{}); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := f.StartSandbox(context.Background(), &api.StartSandboxRequest{SandboxID: "s1"})
		failed <- err
	}()
	<-making
	if err := f.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if err := <-failed; err == nil {
		t.Error("the start succeeds although it was stopped")
	}
	f.wait()
}

func TestStopOfASandboxThatNeverStarted(t *testing.T) {
	f := newFixture(t)
	if err := f.create(&cri.PodSandboxConfig{}); err != nil {
		t.Fatal(err)
	}
	if err := f.stop(); err != nil {
		t.Error(err)
	}
	if w := f.wait(); w.GetExitStatus() != 0 {
		t.Errorf("WaitSandbox = %v", w)
	}
	if _, err := f.StartSandbox(t.Context(),
		&api.StartSandboxRequest{SandboxID: "s1"}); !errdefs.IsFailedPrecondition(errgrpc.ToNative(err)) {
		t.Errorf("start after stop = %v", err)
	}
}

func TestRefused(t *testing.T) {
	f := newFixture(t)
	if _, err := f.WaitSandbox(t.Context(),
		&api.WaitSandboxRequest{SandboxID: "s1"}); !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		t.Errorf("wait for nothing = %v", err)
	}
	err := f.create(
		&cri.PodSandboxConfig{Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE},
		}}})
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "hostNetwork") {
		t.Errorf("create on the host's network = %v", err)
	}
	for _, a := range []*anypb.Any{{TypeUrl: "other.Config"}, {TypeUrl: configType, Value: []byte{0xff}}} {
		_, err := f.CreateSandbox(t.Context(), &api.CreateSandboxRequest{SandboxID: "s1", BundlePath: f.dir, Options: a})
		if !errdefs.IsInvalidArgument(errgrpc.ToNative(err)) {
			t.Errorf("create with %v = %v, want ErrInvalidArgument", a, err)
		}
	}
	if _, err := f.CreateSandbox(t.Context(),
		&api.CreateSandboxRequest{SandboxID: "../x"}); !errdefs.IsInvalidArgument(errgrpc.ToNative(err)) {
		t.Errorf("create with a path for an id = %v", err)
	}
}

func TestWhatThePodIsMadeFrom(t *testing.T) {
	f := newFixture(t)
	err := f.create(&cri.PodSandboxConfig{
		Hostname: "web-0", LogDirectory: "/var/log/p",
		Metadata:    &cri.PodSandboxMetadata{Name: "web", Uid: "u", Namespace: "default"},
		Annotations: map[string]string{"a": "b"},
		DnsConfig: &cri.DNSConfig{
			Servers: []string{"10.0.0.10"}, Searches: []string{"x", "y"},
			Options: []string{"ndots:5"},
		},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: "/kubepods.slice/kubepods-pod1.slice", Sysctls: map[string]string{"net.core.somaxconn": "99"},
			Resources: &cri.LinuxContainerResources{
				CpuPeriod: 100000, CpuQuota: -1, CpuShares: 512,
				MemoryLimitInBytes: 1 << 28,
			},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.StartSandbox(t.Context(), &api.StartSandboxRequest{SandboxID: "s1"}); err != nil {
		t.Fatal(err)
	}
	const p = "io.kubernetes.cri."
	want := &specs.Spec{
		Version: specs.Version, Hostname: "web-0",
		Annotations: map[string]string{
			"a": "b", p + "container-type": "sandbox", p + "sandbox-id": "s1", p + "sandbox-name": "web", p + "sandbox-uid": "u",
			p + "sandbox-namespace": "default", p + "sandbox-log-directory": "/var/log/p", p + "sandbox-cpu-period": "100000",
			p + "sandbox-cpu-quota": "-1", p + "sandbox-cpu-shares": "512", p + "sandbox-memory": "268435456",
		},
		Linux: &specs.Linux{
			CgroupsPath: "kubepods-pod1.slice:cri-containerd:s1", Sysctl: map[string]string{"net.core.somaxconn": "99"},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.UTSNamespace},
				{Type: specs.NetworkNamespace, Path: "/run/netns/x"},
				{Type: specs.PIDNamespace},
				{Type: specs.IPCNamespace},
			},
		},
	}
	if diff := cmp.Diff(want, f.asked.Spec); diff != "" {
		t.Errorf("the pod's spec (-want +got):\n%s", diff)
	}
	for name, want := range map[string]string{
		"hostname": "web-0\n", "resolv.conf": "search x y\nnameserver 10.0.0.10\noptions ndots:5\n",
	} {
		if got, err := os.ReadFile(filepath.Join(f.dir, name)); err != nil || string(got) != want {
			t.Errorf("%s = %q, %v, want %q", name, got, err, want)
		}
	}
}

func TestAmend(t *testing.T) {
	bind := func(at, from, mode string) specs.Mount {
		return specs.Mount{Destination: at, Source: from, Type: "bind", Options: []string{"rbind", "rprivate", mode}}
	}
	own := specs.Mount{Destination: "/etc/hosts", Source: "/k/hosts", Type: "bind"}
	s := &specs.Spec{
		Root:   &specs.Root{Readonly: true},
		Mounts: []specs.Mount{own, {Destination: "/dev/shm", Type: "tmpfs"}},
	}
	amender("/b")(s)
	want := []specs.Mount{
		own, bind("/dev/shm", "/dev/shm", "rw"), bind("/etc/hostname", "/b/hostname", "ro"),
		bind("/etc/resolv.conf", "/b/resolv.conf", "ro"),
	}
	if diff := cmp.Diff(want, s.Mounts); diff != "" {
		t.Errorf("amend (-want +got):\n%s", diff)
	}
	volume := &specs.Spec{Mounts: []specs.Mount{bind("/dev/shm/", "/var/lib/kubelet/x", "rw")}}
	amender("/b")(volume)
	if diff := cmp.Diff(bind("/dev/shm/", "/var/lib/kubelet/x", "rw"), volume.Mounts[0]); diff != "" ||
		len(volume.Mounts) != 4 {
		t.Errorf("amend changes a volume at /dev/shm:\n%s", diff)
	}
}

// With any bytes as a sandbox's options, the decoder returns a value or an error.
func FuzzDecodeConfig(f *testing.F) {
	data, err := proto.Marshal(&cri.PodSandboxConfig{
		Hostname: "h",
		Linux:    &cri.LinuxPodSandboxConfig{Sysctls: map[string]string{"a": "b"}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		defer worktest.Bound(t, len(data))()
		c, err := decodeConfig(configType, data)
		if err == nil {
			c.spec("s1", "/n")
		}
	})
}
