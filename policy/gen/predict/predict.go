// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package predict says which OCI specification containerd's CRI writes for a container of a pod, from the pod's
// specification and the image alone.
//
// Two programs stand between a pod and its shim. Kubelet computes the environment, users, groups, masked paths and
// mounts from the pod; containerd merges them with the image's configuration and adds its own files and annotations.
// Package predict follows both (Kubernetes 1.37, containerd 2.4) in their order. The result of Container is a
// specification as the shim reads it from config.json, so that plan/volume and plan/request can be run on it.
//
// Facts that only the node knows, such as the pod's address, are marks (Mark) in the texts. Limits of memory, CPU and
// processes are left out: no policy pins them.
package predict

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"

	"github.com/coco-shim/coco/api/contract"
)

// Image is what the prediction depends on of an image.
type Image struct {
	Entrypoint, Cmd, Env []string
	User, WorkingDir     string
	Volumes              []string // paths
	Passwd, Group        []byte
}

// Objects are what environments are made of.
type Objects interface {
	ConfigMap(name string) (corev1.ConfigMap, bool)
	Secret(name string) (corev1.Secret, bool)
}

// Input is all that a specification depends on.
type Input struct {
	Meta      Meta
	Pod       *corev1.PodSpec
	Container *corev1.Container
	Image     Image
	Objects   Objects
	Mounts    []Mount // of the container's volumes, in order
	Disks     []Disk  // of its raw block volumes, in order
}

// Disk is a raw block volume as kubelet passes it.
type Disk struct {
	Path     string // in the container
	ReadOnly bool
}

// Meta has the facts of a pod. Those that are unknown are marks.
type Meta struct {
	Name, Namespace, Hostname string
	Labels, Annotations       map[string]string
	ServiceAccount            string
	// Passed are annotations of the pod that containerd is configured to pass on.
	Passed map[string]string
}

// Mount is a volume's mount as kubelet passes it.
type Mount struct {
	Source, Destination string
	ReadOnly, Recursive bool
	Propagation         string // "": private
}

const (
	defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// Ids are not pinned by a policy: any of the right form do.
	containerID = "c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0"
	sandboxID   = "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a"
	podUID      = "00000000-0000-4000-8000-000000000001"
	engineRoot  = "/var/lib/containerd/io.containerd.grpc.v1.cri"
	kubeletRoot = "/var/lib/kubelet"
)

// Places of the predicted node.
const (
	ContainerID = containerID
	KubeletRoot = kubeletRoot
	EngineRoot  = "/var/lib/containerd"
	SandboxID   = sandboxID
	// PodDir is kubelet's directory of the pod.
	PodDir = kubeletRoot + "/pods/" + podUID
	// VolumesDir and SubPathsDir are the directories of its volumes.
	VolumesDir  = PodDir + "/volumes/kubernetes.io~"
	SubPathsDir = PodDir + "/volume-subpaths"
	// HostsFile is the /etc/hosts that kubelet makes.
	HostsFile = PodDir + "/etc-hosts"
	hostname  = "/etc/hostname"
	// ImageVolumes is where containerd keeps the files of volumes that an image declares.
	ImageVolumes = engineRoot + "/containers/" + containerID + "/volumes"
)

// Container predicts a container's specification.
func Container(in Input) (*specs.Spec, error) {
	if err := unsupported(in); err != nil {
		return nil, err
	}
	args, env, err := in.command()
	if err != nil {
		return nil, err
	}
	user, err := in.user()
	if err != nil {
		return nil, err
	}
	sc := in.Container.SecurityContext
	s := &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{
			Terminal: in.Container.TTY, User: user, Args: args, Env: env, Cwd: in.cwd(),
			Capabilities:    capabilities(sc),
			NoNewPrivileges: sc != nil && sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation,
		},
		Root:        &specs.Root{Path: "rootfs", Readonly: in.readOnlyRoot()},
		Annotations: in.annotations(),
		Linux: &specs.Linux{
			Resources:     &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}}},
			CgroupsPath:   "kubepods-pod.slice:cri-containerd:" + containerID,
			Namespaces:    in.namespaces(),
			MaskedPaths:   in.masked(),
			ReadonlyPaths: in.readOnlyPaths(),
		},
	}
	in.mounts(s)
	in.disks(s)
	return s, nil
}

// disks adds the block devices, with the mode and owners that udev gives disks and the numbers of a disk of the host.
func (in Input) disks(s *specs.Spec) {
	const loop, mode, diskGroup = 7, os.FileMode(0o660), 6
	for i, d := range in.Disks {
		access := "mrw"
		if d.ReadOnly {
			access = "r"
		}
		major, minor, perm, uid, gid := int64(loop), int64(i), mode, uint32(0), uint32(diskGroup)
		s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{
			Path: d.Path, Type: "b", Major: major, Minor: minor, FileMode: &perm, UID: &uid, GID: &gid,
		})
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: "b", Major: &major, Minor: &minor, Access: access,
		})
	}
}

// unsupported refuses settings whose effect on a specification depends on the node, or that a VM cannot give.
func unsupported(in Input) error {
	var errs []error
	bad := func(field, why string) { errs = append(errs, fmt.Errorf("%s: %s", field, why)) }
	p, sc := in.Pod, in.Container.SecurityContext
	for field, set := range map[string]bool{"hostNetwork": p.HostNetwork, "hostPID": p.HostPID, "hostIPC": p.HostIPC} {
		if set {
			bad(field, "a VM cannot give the host's namespace, and the shim refuses the pod")
		}
	}
	if p.HostUsers != nil && !*p.HostUsers {
		bad("hostUsers", "user namespaces are not supported in the VM, and the shim refuses the pod")
	}
	if sc == nil {
		return errors.Join(errs...)
	}
	if sc.Privileged != nil && *sc.Privileged {
		bad("securityContext.privileged", "the specification of such a container lists the devices of its node, so no "+
			"policy can be made of it; add the capabilities that it needs instead")
	}
	if sc.SELinuxOptions != nil || p.SecurityContext != nil && p.SecurityContext.SELinuxOptions != nil {
		bad("securityContext.seLinuxOptions", "labels of the host's kernel do not reach the guest: leave them out")
	}
	return errors.Join(errs...)
}

func (in Input) cwd() string {
	for _, dir := range []string{in.Container.WorkingDir, in.Image.WorkingDir} {
		if dir != "" {
			return dir
		}
	}
	return "/"
}

func (in Input) readOnlyRoot() bool {
	sc := in.Container.SecurityContext
	return sc != nil && sc.ReadOnlyRootFilesystem != nil && *sc.ReadOnlyRootFilesystem
}

// annotations are those that containerd writes, and the pod's that it passes on. Ids are those of the predicted node,
// since package plan/volume finds the pod's directories by them.
func (in Input) annotations() map[string]string {
	out := maps.Clone(in.Meta.Passed)
	if out == nil {
		out = map[string]string{}
	}
	maps.Copy(out, map[string]string{
		contract.CRIContainerType:    "container",
		contract.CRIContainerName:    in.Container.Name,
		contract.CRISandboxID:        sandboxID,
		contract.CRISandboxName:      in.Meta.Name,
		contract.CRISandboxNamespace: in.Meta.Namespace,
		contract.CRISandboxUID:       podUID,
		contract.CRIImageName:        in.Container.Image,
	})
	return out
}

// namespaces are the pod's by path, and the container's own.
func (in Input) namespaces() []specs.LinuxNamespace {
	pid := specs.LinuxNamespace{Type: specs.PIDNamespace}
	if share := in.Pod.ShareProcessNamespace; share != nil && *share {
		pid.Path = "/proc/1/ns/pid"
	}
	return []specs.LinuxNamespace{
		pid,
		{Type: specs.IPCNamespace, Path: "/proc/1/ns/ipc"},
		{Type: specs.UTSNamespace, Path: "/proc/1/ns/uts"},
		{Type: specs.MountNamespace},
		{Type: specs.NetworkNamespace, Path: "/proc/1/ns/net"},
		{Type: specs.CgroupNamespace},
	}
}

// Masked paths. Kubelet passes AlwaysMasked in every release; SometimesMasked came later, by release.
var (
	AlwaysMasked = []string{
		"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
		"/proc/sched_debug", "/proc/scsi", "/sys/firmware",
	}
	SometimesMasked = []string{"/proc/asound", "/proc/interrupts", "/sys/devices/virtual/powercap"}
	readOnlyPaths   = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

func (in Input) unmasked() bool {
	sc := in.Container.SecurityContext
	return sc != nil && sc.ProcMount != nil && *sc.ProcMount == corev1.UnmaskedProcMount
}

func (in Input) masked() []string {
	if in.unmasked() {
		return nil
	}
	return append(slices.Clone(AlwaysMasked), SometimesMasked...)
}

func (in Input) readOnlyPaths() []string {
	if in.unmasked() {
		return nil
	}
	return slices.Clone(readOnlyPaths)
}

// defaultMounts are those of every container of containerd's CRI, without those that it replaces.
var defaultMounts = []specs.Mount{
	{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
	{
		Destination: "/dev", Type: "tmpfs", Source: "tmpfs",
		Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"},
	},
	{
		Destination: "/dev/pts", Type: "devpts", Source: "devpts",
		Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"},
	},
	{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
	{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
	{
		Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
		Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"},
	},
}

// mounts puts together kubelet's mounts, containerd's and those that the image declares, in containerd's order.
func (in Input) mounts(s *specs.Spec) {
	list := slices.Clone(in.Mounts)
	list = append(list, in.kubeletFiles(list)...)
	ro := in.readOnlyRoot()
	sandbox := engineRoot + "/sandboxes/" + sandboxID
	added := []Mount{
		{Source: sandbox + hostname[4:], Destination: hostname, ReadOnly: ro},
		{Source: sandbox + "/resolv.conf", Destination: "/etc/resolv.conf", ReadOnly: ro},
		{Source: sandbox + "/shm", Destination: "/dev/shm"},
	}
	for i, dst := range in.Image.Volumes {
		added = append(added, Mount{Source: fmt.Sprintf("%s/%d", ImageVolumes, i), Destination: path.Join("/", dst)})
	}
	for _, m := range added {
		if !hasDestination(list, m.Destination) {
			list = append(list, m)
		}
	}
	slices.SortStableFunc(list, func(a, b Mount) int { return depth(a.Destination) - depth(b.Destination) })
	for _, m := range defaultMounts {
		covered := hasDestination(list, "/dev") && strings.HasPrefix(m.Destination, "/dev/")
		if !covered && !hasDestination(list, m.Destination) {
			s.Mounts = append(s.Mounts, m)
		}
	}
	for _, m := range list {
		s.Mounts = append(s.Mounts, bind(m, s.Linux))
	}
}

// kubeletFiles are the files that kubelet makes for each container.
func (in Input) kubeletFiles(volumes []Mount) (out []Mount) {
	if !hasDestination(volumes, "/etc/hosts") {
		out = append(out, Mount{Source: HostsFile, Destination: "/etc/hosts"})
	}
	if at := TerminationMessagePath(in.Container); at != "" {
		out = append(out, Mount{Source: PodDir + "/containers/" + in.Container.Name + "/00000001", Destination: at})
	}
	return out
}

// TerminationMessagePath is where a container writes its termination message.
func TerminationMessagePath(c *corev1.Container) string {
	if c.TerminationMessagePath == "" {
		return corev1.TerminationMessagePathDefault
	}
	return c.TerminationMessagePath
}

func hasDestination(list []Mount, dst string) bool {
	return slices.ContainsFunc(list, func(m Mount) bool { return path.Clean(m.Destination) == path.Clean(dst) })
}

func depth(dst string) int { return strings.Count(path.Clean(dst), "/") }

func bind(m Mount, l *specs.Linux) specs.Mount {
	opts := []string{"rbind"}
	switch m.Propagation {
	case string(corev1.MountPropagationBidirectional):
		opts = append(opts, "rshared")
		l.RootfsPropagation = "rshared"
	case string(corev1.MountPropagationHostToContainer):
		opts = append(opts, "rslave")
		if l.RootfsPropagation == "" {
			l.RootfsPropagation = "rslave"
		}
	default:
		opts = append(opts, "rprivate")
	}
	switch {
	case m.ReadOnly && m.Recursive:
		opts = append(opts, "rro")
	case m.ReadOnly:
		opts = append(opts, "ro")
	default:
		opts = append(opts, "rw")
	}
	return specs.Mount{Source: m.Source, Destination: m.Destination, Type: "bind", Options: opts}
}
