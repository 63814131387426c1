// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/agent/types"
	"github.com/coco-shim/coco/api/contract"
	plan "github.com/coco-shim/coco/plan/rootfs"
)

// sandbox makes the sandbox, after attempts to make others.
func (p *pinned) sandbox(t *testing.T) {
	t.Helper()
	create := func(change func(*pb.CreateSandboxRequest)) error {
		r := &pb.CreateSandboxRequest{Hostname: "pod-host", SandboxId: "pod"}
		change(r)
		_, err := p.agent.CreateSandbox(within(t, 20*time.Second), r)
		return err
	}
	for field, change := range map[string]func(*pb.CreateSandboxRequest){
		"hostname":        func(r *pb.CreateSandboxRequest) { r.Hostname = "other" },
		"guest_hook_path": func(r *pb.CreateSandboxRequest) { r.GuestHookPath = "/usr/share/oci" },
		"kernel_modules":  func(r *pb.CreateSandboxRequest) { r.KernelModules = []*pb.KernelModule{{Name: "loop"}} },
		"sandbox_pidns":   func(r *pb.CreateSandboxRequest) { r.SandboxPidns = true },
		"dns":             func(r *pb.CreateSandboxRequest) { r.Dns = []string{"nameserver 10.0.0.1"} },
		"sysctls":         func(r *pb.CreateSandboxRequest) { r.Sysctls = map[string]string{"kernel.panic": "1"} },
		"storages[0]": func(r *pb.CreateSandboxRequest) {
			r.Storages = []*pb.Storage{{
				Driver: "virtio-fs", Source: "kataShared", Fstype: "virtiofs", MountPoint: contract.FilesDir,
			}}
		},
	} {
		denied(t, "C2 a sandbox with another "+field, create(change), "value", field)
	}
	denied(t, "C4 an id that is a path", create(func(r *pb.CreateSandboxRequest) { r.SandboxId = "../pod" }), "id",
		"sandbox_id")
	if err := create(func(*pb.CreateSandboxRequest) {}); err != nil {
		t.Fatalf("CreateSandbox: %v", err)
	}
	denied(t, "C4 a second sandbox", create(func(r *pb.CreateSandboxRequest) { r.SandboxId = "pod2" }), "order",
		"sandbox_id")
}

func (p *pinned) testEarly(t *testing.T) {
	_, err := p.agent.CreateContainer(within(t, 20*time.Second), p.request(t, "main", "m1"))
	denied(t, "a container without a sandbox", err, "order", "container_id")
	_, err = p.agent.StartContainer(within(t, 20*time.Second), &pb.StartContainerRequest{ContainerId: "m1"})
	denied(t, "the start of one that is not there", err, "id", "container_id")
	_, err = p.exec(t, "m1", "x", "sh")
	denied(t, "an exec in it", err, "id", "container_id")
}

// testNever sends each call of the protocol that no policy can open, and one that the protocol does not have.
func (p *pinned) testNever(t *testing.T) {
	for method, req := range map[string]proto.Message{
		"SetPolicy": &pb.SetPolicyRequest{Policy: "allow"}, "SetGuestDateTime": &pb.SetGuestDateTimeRequest{Sec: 1},
		"ReseedRandomDev": &pb.ReseedRandomDevRequest{Data: []byte("known")}, "AddSwap": &pb.AddSwapRequest{},
		"AddSwapPath": &pb.AddSwapPathRequest{Path: "/dev/sda"}, "MemHotplugByProbe": &pb.MemHotplugByProbeRequest{},
		"OnlineCPUMem": &pb.OnlineCPUMemRequest{}, "GetIPTables": &pb.GetIPTablesRequest{},
		"SetIPTables": &pb.SetIPTablesRequest{}, "UpdateEphemeralMounts": &pb.UpdateEphemeralMountsRequest{},
		"ResizeVolume": &pb.ResizeVolumeRequest{}, "MemAgentMemcgSet": &pb.MemAgentMemcgConfig{},
		"MemAgentCompactSet":             &pb.MemAgentCompactConfig{},
		"RemoveStaleVirtiofsShareMounts": &pb.RemoveStaleVirtiofsShareMountsRequest{},
	} {
		denied(t, method, p.call(t, method, req), "method", string(req.ProtoReflect().Descriptor().Name()))
	}
	if err := p.call(t, "Nonsense", &pb.SetPolicyRequest{}); err == nil {
		t.Error("a method that the protocol does not have was answered")
	}
}

// create tries a changed request, which must be denied.
func (p *pinned) create(t *testing.T, what, code, field string, change func(*pb.CreateContainerRequest)) {
	t.Helper()
	r := p.request(t, "main", "evil")
	change(r)
	_, err := p.agent.CreateContainer(within(t, 30*time.Second), r)
	denied(t, what, err, code, field)
}

func (p *pinned) testImages(t *testing.T) {
	layers := func(list ...plan.Attached) func(*pb.CreateContainerRequest) {
		return func(r *pb.CreateContainerRequest) {
			storages, err := plan.Storages("evil", list, plan.Upper{MiB: 16})
			if err != nil {
				t.Fatal(err)
			}
			r.Storages = storages
		}
	}
	first := func(change func(*pb.Storage)) func(*pb.CreateContainerRequest) {
		return func(r *pb.CreateContainerRequest) { change(r.Storages[0]) }
	}
	const options = "storages[0].driver_options"
	p.create(t, "another layer", "value", options+"[0]", layers(p.foreign))
	p.create(t, "one more layer on top", "value", options+"[0]", layers(p.foreign, p.layer))
	p.create(t, "one more layer below", "value", "storages[", layers(p.layer, p.foreign))
	p.create(t, "no layer", "value", "storages[", func(r *pb.CreateContainerRequest) { r.Storages = r.Storages[1:] })
	p.create(t, "a layer without verity", "value", options, first(func(s *pb.Storage) { s.DriverOptions = nil }))
	p.create(t, "a writable layer", "value", "storages[0].options", first(func(s *pb.Storage) {
		s.Options = []string{"rw"}
	}))
	p.create(t, "an ext4 of the host", "value", "storages[0].fstype", first(func(s *pb.Storage) { s.Fstype = "ext4" }))
	p.create(t, "another root file system", "value", "OCI.Root.Path", func(r *pb.CreateContainerRequest) {
		r.OCI.Root.Path = contract.Rootfs("q1")
	})
	p.create(t, "an annotation with the name of an image", "value", "OCI.Annotations["+contract.CRIImageName+"]",
		func(r *pb.CreateContainerRequest) {
			r.OCI.Annotations = map[string]string{contract.CRIImageName: "evil"}
		})
	// The device under the right hash is the host's to choose, so this is no denial: verity finds other content there.
	r := p.request(t, "quiet", "other-device")
	r.Storages[0].Source = p.foreign.Address.Source
	if _, err := p.agent.CreateContainer(within(t, 60*time.Second), r); err == nil {
		t.Error("a container came to be on a device whose content has another root hash")
	}
}

// changes are one for each part of a specification, by the field that the denial names.
var changes = map[string]func(s *pb.Spec){
	"OCI.Process.Args[0]":              func(s *pb.Spec) { s.Process.Args[0] = "ls" },
	"OCI.Process.Args":                 func(s *pb.Spec) { s.Process.Args = append(s.Process.Args, "-c", "id") },
	"OCI.Process.Env[LD_PRELOAD]":      func(s *pb.Spec) { s.Process.Env = append(s.Process.Env, "LD_PRELOAD=/x.so") },
	"OCI.Process.Env[PATH]":            func(s *pb.Spec) { s.Process.Env[0] = "PATH=/tmp:/bin" },
	"OCI.Process.Env[TERM]":            func(s *pb.Spec) { s.Process.Env = s.Process.Env[:1] },
	"OCI.Process.Cwd":                  func(s *pb.Spec) { s.Process.Cwd = "/proc/self/fd/5" },
	"OCI.Process.User.UID":             func(s *pb.Spec) { s.Process.User.UID = 7 },
	"OCI.Process.User.AdditionalGids":  func(s *pb.Spec) { s.Process.User.AdditionalGids = []uint32{0} },
	"OCI.Process.User.Username":        func(s *pb.Spec) { s.Process.User.Username = "root" },
	"OCI.Process.Terminal":             func(s *pb.Spec) { s.Process.Terminal = true },
	"OCI.Process.NoNewPrivileges":      func(s *pb.Spec) { s.Process.NoNewPrivileges = false },
	"OCI.Process.ApparmorProfile":      func(s *pb.Spec) { s.Process.ApparmorProfile = "unconfined" },
	"OCI.Process.SelinuxLabel":         func(s *pb.Spec) { s.Process.SelinuxLabel = "spc_t" },
	"OCI.Process.Rlimits[RLIMIT_CORE]": func(s *pb.Spec) { s.Process.Rlimits = []*pb.POSIXRlimit{{Type: "RLIMIT_CORE"}} },
	"OCI.Process.Capabilities.Effective": func(s *pb.Spec) {
		s.Process.Capabilities.Effective = append(slices.Clone(s.Process.Capabilities.Effective), "CAP_SYS_ADMIN")
	},
	"OCI.Linux.Namespaces":         func(s *pb.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[1:] },
	"OCI.Linux.Namespaces[0].Path": func(s *pb.Spec) { s.Linux.Namespaces[0].Path = "/proc/1/ns/mnt" },
	"OCI.Linux.Sysctl": func(s *pb.Spec) {
		s.Linux.Sysctl = map[string]string{"kernel.core_pattern": "|/bin/sh"}
	},
	"OCI.Linux.MaskedPaths":   func(s *pb.Spec) { s.Linux.MaskedPaths = []string{"/bin"} },
	"OCI.Linux.ReadonlyPaths": func(s *pb.Spec) { s.Linux.ReadonlyPaths = []string{"/bin"} },
	"OCI.Linux.Devices": func(s *pb.Spec) {
		s.Linux.Devices = []*pb.LinuxDevice{{Path: "/dev/sda", Type: "b", Major: 8}}
	},
	"OCI.Linux.Resources.Devices": func(s *pb.Spec) {
		s.Linux.Resources.Devices = []*pb.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	},
	"OCI.Linux.Seccomp": func(s *pb.Spec) {
		s.Linux.Seccomp = &pb.LinuxSeccomp{DefaultAction: "SCMP_ACT_ALLOW"}
	},
	"OCI.Linux.RootfsPropagation": func(s *pb.Spec) { s.Linux.RootfsPropagation = "shared" },
	"OCI.Linux.CgroupsPath":       func(s *pb.Spec) { s.Linux.CgroupsPath = "/init" },
	"OCI.Root.Readonly":           func(s *pb.Spec) { s.Root.Readonly = true },
	"OCI.Hostname":                func(s *pb.Spec) { s.Hostname = "pod-host" },
	"OCI.Hooks": func(s *pb.Spec) {
		s.Hooks = &pb.Hooks{CreateRuntime: []*pb.Hook{{Path: "/bin/sh"}}}
	},
	"OCI.Annotations[run.oci.handler]": func(s *pb.Spec) { s.Annotations = map[string]string{"run.oci.handler": "wasm"} },
}

func (p *pinned) testProcesses(t *testing.T) {
	for field, change := range changes {
		p.create(t, "a change of "+field, "value", field, func(r *pb.CreateContainerRequest) { change(r.OCI) })
	}
	for field, change := range map[string]func(r *pb.CreateContainerRequest){
		"sandbox_pidns": func(r *pb.CreateContainerRequest) { r.SandboxPidns = true },
		"pid_container": func(r *pb.CreateContainerRequest) { r.PidContainer = "q1" },
		"exec_id":       func(r *pb.CreateContainerRequest) { r.ExecId = "other" },
		"string_user":   func(r *pb.CreateContainerRequest) { r.StringUser = &pb.StringUser{Uid: "root"} },
		"devices": func(r *pb.CreateContainerRequest) {
			r.Devices = []*pb.Device{{Type: contract.DriverSCSI, VmPath: "0:0", ContainerPath: "/dev/initdata"}}
		},
		"shared_mounts": func(r *pb.CreateContainerRequest) {
			r.SharedMounts = []*pb.SharedMount{{Name: "x", SrcCtr: "q1", SrcPath: "/", DstCtr: "evil", DstPath: "/x"}}
		},
	} {
		p.create(t, "a change of "+field, "value", field, change)
	}
}

func (p *pinned) testMounts(t *testing.T) {
	bind := []string{"rbind", "rw"}
	for _, m := range []*pb.Mount{
		{Destination: "/etc/hosts", Type: "bind", Source: contract.FilesDir + "/hosts", Options: bind},
		{Destination: "/bin", Type: "bind", Source: "", Options: bind},
		{Destination: "/bin", Type: "tmpfs", Source: "tmpfs"},
		{Destination: "/x", Type: "bind", Source: "../../etc", Options: bind},
		{Destination: "/../x", Type: "bind", Source: "/", Options: bind},
		{Destination: "/x", Type: "virtiofs", Source: "kataShared"},
		{Destination: "/x", Type: "bind", Source: contract.Rootfs("q1"), Options: bind},
		{Destination: "/x", Type: "overlay", Source: "x", Options: []string{"lowerdir=/:/etc"}},
	} {
		p.create(t, fmt.Sprintf("one more mount %v", m), "value", "OCI.Mounts[", func(r *pb.CreateContainerRequest) {
			r.OCI.Mounts = append(r.OCI.Mounts, m)
		})
	}
	for field, change := range map[string]func(m *pb.Mount){
		".source":  func(m *pb.Mount) { m.Source = contract.FilesDir },
		".type":    func(m *pb.Mount) { m.Type = "bind" },
		".options": func(m *pb.Mount) { m.Options = m.Options[1:] },
	} {
		p.create(t, "a change of a mount's "+field, "value", "OCI.Mounts[0]"+field, func(r *pb.CreateContainerRequest) {
			change(r.OCI.Mounts[0])
		})
	}
	p.create(t, "a mount less", "value", "OCI.Mounts", func(r *pb.CreateContainerRequest) {
		r.OCI.Mounts = r.OCI.Mounts[1:]
	})
}

// moreStorages are what a host might bring beside the layers of the image.
var moreStorages = []*pb.Storage{
	{Driver: "virtio-fs", Source: "kataShared", Fstype: "virtiofs", MountPoint: contract.FilesDir + "/x"},
	{Driver: "9p", Source: "share", Fstype: "9p", MountPoint: contract.FilesDir + "/x"},
	{Driver: contract.DriverSCSI, Source: "0:2", Fstype: "ext4", MountPoint: contract.StorageDir + "/x"},
	{Driver: "nvdimm", Source: "/dev/pmem0", Fstype: "ext4", MountPoint: contract.FilesDir + "/x"},
	{Driver: "watchable-bind", Source: contract.FilesDir, Fstype: "bind", MountPoint: contract.FilesDir + "/x"},
	{Driver: contract.DriverBind, Source: "/", Fstype: "bind", MountPoint: contract.FilesDir + "/x"},
	{Driver: contract.DriverPull, Source: "registry/evil", Fstype: "overlay", MountPoint: contract.Rootfs("evil")},
	{Driver: contract.DriverEphemeral, Source: "tmpfs", Fstype: "tmpfs", MountPoint: contract.Rootfs("evil") + "/bin"},
	{Driver: contract.DriverEphemeral, Source: "tmpfs", Fstype: "tmpfs", MountPoint: contract.Rootfs("q1") + "/bin"},
}

func (p *pinned) testStorages(t *testing.T) {
	for _, s := range moreStorages {
		p.create(t, fmt.Sprintf("behind the others: %v", s), "value", "storages[", func(r *pb.CreateContainerRequest) {
			r.Storages = append(r.Storages, s)
		})
		p.create(t, fmt.Sprintf("before the others: %v", s), "value", "storages[", func(r *pb.CreateContainerRequest) {
			r.Storages = append([]*pb.Storage{s}, r.Storages...)
		})
	}
	for field, change := range map[string]func(s *pb.Storage){ // of the overlay
		".driver":            func(s *pb.Storage) { s.Driver = contract.DriverBind },
		".source":            func(s *pb.Storage) { s.Source = "/" },
		".mount_point":       func(s *pb.Storage) { s.MountPoint = contract.FilesDir + "/root" },
		".options[0]":        func(s *pb.Storage) { s.Options[0] = "lowerdir=/" },
		".options":           func(s *pb.Storage) { s.Options = append(s.Options, "metacopy=on") },
		".driver_options[0]": func(s *pb.Storage) { s.DriverOptions[0] = contract.OptionCreateDirectory + "/etc/x" },
		".shared":            func(s *pb.Storage) { s.Shared = true },
		".fs_group":          func(s *pb.Storage) { s.FsGroup = &pb.FSGroup{GroupId: 1} },
	} {
		p.create(t, "a change of the overlay's "+field, "value", "storages[2]"+field, func(r *pb.CreateContainerRequest) {
			change(r.Storages[2]) // after the layer and the writable one
		})
	}
}

func (p *pinned) testIDs(t *testing.T) {
	for _, id := range []string{"", "../evil", "a/b", ".", "-x", "é", strings.Repeat("x", 129), "a\nb"} {
		p.create(t, fmt.Sprintf("the id %q", id), "id", "container_id", func(r *pb.CreateContainerRequest) {
			r.ContainerId = id
		})
	}
	_, err := p.agent.CreateContainer(within(t, 20*time.Second), p.request(t, "main", "m1"))
	denied(t, "an id that is in use", err, "id", "container_id")
	_, err = p.agent.CreateContainer(within(t, 20*time.Second), p.request(t, "main", "m2"))
	denied(t, "a second instance", err, "order", "container")
	_, err = p.agent.StartContainer(within(t, 20*time.Second), &pb.StartContainerRequest{ContainerId: "m1"})
	denied(t, "a second start", err, "order", "container_id")
}

// closed are calls that capabilities of the containers m1 and q1 or of the pod would open.
var closed = []struct {
	what, method, code string
	req                proto.Message
}{
	{"output", "ReadStdout", "capability", &pb.ReadStreamRequest{ContainerId: "q1", Len: 1}},
	{"errors", "ReadStderr", "capability", &pb.ReadStreamRequest{ContainerId: "q1", Len: 1}},
	{"output of an exec that never was", "ReadStdout", "id", &pb.ReadStreamRequest{
		ContainerId: "q1", ExecId: "x", Len: 1,
	}},
	{"input", "WriteStdin", "capability", &pb.WriteStreamRequest{ContainerId: "q1", Data: []byte("x")}},
	{"the end of input", "CloseStdin", "capability", &pb.CloseStdinRequest{ContainerId: "q1"}},
	{"the termination message", "GetDiagnosticData", "capability", &pb.GetDiagnosticDataRequest{ContainerId: "q1"}},
	{"the log of decisions", "GetDiagnosticData", "capability", &pb.GetDiagnosticDataRequest{
		LogType: contract.DecisionLog,
	}},
	{"statistics", "StatsContainer", "capability", &pb.StatsContainerRequest{ContainerId: "m1"}},
	{"metrics", "GetMetrics", "capability", &pb.GetMetricsRequest{}},
	{"OOM events", "GetOOMEvent", "capability", &pb.GetOOMEventRequest{}},
	{"statistics of volumes", "GetVolumeStats", "capability", &pb.VolumeStatsRequest{VolumeGuestPath: "/"}},
	{"interfaces", "ListInterfaces", "capability", &pb.ListInterfacesRequest{}},
	{"routes", "ListRoutes", "capability", &pb.ListRoutesRequest{}},
	{"a pause", "PauseContainer", "capability", &pb.PauseContainerRequest{ContainerId: "m1"}},
	{"a resumption", "ResumeContainer", "capability", &pb.ResumeContainerRequest{ContainerId: "m1"}},
	{"a signal to a container that is not there", "SignalProcess", "id", &pb.SignalProcessRequest{
		ContainerId: "x", Signal: 9,
	}},
	{"device rules in an update", "UpdateContainer", "value", &pb.UpdateContainerRequest{
		ContainerId: "m1", Resources: &pb.LinuxResources{Devices: []*pb.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}},
	}},
	{"a limit of another controller", "UpdateContainer", "value", &pb.UpdateContainerRequest{
		ContainerId: "m1", Resources: &pb.LinuxResources{Unified: map[string]string{"io.max": "8:0 rbps=1"}},
	}},
	{"an interface", "UpdateInterface", "value", &pb.UpdateInterfaceRequest{Interface: &types.Interface{Name: "eth7"}}},
	{"routes over the loopback device", "UpdateRoutes", "value", &pb.UpdateRoutesRequest{
		Routes: &pb.Routes{Routes: []*types.Route{{Dest: "10.0.0.0/8", Device: "lo"}}},
	}},
	{"neighbours", "AddARPNeighbors", "value", &pb.AddARPNeighborsRequest{
		Neighbors: &pb.ARPNeighbors{ARPNeighbors: []*types.ARPNeighbor{{Device: "lo"}}},
	}},
}

func (p *pinned) testClosed(t *testing.T) {
	for _, tc := range closed {
		denied(t, tc.what, p.call(t, tc.method, tc.req), tc.code, "")
	}
	for what, args := range map[string][]string{
		"another command": {"sh"}, "more words": append(slices.Clone(allowedCommand), "x"),
		"fewer words": allowedCommand[:1],
	} {
		_, err := p.exec(t, "q1", "evil", args...)
		denied(t, what, err, "value", "process.Args")
	}
	_, err := p.exec(t, "m1", "evil", "sh")
	denied(t, "a command where none is allowed", err, "capability", "process.Args")
	process := spec(allowedCommand...).Process
	process.Env = append(process.Env, "LD_PRELOAD=/x.so")
	_, err = p.agent.ExecProcess(within(t, 20*time.Second), &pb.ExecProcessRequest{
		ContainerId: "q1", ExecId: "evil", Process: process,
	})
	denied(t, "an allowed command with LD_PRELOAD", err, "value", "process.Env[LD_PRELOAD]")
}

func (p *pinned) testCopies(t *testing.T) {
	for _, r := range []*pb.CopyFileRequest{
		{Path: contract.FilesDir + "/hosts", FileMode: unix.S_IFREG | 0o644, Data: []byte("1.2.3.4 registry\n")},
		{Path: contract.FilesDir + "/link", FileMode: unix.S_IFLNK | 0o777, Data: []byte("/")},
		{Path: contract.FilesDir + "/../../etc/passwd", FileMode: unix.S_IFREG | 0o644, Data: []byte("x")},
		{Path: contract.Rootfs("q1") + "/bin/sh", FileMode: unix.S_IFREG | 0o755, Data: []byte("x")},
		{Path: "/init", FileMode: unix.S_IFREG | 0o755, Data: []byte("x")},
		{Path: contract.FilesDir + "/fifo", FileMode: unix.S_IFIFO | 0o644},
		{Path: contract.FilesDir + "/disk", FileMode: unix.S_IFBLK | 0o644},
	} {
		r.DirMode, r.FileSize = 0o755, int64(len(r.Data))
		_, err := p.agent.CopyFile(within(t, 20*time.Second), r)
		if !is(err, errdefs.IsPermissionDenied) && !is(err, errdefs.IsInvalidArgument) {
			t.Errorf("a copy to %s of mode %o: %v, want a refusal", r.Path, r.FileMode, err)
		}
	}
}

// testPorts tries both stream ports: TCP ports that the policy does not declare, and the number of another's stream.
func (p *pinned) testPorts(t *testing.T) {
	for port, want := range map[string]string{
		"22": "denied [capability] port", "8006": "denied [capability] port", "8081": "denied [capability] port",
		"0": "is not a number from 1 to 65535", "65536": "is not a number from 1 to 65535",
	} {
		if answer := p.greet(t, contract.PortForward, port+"\n"); !strings.Contains(answer, want) {
			t.Errorf("port %s: %q, want %q", port, answer, want)
		}
	}
	n, mine := p.stream(t)
	again := fmt.Sprintf("%s %d\n", contract.StreamWord, n)
	if answer := p.greet(t, contract.PortStreams, again); !strings.Contains(answer, "is open already") {
		t.Errorf("the number of a stream was taken twice: %q", answer)
	}
	_ = mine.Close()
}

// greet sends a first line and returns the answer.
func (p *pinned) greet(t *testing.T, port uint32, line string) string {
	t.Helper()
	c, err := p.dialer.Dial(within(t, 20*time.Second), port)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, line); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2048)
	n, _ := c.Read(b) // "" says that there was none
	return string(b[:n])
}

// testPast ends a container. Neither its id nor its place in the pod can be used again.
func (p *pinned) testPast(t *testing.T, main *shell) {
	if _, err := io.WriteString(main.in, "exit 0\n"); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(t, "m1", ""); code != 0 {
		t.Errorf("exit code %d", code)
	}
	create := func(id string) error {
		_, err := p.agent.CreateContainer(within(t, 20*time.Second), p.request(t, "main", id))
		return err
	}
	denied(t, "the id of one that has exited", create("m1"), "id", "container_id")
	p.remove(t, "m1")
	denied(t, "the id of one that is gone", create("m1"), "id", "container_id")
	denied(t, "another instance, with restart Never", create("m2"), "order", "container")
	_, err := p.exec(t, "m1", "x", "sh")
	denied(t, "an exec in one that is gone", err, "id", "container_id")
}
