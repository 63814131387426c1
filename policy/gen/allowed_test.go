// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package gen

import (
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/image/layer"
	"github.com/coco-shim/coco/internal/ident"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/plan/rootfs"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/engine"
	"github.com/coco-shim/coco/policy/gen/predict"
)

// facts are what a node says of the pod.
var facts = map[string]string{
	policy.FieldHostname: "web-0", policy.FieldPodName: "web-0", policy.FieldPodNamespace: "ns",
	policy.FieldPodIP: "10.1.2.3", policy.FieldNodeName: "node", policy.FieldHostIP: "10.0.0.1",
}

// shim sends what the shim sends for a pod, to the engine of its policy.
type shim struct {
	testing.TB
	*generator
	engine *engine.Engine
	copied map[string]bool
}

func (s *shim) send(method string, req proto.Message) error {
	grant, err := s.engine.Check("/grpc.AgentService/"+method, req)
	if err == nil {
		grant.Commit()
	}
	return err
}

func (s *shim) must(method string, req proto.Message) {
	s.Helper()
	if err := s.send(method, req); err != nil {
		s.Errorf("%s: %v", method, err)
	}
}

// spec is a container's specification as a node writes it, with an id and the variables of a service.
func (s *shim) spec(c *corev1.Container, id string) (*specs.Spec, map[int]policy.Mount) {
	s.Helper()
	mounts, err := s.mounts(c)
	if err != nil {
		s.Fatal(err)
	}
	disks, err := s.disks(c)
	if err != nil {
		s.Fatal(err)
	}
	spec, err := predict.Container(predict.Input{
		Meta: s.meta, Pod: s.pod, Container: c, Image: image().Config, Objects: objects{s.generator}, Mounts: mounts,
		Disks: disks,
	})
	if err != nil {
		s.Fatal(err)
	}
	for i := range spec.Linux.Devices { // the node has other disks than the prediction
		major := int64(259)
		spec.Linux.Devices[i].Major, spec.Linux.Resources.Devices[1+i].Major = major, &major
	}
	sources, err := s.sources(c, image(), spec)
	if err != nil {
		s.Fatal(err)
	}
	b, err := json.Marshal(spec)
	if err != nil {
		s.Fatal(err)
	}
	text := strings.ReplaceAll(string(b), predict.ContainerID, id)
	for name, fact := range facts {
		text = strings.ReplaceAll(text, predict.Mark(name), fact)
	}
	out := &specs.Spec{}
	if err := json.Unmarshal([]byte(text), out); err != nil {
		s.Fatal(err)
	}
	out.Process.Env = append(out.Process.Env, "OTHER_SERVICE_HOST=10.9.9.9", "OTHER_PORT=tcp://10.9.9.9:80")
	out.Linux.MaskedPaths = append(out.Linux.MaskedPaths, "/sys/devices/system/cpu/cpu0/thermal_throttle")
	return out, sources
}

// create makes one container's request, with the copies that come before it.
func (s *shim) create(c *corev1.Container, id string) *agent.CreateContainerRequest {
	s.Helper()
	spec, sources := s.spec(c, id)
	in := request.Input{ID: id, Spec: spec, SharedShm: true, Binds: map[int]request.Bound{}, Disks: map[string]bool{}}
	var devices []*agent.Device
	for i, d := range c.VolumeDevices {
		in.Disks[d.DevicePath] = true
		devices = append(devices, &agent.Device{
			Type: contract.DriverSCSI, VmPath: fmt.Sprint("1:", i), ContainerPath: d.DevicePath,
		})
	}
	var storages []*agent.Storage
	for i, m := range spec.Mounts {
		switch src := sources[i].Source; {
		case src.Copy != nil:
			s.copy(request.GuestCopy(id, m.Destination), src.Copy)
		case src.Volume != nil:
			v := s.volume(src.Volume.Name)
			at, made := s.place(v)
			if made != nil {
				storages = append(storages, made)
			}
			if src.Volume.SubPath != "" {
				below := contract.SubPathsDir + "/" + id + "-" + ident.Hash16(path.Clean(m.Destination))
				storages = append(storages, &agent.Storage{
					Driver: contract.DriverBind, Source: at, Fstype: "bind", MountPoint: below,
					DriverOptions: []string{contract.OptionSubPath + src.Volume.SubPath},
				})
				at = below
			}
			in.Binds[i] = request.Bound{Guest: at}
		}
	}
	out, err := request.Convert(in)
	if err != nil {
		s.Fatal(err)
	}
	root, err := rootfs.Storages(id, attached(s.TB), rootfs.Upper{MiB: 64})
	if err != nil {
		s.Fatal(err)
	}
	return request.Container(request.ContainerInput{
		ID: id, OCI: out.OCI, Terminal: spec.Process.Terminal, Storages: append(storages, root...), Devices: devices,
		SharedPIDs: out.SandboxPidNS,
	})
}

// attached are the layers of the image, the topmost first.
func attached(t testing.TB) (out []rootfs.Attached) {
	t.Helper()
	list := image().Layers
	for i := range list {
		p := layer.Params{Salt: make([]byte, 32), DataBlocks: 8, HashOffset: 8 * 4096}
		for j := range p.RootHash {
			if _, err := fmt.Sscanf(list[len(list)-1-i][2*j:2*j+2], "%02x", &p.RootHash[j]); err != nil {
				t.Fatal(err)
			}
		}
		at := hypervisor.BlockAddress{Driver: contract.DriverSCSI, Source: fmt.Sprint("0:", i)}
		out = append(out, rootfs.Attached{Params: p, Address: at})
	}
	return out
}

// place is where a volume is in the guest, and the agent's mount of it.
func (s *shim) place(v *volumeOf) (at string, made *agent.Storage) {
	opts := []string{"mode=" + v.policy.Mode}
	if v.policy.GID != 0 {
		opts = append(opts, fmt.Sprintf("gid=%d", v.policy.GID))
	}
	switch v.policy.Kind {
	case policy.VolumeMemory:
		at = contract.MemoryDir + "/" + v.policy.Name
		return at, &agent.Storage{
			Driver: contract.DriverEphemeral, Source: "tmpfs", Fstype: "tmpfs", Options: append([]string{"size=50%"}, opts...),
			MountPoint: at, Shared: true,
		}
	case policy.VolumeDisk:
		at = contract.StorageDir + "/ZGlzaw=="
		return at, &agent.Storage{
			Driver: contract.DriverSCSI, Source: "0:9", Fstype: "ext4", Options: opts,
			DriverOptions: []string{contract.OptionEphemeralKey, contract.OptionCreateFS}, MountPoint: at, Shared: true,
		}
	}
	at = path.Join(contract.FilesDir, "sandbox-"+ident.Hash16(v.policy.Name)+"-"+v.policy.Name)
	s.copy(at, v.policy.Content)
	return at, nil
}

// bytesOf are the contents of the files of all pods, by their digests.
func bytesOf(hostname string) map[string]string {
	out := map[string]string{}
	for _, text := range []string{"", "seed", "fast", "\x00\x00\x00", hostname + "\n"} {
		out[digest([]byte(text))] = text
	}
	return out
}

// copy sends the files of a copy, once.
func (s *shim) copy(at string, c *policy.Content) {
	s.Helper()
	if s.copied[at] {
		return
	}
	s.copied[at] = true
	put := func(name, text string) {
		s.must("CopyFile", &agent.CopyFileRequest{
			Path: path.Join(at, name), FileSize: int64(len(text)), FileMode: 0o100644, DirMode: 0o755, Data: []byte(text),
		})
	}
	if c.Rule == policy.ContentUnpinned {
		put(".", "anything")
		return
	}
	for _, f := range c.Files {
		text, ok := bytesOf(s.meta.Hostname)[f.SHA256]
		if !ok {
			s.Errorf("no pod has a file with digest %s", f.SHA256)
		}
		put(f.Path, text)
	}
}

func TestPoliciesAllowTheirPods(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := newShim(t, string(text))
			sandbox := &specs.Spec{Hostname: facts[policy.FieldHostname], Linux: &specs.Linux{Sysctl: s.sysctls()}}
			if h := s.hostname(); h != "" {
				sandbox.Hostname = h
			}
			s.must("CreateSandbox", request.Sandbox(request.SandboxInput{
				ID: predict.SandboxID, Spec: sandbox, SharedShm: true, ShmBytes: 1 << 20,
			}))
			for i := range s.pod.InitContainers {
				c := &s.pod.InitContainers[i]
				id := s.run(c, i)
				if c.RestartPolicy == nil {
					s.engine.Exited(id, 0)
				}
			}
			for i := range s.pod.Containers {
				s.run(&s.pod.Containers[i], 100+i)
			}
		})
	}
}

func newShim(t *testing.T, text string) *shim {
	t.Helper()
	set := parse(t, text)
	images := map[string]Image{}
	for _, ref := range References(set.Workloads[0]) {
		images[ref] = image()
	}
	in := Input{Workload: set.Workloads[0], Objects: set, Images: images}
	p, _, err := Policy(in)
	if err != nil {
		t.Fatal(err)
	}
	g, err := newGenerator(in)
	if err != nil {
		t.Fatal(err)
	}
	return &shim{TB: t, generator: g, engine: engine.New(p), copied: map[string]bool{}}
}

// run creates and starts a container; a change of its request is denied before.
func (s *shim) run(c *corev1.Container, n int) (id string) {
	s.Helper()
	id = fmt.Sprintf("%064x", n+1)
	req := s.create(c, id)
	for what, change := range map[string]func(*agent.CreateContainerRequest){
		"argument": func(r *agent.CreateContainerRequest) { r.OCI.Process.Args = append(r.OCI.Process.Args, "more") },
		"variable": func(r *agent.CreateContainerRequest) { r.OCI.Process.Env = append(r.OCI.Process.Env, "LD_PRELOAD=/x") },
		"mount":    func(r *agent.CreateContainerRequest) { r.OCI.Mounts = r.OCI.Mounts[1:] },
		"user":     func(r *agent.CreateContainerRequest) { r.OCI.Process.User.UID = 0 },
		"layer":    func(r *agent.CreateContainerRequest) { r.Storages = r.Storages[:len(r.Storages)-1] },
	} {
		other, ok := proto.Clone(req).(*agent.CreateContainerRequest)
		if !ok {
			s.Fatal("a clone of another type")
		}
		change(other)
		if err := s.send("CreateContainer", other); err == nil {
			s.Errorf("container %s with another %s is allowed", c.Name, what)
		}
	}
	s.must("CreateContainer", req)
	s.must("StartContainer", &agent.StartContainerRequest{ContainerId: id})
	return id
}
