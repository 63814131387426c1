// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/image/layer"
	"github.com/coco-shim/coco/internal/ident"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/plan/rootfs"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/policytest"
)

// pod is a pod as the shim sends it, and the policy that pins it.
type pod struct {
	policy  *policy.Policy
	sandbox *pb.CreateSandboxRequest
	creates []*pb.CreateContainerRequest
	execs   []*pb.ExecProcessRequest // of the container with the same index
}

// maker makes random pods.
type maker struct {
	*rand.Rand
	t testing.TB
	p *pod
}

func (r maker) pick(of ...string) string { return of[r.IntN(len(of))] }
func (r maker) yes() bool                { return r.IntN(2) == 0 }

func (r maker) some(of ...string) []string {
	var out []string
	for _, s := range of {
		if r.yes() {
			out = append(out, s)
		}
	}
	return out
}

func (r maker) hash() string {
	var b [32]byte
	for i := range b {
		b[i] = byte(r.IntN(256))
	}
	return hex.EncodeToString(b[:])
}

// newPod makes the pod of a seed. Its requests are made by the functions that the shim calls.
func newPod(t testing.TB, seed uint64) *pod {
	t.Helper()
	r := maker{rand.New(rand.NewPCG(seed, 7)), t, &pod{}}
	hostname := r.pick("web-0", "a", "db.internal")
	spec := &specs.Spec{Hostname: hostname, Linux: &specs.Linux{Sysctl: map[string]string{"net.core.somaxconn": "9"}}}
	shm := r.yes()
	r.p.sandbox = request.Sandbox(request.SandboxInput{
		ID: "box" + r.hash()[:8], Spec: spec, SharedShm: shm,
		ShmBytes: 1 << 20,
	})
	r.p.policy = &policy.Policy{
		APIVersion: policy.APIVersion,
		Pod: policy.Pod{
			Hostname: policy.Value{Is: &hostname}, Sysctls: r.p.sandbox.GetSysctls(), SharedShm: shm,
			Network: policy.Network{Interfaces: []policy.Interface{{Name: "eth0"}}, Routes: true}, Stats: true,
		},
		Volumes: []policy.Volume{
			{Name: "mem", Kind: policy.VolumeMemory, Mode: "1777"},
			{Name: "disk", Kind: policy.VolumeDisk, Mode: "777", GID: 7},
			{Name: "tools", Kind: policy.VolumeImage, Layers: []string{r.hash(), r.hash()}},
			{Name: "conf", Kind: policy.VolumeCopy, Content: &policy.Content{Rule: policy.ContentUnpinned}},
		},
	}
	for i := range 1 + r.IntN(3) {
		r.container(fmt.Sprintf("c%d", i), shm)
	}
	if err := r.p.policy.Validate(); err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	return r.p
}

// spec is a specification in the shape that containerd's CRI plugin gives it.
func (r maker) spec(name string, shm bool) *specs.Spec {
	caps := r.some("CAP_CHOWN", "CAP_KILL", "CAP_NET_ADMIN")
	s := &specs.Spec{
		Version: "1.2.1",
		Process: &specs.Process{
			Terminal: r.IntN(5) == 0, Cwd: r.pick("/", "/srv"), NoNewPrivileges: r.yes(),
			User: specs.User{UID: uint32(r.IntN(3)), GID: uint32(r.IntN(3)), AdditionalGids: []uint32{1, 10}},
			Args: append([]string{"/bin/" + name, r.pick("serve", "-v")}, r.some("--a", "--b")...),
			Env: append([]string{"PATH=/bin", "HOSTNAME=x", "NAME=" + name, "POD_IP=10.0.0.7"}, r.some("A=1", "B=2=3",
				"C=")...),
			Capabilities: &specs.LinuxCapabilities{
				Bounding: caps, Effective: caps, Permitted: caps, Inheritable: r.some("CAP_KILL"),
			},
			Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 9, Soft: 8}},
		},
		Root: &specs.Root{Readonly: r.yes()},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec"}},
			{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=64m"}},
			{Destination: "/etc/hosts", Type: "bind", Source: "/host/hosts", Options: []string{"rbind", "rw"}},
		},
		Annotations: map[string]string{
			contract.CRIContainerName: name, contract.CRISandboxID: r.p.sandbox.GetSandboxId(), contract.CRISandboxName: "web-0",
		},
		Linux: &specs.Linux{
			Sysctl: map[string]string{"kernel.shm_rmid_forced": "1"},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.MountNamespace},
				{Type: specs.PIDNamespace},
				{Type: specs.IPCNamespace, Path: "/p/1"},
				{Type: specs.UTSNamespace, Path: "/p/2"},
				{Type: specs.NetworkNamespace, Path: "/p/3"},
			},
			MaskedPaths: []string{"/proc/kcore", "/proc/keys"}, ReadonlyPaths: []string{"/proc/sys"},
			Devices: []specs.LinuxDevice{{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}},
			Resources: &specs.LinuxResources{
				Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}, {Allow: true, Type: "c", Access: "rw", Major: new(int64(1))}},
				Memory:  &specs.LinuxMemory{Limit: new(int64(1 << 20))}, CPU: &specs.LinuxCPU{Shares: new(uint64(2))},
				Pids: &specs.LinuxPids{Limit: new(int64(9))}, Unified: map[string]string{"memory.high": "9"},
			},
			Seccomp: &specs.LinuxSeccomp{
				DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86_64},
				Syscalls: []specs.LinuxSyscall{
					{
						Names: []string{"read", "write"}, Action: specs.ActAllow,
						Args: []specs.LinuxSeccompArg{{Index: 1, Value: 2, ValueTwo: 3, Op: specs.OpEqualTo}},
					},
					{Names: []string{"clone3"}, Action: specs.ActErrno, ErrnoRet: new(uint(38))},
				},
			},
			RootfsPropagation: r.pick("", "rslave"),
		},
	}
	if shm {
		s.Mounts = append(s.Mounts, specs.Mount{
			Destination: "/dev/shm", Type: "bind", Source: "/host/shm", Options: []string{"rbind", "ro"},
		})
	}
	return s
}

// uses are the volumes that containers may mount.
var uses = []struct {
	name, sub, guest string
}{
	{"mem", "", contract.MemoryDir + "/mem"},
	{"disk", "", contract.StorageDir + "/ZGlzaw=="},
	{"disk", "a/b", contract.StorageDir + "/ZGlzaw=="},
	{"tools", "", contract.ImagesDir + "/tools"},
	{"conf", "", contract.FilesDir + "/sandbox-0123456789abcdef-conf"},
}

// container adds a container with its exec.
func (r maker) container(name string, shm bool) {
	id, s := "id-"+name, r.spec(name, shm)
	in := request.Input{ID: id, Spec: s, SharedShm: shm, Binds: map[int]request.Bound{}}
	var volumes []*pb.Storage
	var sources []policy.Source
	for _, u := range uses {
		if r.yes() {
			continue
		}
		destination := "/mnt/" + u.name + u.sub
		bound := u.guest
		volumes = append(volumes, r.storages(u.name, u.guest)...)
		if u.sub != "" {
			bound = contract.SubPathsDir + "/" + id + "-" + ident.Hash16(destination)
			volumes = append(volumes, &pb.Storage{
				Driver: contract.DriverBind, Source: u.guest, Fstype: "bind", MountPoint: bound,
				DriverOptions: []string{contract.OptionSubPath + u.sub},
			})
		}
		in.Binds[len(s.Mounts)] = request.Bound{Guest: bound}
		s.Mounts = append(s.Mounts, specs.Mount{
			Destination: destination, Type: "bind", Source: "/host",
			Options: []string{"rbind"},
		})
		sources = append(sources, policy.Source{Volume: &policy.Use{Name: u.name, SubPath: u.sub}})
	}
	out, err := request.Convert(in)
	if err != nil {
		r.t.Fatal(err)
	}
	var layers []string
	var attached []rootfs.Attached
	for range 1 + r.IntN(3) {
		layers = append(layers, r.hash())
		attached = append(attached, r.attached(layers[len(layers)-1]))
	}
	on := rootfs.Upper{MiB: 64}
	if r.yes() {
		on = rootfs.Upper{Disk: &hypervisor.BlockAddress{Driver: contract.DriverSCSI, Source: "0:9"}}
	}
	own, err := rootfs.Storages(id, attached, on)
	pull := ""
	if layers[0][0] < '4' { // a quarter of the containers have an image that the guest pulls
		pull = "registry.example/" + name
		own, err = rootfs.Pulled(id, pull+"@sha256:"+layers[0], on)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	for _, st := range own {
		if !slices.ContainsFunc(volumes, func(o *pb.Storage) bool { return o.GetMountPoint() == st.GetMountPoint() }) {
			volumes = append(volumes, st)
		}
	}
	input := request.ContainerInput{ID: id, OCI: out.OCI, Terminal: s.Process.Terminal, Storages: distinct(volumes)}
	c := policytest.Container(name, layers, sources, out.OCI, shm)
	c.Image.Pull = pull
	if r.IntN(4) == 0 {
		input.Devices = []*pb.Device{{Type: contract.DriverSCSI, VmPath: "0:5", ContainerPath: "/dev/xvda"}}
		c.Disks = []string{"/dev/xvda"}
	}
	if r.IntN(4) == 0 {
		input.SharedPIDs, c.Linux.PIDs = true, policy.PodPIDs
	}
	req := request.Container(input)
	req.StdoutPort, req.StderrPort = 7, 8
	r.p.creates = append(r.p.creates, req)
	process := *s.Process
	process.Args, process.Terminal = []string{"/probe", "-q"}, false
	exec, err := request.Exec(request.ExecInput{Container: id, ID: "exec-" + name, Process: &process})
	if err != nil {
		r.t.Fatal(err)
	}
	r.p.execs = append(r.p.execs, exec)
	c.Allow.Exec.Commands = []policy.Command{{Args: process.Args}}
	r.p.policy.Containers = append(r.p.policy.Containers, c)
}

func distinct(list []*pb.Storage) []*pb.Storage {
	var out []*pb.Storage
	for _, s := range list {
		if !slices.ContainsFunc(out, func(o *pb.Storage) bool { return o.GetMountPoint() == s.GetMountPoint() }) {
			out = append(out, s)
		}
	}
	return out
}

func (r maker) attached(hash string) rootfs.Attached {
	root, err := hex.DecodeString(hash)
	if err != nil {
		r.t.Fatal(err)
	}
	return rootfs.Attached{
		Params:  layer.Params{RootHash: [32]byte(root), Salt: []byte{1, 2}, DataBlocks: 9, HashOffset: 9 * 4096},
		Address: hypervisor.BlockAddress{Driver: contract.DriverSCSI, Source: fmt.Sprintf("0:%d", r.IntN(200))},
	}
}

// storages are those of a volume, as package virtcontainers makes them.
func (r maker) storages(name, at string) []*pb.Storage {
	switch name {
	case "mem":
		return []*pb.Storage{{
			Driver: contract.DriverEphemeral, Source: "tmpfs", Fstype: "tmpfs", Options: []string{"size=50%", "mode=1777"},
			MountPoint: at, Shared: true,
		}}
	case "disk":
		return []*pb.Storage{{
			Driver: contract.DriverSCSI, Source: "0:3", Fstype: "ext4", Options: []string{"mode=777", "gid=7"}, MountPoint: at,
			Shared: true, DriverOptions: []string{contract.OptionEphemeralKey, contract.OptionCreateFS},
		}}
	case "tools":
		var list []rootfs.Attached
		for _, l := range r.p.policy.Volumes[2].Layers {
			list = append(list, r.attached(l))
		}
		return rootfs.Image(at, list)
	}
	return nil
}

// call asks an engine and commits, as the agent does.
func call(e *Engine, name string, m proto.Message) error {
	g, err := e.Check("/"+service+name, m)
	if err != nil {
		return err
	}
	g.Apply()
	g.Commit()
	return nil
}

// until runs a pod up to the creation of its container n, and with exec set to the first exec of that.
func (p *pod) until(t testing.TB, n int, exec bool) *Engine {
	t.Helper()
	e := New(p.policy)
	steps := []struct {
		name string
		m    proto.Message
	}{{"CreateSandbox", p.sandbox}}
	for i, c := range p.creates {
		if i < n || i == n && exec {
			steps = append(steps, []struct {
				name string
				m    proto.Message
			}{{"CreateContainer", c}, {"StartContainer", &pb.StartContainerRequest{ContainerId: c.ContainerId}}}...)
		}
	}
	for _, s := range steps {
		if err := call(e, s.name, s.m); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
	}
	return e
}
