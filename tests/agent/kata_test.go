// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/agent/types"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/testvm"
)

// session is a pod as a runtime of Kata's kind leads it: the same order, paths, ids, storages and
// specifications, no byte streams, and each call by its name.
type session struct {
	*vm
	t      *testing.T
	called map[string]int
}

const (
	kataPod  = "3e7f0c1a9b2d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7"
	kataCtr  = "91b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9a"
	kataExec = "5f0c2f0e-8d3c-4f57-9a6a-0f1b7a1d2c3e"
	kataMAC  = "02:00:ca:fe:00:07"
)

// ask makes one call, which has to succeed.
func ask[Q, A any](s *session, name string, method func(context.Context, *Q) (*A, error), req *Q) *A {
	s.t.Helper()
	s.called[name]++
	resp, err := method(within(s.t, 60*time.Second), req)
	if err != nil {
		s.t.Fatalf("%s: %v", name, err)
	}
	return resp
}

// deny makes one call, which has to be refused in a way that such a runtime understands.
func deny[Q, A any](s *session, name string, method func(context.Context, *Q) (*A, error), req *Q,
	class func(error) bool,
) {
	s.t.Helper()
	s.called[name]++
	if _, err := method(within(s.t, 60*time.Second), req); !is(err, class) {
		s.t.Errorf("%s: %v", name, err)
	}
}

// kataSpec is a specification after such a runtime's clean-up.
func kataSpec(root string, args ...string) *pb.Spec {
	sp := spec(args...)
	sp.Root.Path = root
	sp.Linux.CgroupsPath = "/kubepods/besteffort/pod1/" + kataCtr
	sp.Linux.Namespaces = []*pb.LinuxNamespace{{Type: "ipc"}, {Type: "uts"}, {Type: "mount"}}
	sp.Annotations = map[string]string{
		contract.CRIContainerType:               "container",
		"io.katacontainers.pkg.oci.bundle_path": "/run/x",
	}
	sp.Mounts = append(sp.Mounts,
		&pb.Mount{
			Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue",
			Options: []string{"nosuid", "noexec", "nodev"},
		},
		&pb.Mount{Destination: "/dev/shm", Type: "bind", Source: guestRoot + "sandbox/shm", Options: []string{"rbind"}},
		&pb.Mount{
			Destination: "/etc/hosts", Type: "bind", Source: shared + kataCtr + "-0123456789abcdef-hosts",
			Options: []string{"rbind", "rprivate", "rw"},
		},
		&pb.Mount{
			Destination: "/cache", Type: "bind", Source: shared + kataPod + "/rootfs/local/cache",
			Options: []string{"rbind", "rprivate", "rw"},
		},
		&pb.Mount{
			Destination: "/config", Type: "bind", Source: shared + "watchable/config",
			Options: []string{"rbind", "rprivate", "ro"},
		},
		&pb.Mount{
			Destination: "/memory", Type: "bind", Source: guestRoot + "sandbox/ephemeral/memory",
			Options: []string{"rbind", "rprivate", "rw"},
		})
	return sp
}

// TestVMServesAKataSession plays every call of the protocol in the order of a pod's life. A call that this agent does
// not offer is UNIMPLEMENTED by name, which such runtimes take for an older agent.
func TestVMServesAKataSession(t *testing.T) {
	testvm.Need(t, testvm.QEMU, testvm.GuestImage, testvm.Busybox)
	s := &session{boot(t, buildInitrd(t), "-device", "virtio-net-pci,mac="+kataMAC), t, map[string]int{}}
	s.begin()
	s.container()
	s.processes()
	s.limits()
	s.rest()
	s.end()
	methods := pb.File_coco_agent_agent_proto.Services().ByName("AgentService").Methods()
	for i := range methods.Len() {
		if name := string(methods.Get(i).Name()); s.called[name] == 0 {
			t.Errorf("%s was not played", name)
		}
	}
}

// begin is what comes before there are containers: health, network, sandbox.
func (s *session) begin() {
	if v, err := s.health.Version(within(s.t, 20*time.Second), &pb.CheckRequest{}); err != nil ||
		v.GrpcVersion != "0.0.1" {
		s.t.Fatalf("Version: %v, %v", v, err)
	}
	a := s.agent
	ask(s, "UpdateInterface", a.UpdateInterface, &pb.UpdateInterfaceRequest{Interface: &types.Interface{
		Device: "eth0", Name: "eth0", HwAddr: kataMAC, Mtu: 1450,
		IPAddresses: []*types.IPAddress{{Family: types.IPFamily_v4, Address: "10.88.0.7", Mask: "24"}},
	}})
	ask(s, "UpdateRoutes", a.UpdateRoutes, &pb.UpdateRoutesRequest{Routes: &pb.Routes{Routes: []*types.Route{
		{Dest: "10.88.0.0/24", Device: "eth0", Source: "10.88.0.7", Scope: 253}, {Gateway: "10.88.0.1", Device: "eth0"},
	}}})
	ask(s, "AddARPNeighbors", a.AddARPNeighbors,
		&pb.AddARPNeighborsRequest{Neighbors: &pb.ARPNeighbors{ARPNeighbors: []*types.ARPNeighbor{
			{ToIPAddress: &types.IPAddress{Address: "10.88.0.1"}, Device: "eth0", Lladdr: "02:00:ca:fe:00:01", State: 128},
		}}})
	ask(s, "CreateSandbox", a.CreateSandbox, &pb.CreateSandboxRequest{
		Hostname: "web-0", SandboxId: kataPod, Dns: []string{"nameserver 10.96.0.10", "search default.svc.cluster.local"},
		Storages: []*pb.Storage{
			{Driver: "ephemeral", Source: "shm", Fstype: "tmpfs", Options: []string{
				"noexec", "nosuid", "nodev", "mode=1777",
				"size=67108864",
			}, MountPoint: guestRoot + "sandbox/shm"},
			{
				Driver: "ephemeral", Source: "tmpfs", Fstype: "tmpfs", Options: []string{"size=1048576"},
				MountPoint: guestRoot + "sandbox/ephemeral/memory",
			},
		},
	})
	d := ask(s, "GetGuestDetails", a.GetGuestDetails, &pb.GuestDetailsRequest{MemBlockSize: true, MemHotplugProbe: true})
	if d.SupportMemHotplugProbe || d.MemBlockSizeBytes == 0 || !d.AgentDetails.SupportsSeccomp {
		s.t.Errorf("details %v", d)
	}
	for _, driver := range []string{"erofs.multi-layer", "nvdimm"} {
		if slices.Contains(d.AgentDetails.StorageHandlers, driver) || slices.Contains(d.AgentDetails.DeviceHandlers, driver) {
			s.t.Errorf("%s is announced", driver)
		}
		deny(s, "UpdateEphemeralMounts", a.UpdateEphemeralMounts, &pb.UpdateEphemeralMountsRequest{Storages: []*pb.Storage{
			{Driver: driver, Source: "x", MountPoint: guestRoot + "sandbox/x"},
		}}, errdefs.IsNotImplemented)
	}
	if !slices.Contains(d.AgentDetails.StorageHandlers, contract.DriverWatchableBind) {
		s.t.Errorf("storages %v", d.AgentDetails.StorageHandlers)
	}
	ask(s, "SetGuestDateTime", a.SetGuestDateTime, &pb.SetGuestDateTimeRequest{Sec: time.Now().Unix()})
	ask(s, "ReseedRandomDev", a.ReseedRandomDev, &pb.ReseedRandomDevRequest{Data: pattern(512)})
	ask(s, "OnlineCPUMem", a.OnlineCPUMem, &pb.OnlineCPUMemRequest{Wait: true, NbCpus: 1})
	if l := ask(s, "ListInterfaces", a.ListInterfaces, &pb.ListInterfacesRequest{}); !strings.Contains(fmt.Sprint(l),
		"10.88.0.7") {
		s.t.Errorf("interfaces %v", l)
	}
	if l := ask(s, "ListRoutes", a.ListRoutes, &pb.ListRoutesRequest{}); !strings.Contains(fmt.Sprint(l), "10.88.0.1") {
		s.t.Errorf("routes %v", l)
	}
}

// send copies a file as such a runtime does: the same fields with each piece.
func (s *session) send(name, data string, mode uint32) {
	ask(s, "CopyFile", s.agent.CopyFile, &pb.CopyFileRequest{
		Path: shared + name, FileSize: int64(len(data)), FileMode: mode, DirMode: unix.S_IFDIR | 0o750, Data: []byte(data),
	})
}

// container makes one whose root file system is where a shared one would be.
func (s *session) container() {
	root := shared + kataCtr + "/rootfs"
	path, err := exec.LookPath("busybox")
	if err != nil {
		s.t.Fatal(err)
	}
	s.copyIn(s.t, path, root+"/bin/busybox")
	for _, name := range []string{"sh", "cat", "sleep", "echo", "hostname", "ls"} {
		s.send(kataCtr+"/rootfs/bin/"+name, "busybox", unix.S_IFLNK|0o777)
	}
	s.send(kataCtr+"-0123456789abcdef-hosts", "127.0.0.1 localhost\n", unix.S_IFREG|0o644)
	s.send("config/..1/key", "one\n", unix.S_IFREG|0o644)
	s.send("config/..data", "..1", unix.S_IFLNK|0o777)
	s.send("config/key", "..data/key", unix.S_IFLNK|0o777)
	ask(s, "CreateContainer", s.agent.CreateContainer, &pb.CreateContainerRequest{
		ContainerId: kataCtr, ExecId: kataCtr,
		Storages: []*pb.Storage{
			{
				Driver: "local", Source: "local", Fstype: "local", Options: []string{"mode=0777"},
				MountPoint: shared + kataPod + "/rootfs/local/cache",
			},
			{
				Driver: contract.DriverWatchableBind, Source: shared + "config", Fstype: "bind",
				MountPoint: shared + "watchable/config",
			},
		},
		OCI: kataSpec(root, "sh", "-c",
			"hostname; cat /etc/hosts /config/key; while read l; do echo got $l; cat /config/key; done; exit 3"),
	})
	ask(s, "StartContainer", s.agent.StartContainer, &pb.StartContainerRequest{ContainerId: kataCtr})
}

// read reads a process's output until it has n bytes, or to its end.
func (s *session) read(execID string, n int) string {
	var out []byte
	for len(out) < n {
		r := ask(s, "ReadStdout", s.agent.ReadStdout, &pb.ReadStreamRequest{
			ContainerId: kataCtr, ExecId: execID,
			Len: 32 << 10,
		})
		if len(r.Data) == 0 {
			break
		}
		out = append(out, r.Data...)
	}
	return string(out)
}

func (s *session) processes() {
	a := s.agent
	want := "web-0\n127.0.0.1 localhost\none\n"
	if got := s.read("", len(want)); got != want {
		s.t.Errorf("output %q, want %q", got, want)
	}
	// An update of a config map, as kubelet makes it, while the container runs.
	s.send("config/..2/key", "two\n", unix.S_IFREG|0o644)
	s.send("config/..data", "..2", unix.S_IFLNK|0o777)
	if w := ask(s, "WriteStdin", a.WriteStdin, &pb.WriteStreamRequest{
		ContainerId: kataCtr, ExecId: kataCtr,
		Data: []byte("in\n"),
	}); w.Len != 3 {
		s.t.Errorf("%d bytes were taken", w.Len)
	}
	want = "got in\ntwo\n"
	if got := s.read(kataCtr, len(want)); got != want {
		s.t.Errorf("output %q, want %q", got, want)
	}
	deny(s, "TtyWinResize", a.TtyWinResize, &pb.TtyWinResizeRequest{ContainerId: kataCtr, Row: 24, Column: 80},
		errdefs.IsUnavailable)
	proc := spec("sh", "-c", "echo out; echo err >&2; sleep 1000").Process
	ask(s, "ExecProcess", a.ExecProcess, &pb.ExecProcessRequest{ContainerId: kataCtr, ExecId: kataExec, Process: proc})
	if got := s.read(kataExec, 4); got != "out\n" {
		s.t.Errorf("output of an exec %q", got)
	}
	if r := ask(s, "ReadStderr", a.ReadStderr, &pb.ReadStreamRequest{
		ContainerId: kataCtr, ExecId: kataExec,
		Len: 100,
	}); string(r.Data) != "err\n" {
		s.t.Errorf("errors of an exec %q", r.Data)
	}
	ask(s, "SignalProcess", a.SignalProcess, &pb.SignalProcessRequest{ContainerId: kataCtr, ExecId: kataExec, Signal: 15})
	if r := ask(s, "WaitProcess", a.WaitProcess, &pb.WaitProcessRequest{
		ContainerId: kataCtr,
		ExecId:      kataExec,
	}); r.Status != 143 {
		s.t.Errorf("exec ended with %d", r.Status)
	}
}

func (s *session) limits() {
	a := s.agent
	ask(s, "UpdateContainer", a.UpdateContainer, &pb.UpdateContainerRequest{
		ContainerId: kataCtr,
		Resources: &pb.LinuxResources{
			Memory: &pb.LinuxMemory{Limit: 64 << 20}, CPU: &pb.LinuxCPU{Shares: 512, Quota: 50000, Period: 100000},
		},
	})
	if st := ask(s, "StatsContainer", a.StatsContainer,
		&pb.StatsContainerRequest{ContainerId: kataCtr}); st.CgroupStats.MemoryStats.Usage.Limit != 64<<20 ||
		st.CgroupStats.PidsStats.Current == 0 {
		s.t.Errorf("statistics %v", st)
	}
	ask(s, "PauseContainer", a.PauseContainer, &pb.PauseContainerRequest{ContainerId: kataCtr})
	ask(s, "ResumeContainer", a.ResumeContainer, &pb.ResumeContainerRequest{ContainerId: kataCtr})
	if m := ask(s, "GetMetrics", a.GetMetrics, &pb.GetMetricsRequest{}); m.Metrics == "" {
		s.t.Error("no metrics")
	}
	if v := ask(s, "GetVolumeStats", a.GetVolumeStats,
		&pb.VolumeStatsRequest{VolumeGuestPath: guestRoot + "sandbox/ephemeral/memory"}); v.Usage[0].Total != 1<<20 {
		s.t.Errorf("volume statistics %v", v)
	}
	ask(s, "UpdateEphemeralMounts", a.UpdateEphemeralMounts, &pb.UpdateEphemeralMountsRequest{Storages: []*pb.Storage{
		{
			Driver: "ephemeral", Source: "tmpfs", Fstype: "tmpfs", Options: []string{"size=1048576"},
			MountPoint: guestRoot + "sandbox/ephemeral/memory",
		},
	}})
	// The long poll for OOM events is given up with its caller and answers nothing that did not happen.
	s.called["GetOOMEvent"]++
	ctx, cancel := context.WithTimeout(s.t.Context(), 100*time.Millisecond)
	defer cancel()
	if e, err := a.GetOOMEvent(ctx, &pb.GetOOMEventRequest{}); err == nil {
		s.t.Errorf("memory event %v", e)
	}
}

// rest are the calls that this agent does not offer.
func (s *session) rest() {
	a, no := s.agent, errdefs.IsNotImplemented
	deny(s, "GetIPTables", a.GetIPTables, &pb.GetIPTablesRequest{}, no)
	deny(s, "SetIPTables", a.SetIPTables, &pb.SetIPTablesRequest{}, no)
	deny(s, "MemAgentMemcgSet", a.MemAgentMemcgSet, &pb.MemAgentMemcgConfig{}, no)
	deny(s, "MemAgentCompactSet", a.MemAgentCompactSet, &pb.MemAgentCompactConfig{}, no)
	deny(s, "MemHotplugByProbe", a.MemHotplugByProbe, &pb.MemHotplugByProbeRequest{}, no)
	deny(s, "AddSwap", a.AddSwap, &pb.AddSwapRequest{}, no)
	deny(s, "AddSwapPath", a.AddSwapPath, &pb.AddSwapPathRequest{}, no)
	deny(s, "ResizeVolume", a.ResizeVolume, &pb.ResizeVolumeRequest{}, no)
	deny(s, "SetPolicy", a.SetPolicy, &pb.SetPolicyRequest{Policy: "package agent_policy"}, no)
	deny(s, "RemoveStaleVirtiofsShareMounts", a.RemoveStaleVirtiofsShareMounts,
		&pb.RemoveStaleVirtiofsShareMountsRequest{}, no)
	deny(s, "GetDiagnosticData", a.GetDiagnosticData, &pb.GetDiagnosticDataRequest{
		LogType:     contract.TerminationLog,
		ContainerId: kataCtr,
	}, errdefs.IsNotFound)
}

func (s *session) end() {
	a := s.agent
	ask(s, "CloseStdin", a.CloseStdin, &pb.CloseStdinRequest{ContainerId: kataCtr})
	for range 2 { // any number of waiters
		if r := ask(s, "WaitProcess", a.WaitProcess, &pb.WaitProcessRequest{
			ContainerId: kataCtr,
			ExecId:      "",
		}); r.Status != 3 {
			s.t.Errorf("the container ended with %d", r.Status)
		}
	}
	if got := s.read("", 1); got != "" {
		s.t.Errorf("after the end: %q", got)
	}
	ask(s, "SignalProcess", a.SignalProcess, &pb.SignalProcessRequest{ContainerId: kataCtr, Signal: 9}) // it is gone: fine
	ask(s, "RemoveContainer", a.RemoveContainer, &pb.RemoveContainerRequest{ContainerId: kataCtr, Timeout: 10})
	ask(s, "DestroySandbox", a.DestroySandbox, &pb.DestroySandboxRequest{})
}
