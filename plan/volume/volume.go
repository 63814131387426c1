// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package volume decides how each bind mount of a container reaches the guest, when the host shares no file unless it
// is configured to: as a volume that the pod's containers have in common, as one that is kept up to date, as a copy
// for one container, or not at all.
//
// Kubernetes does not describe volumes to a runtime. Only kubelet's paths are known: below one of its root
// directories, which are configured, they are pods/UID/volumes/PLUGIN/NAME and the like, with the UID of this
// very pod. The text of a path elsewhere proves nothing, because any user may have made directories of such names.
// Plan depends on nothing but its input. Package virtcontainers/hostvolume makes the observations that it needs and
// opens the sources that it has chosen.
package volume

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/contract"
)

// Kind says how a bind mount reaches the guest.
type Kind uint8

// The kinds.
const (
	Copied      Kind = iota // a copy for this container alone
	Once                    // a copy that the pod's containers share
	Updated                 // such a copy of a directory of kubelet's, kept up to date
	Memory                  // an emptyDir in memory
	Disk                    // any other emptyDir
	Termination             // a copy of a file that is written back when the container ends
	Direct                  // a file system on a disk of the host that only the guest mounts
	Raw                     // such a disk itself
	Shared                  // a file or directory of the host as it is, live
	Guest                   // a device that the guest has itself
	Image                   // the layers of an image, which the engine has mounted as a volume
)

// String names the kind for logs.
func (k Kind) String() string {
	return [...]string{
		"copy", "copy of the pod", "updated copy", "memory", "disk", "termination message", "direct volume",
		"raw block device", "live share", "device of the guest", "image volume",
	}[k]
}

// HostPath is the configuration's choice for ordinary directories of the host.
type HostPath string

// The choices for such directories.
const (
	ReadOnly HostPath = "read-only" // a copy that the container cannot write to
	Writable HostPath = "writable"  // a copy that it can write to; the host never sees it
	Live     HostPath = "live"      // none: the host's own
	Refused  HostPath = "refused"
)

// Origin says how far the name of a source can be relied on.
type Origin uint8

// The origins.
const (
	Owned    Origin = iota // kubelet's or the engine's own: only root can change the directories that lead to it
	Resolved               // a tenant's choice; of the symbolic links in it only root's are followed
	Named                  // a name on a command line, links included
)

// Bind is one bind mount of a container.
type Bind struct {
	Index       int // in the specification's mounts
	Kind        Kind
	Origin      Origin
	Source      string // of the volume, on the host; the same for all containers of the pod
	Sub         string // the part of the volume that is mounted, a relative path; "": all
	Destination string
	ReadOnly    bool // overrides the specification; of a live share: the share is read-only
	Made        bool // a file that the engine makes for every container
}

// Input has the inputs of a plan.
type Input struct {
	ID     string // of the container
	Spec   *specs.Spec
	Mounts []*mountinfo.Info // the host's, if NeedsMounts
	// Kubelets and Engines are root directories of kubelets and of container engines on this host.
	Kubelets, Engines []Root
	// HostPath is the configuration's choice; TEE says that the guest trusts nothing of the host.
	HostPath HostPath
	TEE      bool
	// LiveBinds says that a bind mount of an engine without pods is the host's own file or directory. Without it such a
	// mount is a copy if it is read-only, and is refused if it is writable.
	LiveBinds bool
	// Direct says whether a volume's path has a record of a CSI driver's .
	Direct func(volume string) (bool, error)
}

// Annotations by which engines that speak CRI tell a container's sandbox, and the UID of its pod.
var (
	sandboxAnnotations = []string{contract.CRISandboxID, contract.CRIOSandboxID}
	uidAnnotations     = []string{contract.CRISandboxUID, contract.PodUID}
)

func annotation(s *specs.Spec, keys []string) string {
	for _, k := range keys {
		if v := s.Annotations[k]; v != "" {
			return v
		}
	}
	return ""
}

// maxLabels bounds the labels that are read.
const maxLabels = 64 << 10

// podUID is the UID of the pod that a container of Kubernetes belongs to. CRI-O has it among the labels of the
// CRI only, which kubelet sets.
func podUID(s *specs.Spec) string {
	uid := annotation(s, uidAnnotations)
	if labels := s.Annotations[contract.CRIOLabels]; uid == "" && len(labels) < maxLabels {
		var m map[string]string
		if json.Unmarshal([]byte(labels), &m) == nil {
			uid = m[contract.PodUID]
		}
	}
	if sandboxID(s) == "" || strings.Contains(uid, "/") || uid == "." || uid == ".." {
		return ""
	}
	return uid
}

func sandboxID(s *specs.Spec) string { return annotation(s, sandboxAnnotations) }

// Directories below kubelet's pods/UID that it mounts into containers.
const (
	volumesDir    = "volumes"
	subPathsDir   = "volume-subpaths"
	containersDir = "containers"
	hostsFile     = "etc-hosts"

	plugins  = "kubernetes.io~"
	emptyDir = plugins + "empty-dir"
)

// atomic are the plugins whose volumes kubelet keeps up to date.
var atomic = []string{plugins + "configmap", plugins + "secret", plugins + "projected", plugins + "downward-api"}

// kubelets splits a path of kubelet's into the pod's directory and what is below it; nil for paths of
// others. Kubelet's root directory may be anywhere.
func kubelets(p string) (pod string, rest []string) {
	parts := strings.Split(p, "/")
	for i := range parts {
		if parts[i] != "pods" || i+2 >= len(parts) {
			continue
		}
		switch parts[i+2] {
		case volumesDir, subPathsDir, containersDir, hostsFile:
			return strings.Join(parts[:i+2], "/"), parts[i+2:]
		}
	}
	return "", nil
}

// kubelet splits a source that is kubelet's into the pod's directory and what is below it; nil for paths of
// others, which includes those of other pods. real is the source without symbolic links in kubelet's root.
func (in Input) kubelet(src string) (pod string, rest []string, real string, err error) {
	uid := podUID(in.Spec)
	if uid == "" {
		return "", nil, src, nil
	}
	for _, r := range in.Kubelets {
		rel, ok := r.below(src)
		if !ok {
			continue
		}
		if parts := strings.Split(rel, "/"); len(parts) >= 3 && parts[0] == "pods" && parts[1] == uid {
			switch parts[2] {
			case volumesDir, subPathsDir, containersDir, hostsFile:
				return path.Join(r.Real, "pods", uid), parts[2:], path.Join(r.Real, rel), nil
			}
		}
		return "", nil, src, nil
	}
	if pod, _ := kubelets(src); pod != "" && path.Base(pod) == uid {
		return "", nil, src, fmt.Errorf("the source %s looks like a volume of this pod in the root directory of a kubelet, "+
			"but %s is not known as one: add it to runtime.kubelet_dirs: %w",
			src, path.Dir(path.Dir(pod)), errdefs.ErrFailedPrecondition)
	}
	return "", nil, src, nil
}

// engineFiles are mounted by every engine, from directories of its own.
var engineFiles = []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", shmPath, "/run/.containerenv"}

const shmPath = "/dev/shm"

const hugetlbfs = "hugetlbfs"

// NeedsMounts says whether the plan of a specification depends on the host's mount table.
func NeedsMounts(s *specs.Spec) bool {
	return slices.ContainsFunc(s.Mounts, func(m specs.Mount) bool {
		_, rest := kubelets(m.Source)
		volume := len(rest) >= 2 && rest[0] != containersDir || strings.Contains(m.Source, "/"+imageVolumes+"/")
		return isBind(m) && volume
	})
}

// Plan returns a Bind for each bind mount of a specification. It leaves out other mounts, and mounts of /dev/shm that
// the pod's own replaces.
func Plan(in Input) ([]Bind, error) {
	var out []Bind
	for i, m := range in.Spec.Mounts {
		if !isBind(m) || !path.IsAbs(m.Source) {
			continue
		}
		b, err := in.one(m)
		if err != nil {
			return nil, fmt.Errorf("mounts[%d] (%s): %w", i, m.Destination, err)
		}
		b.Index, b.Destination = i, m.Destination
		out = append(out, b)
	}
	return out, nil
}

func isBind(m specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

func readOnly(m specs.Mount) bool {
	ro := false
	for _, o := range m.Options {
		switch o {
		case "ro", "rro":
			ro = true
		case "rw":
			ro = false
		}
	}
	return ro
}

func (in Input) one(m specs.Mount) (Bind, error) {
	pod, rest, src, err := in.kubelet(path.Clean(m.Source))
	if err != nil {
		return Bind{}, err
	}
	b := Bind{Source: src}
	person := sandboxID(in.Spec) == ""
	switch {
	case src == shmPath && path.Clean(m.Destination) == shmPath:
		// The sandbox API's word for the pod's own, which takes its place: nothing of the host is looked at.
	case slices.Contains(guestDevices, src):
		b.Kind = Guest
	case len(rest) >= 3 && rest[0] == volumesDir && rest[1] == emptyDir:
		return in.emptyDir(path.Join(pod, volumesDir, emptyDir, rest[2]), path.Join(rest[3:]...))
	case len(rest) >= 3 && rest[0] == volumesDir && slices.Contains(atomic, rest[1]):
		if len(rest) == 3 {
			b.Kind = Updated
		}
	case len(rest) == 4 && rest[0] == subPathsDir:
		return in.subPath(m, src, pod, rest[1])
	case len(rest) == 3 && rest[0] == containersDir:
		b.Kind = Termination
	case len(rest) == 1 && rest[0] == hostsFile:
	case len(rest) >= 3 && rest[0] == volumesDir:
		return in.persistent(m, src)
	case person:
		return in.named(m, src)
	case in.engines(&b):
	default:
		return in.hostPath(m, src, Resolved)
	}
	return b, nil
}

// named is a mount of an engine for people (ctr, nerdctl, Docker, Podman): a source that somebody named on the command
// line, a volume of the engine, or a file that the engine makes for every container. Volumes keep data, and people
// expect the host's own files, so a copy that a container can write to is never made of them.
func (in Input) named(m specs.Mount, src string) (Bind, error) {
	dest := path.Clean(m.Destination)
	made := slices.Contains(engineFiles, dest) && slices.Contains(strings.Split(src, "/"), in.ID)
	switch live := in.LiveBinds && !in.TEE; {
	case made:
		return Bind{Source: src, Origin: Named, Made: true}, nil
	case live:
		return Bind{Kind: Shared, Source: src, Origin: Named, ReadOnly: readOnly(m)}, nil
	case readOnly(m):
		return Bind{Source: src, Origin: Named}, nil
	case in.TEE:
		return Bind{}, fmt.Errorf("%s is on the host, unencrypted, and a confidential guest keeps no data there: mount it "+
			"read-only to get a copy, or use a tmpfs or the container's own file system: %w", store(src),
			errdefs.ErrInvalidArgument)
	}
	return Bind{}, fmt.Errorf("%s would be a copy, and what the container writes to it would be lost: mount it "+
		"read-only, or share it live (runtime.binds = \"live\", with QEMU): %w", store(src), errdefs.ErrInvalidArgument)
}

// store names a source for an error: engines keep the volume NAME in volumes/NAME/_data.
func store(src string) string {
	dir, base := path.Split(src)
	name := path.Base(dir)
	if base == "_data" && name != "." && name != "/" {
		return "the volume " + name + " (" + src + ")"
	}
	return "the source " + src
}

// guestDevices are devices that every guest has and that are the same everywhere. A bind mount of one shows the
// guest's own: nothing of the host is looked at.
var guestDevices = []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"}

// idDepth is how deep below an engine's root directory the directory of a container or sandbox may be:
// containerd's are io.containerd.grpc.v1.cri/sandboxes/ID, nerdctl's HASH/containers/NAMESPACE/ID.
const idDepth = 4

// engines says whether a source is the engine's own: in a directory of its that belongs to this container or its
// sandbox, where the files are that it makes for every container, and volumes that an image declares.
func (in Input) engines(b *Bind) bool {
	for _, r := range in.Engines {
		rel, ok := r.below(b.Source)
		if !ok {
			continue
		}
		parts := strings.Split(rel, "/")
		for _, part := range parts[:min(idDepth, len(parts)-1)] {
			if part == in.ID || part == sandboxID(in.Spec) {
				b.Source = path.Join(r.Real, rel)
				in.image(b, r, parts)
				return true
			}
		}
	}
	return false
}

const imageVolumes = "image-volumes"

// image finds the volumes that are images: containerd mounts the layers at image-volumes/SANDBOX/DIGEST, which the
// guest gets as it gets those of a root file system. One that is no overlay is copied.
func (in Input) image(b *Bind, r Root, parts []string) {
	i := slices.Index(parts, imageVolumes)
	if i < 0 || len(parts) < i+3 || parts[i+1] != sandboxID(in.Spec) {
		return
	}
	point := path.Join(r.Real, path.Join(parts[:i+3]...))
	if at := mountOf(in.Mounts, point); at != nil && at.Mountpoint == point && at.FSType == "overlay" {
		b.Kind, b.Source, b.Sub, b.ReadOnly = Image, point, path.Join(parts[i+3:]...), true
	}
}

// emptyDir is a volume of the guest's own. kubelet mounts what is to be memory.
func (in Input) emptyDir(src, sub string) (Bind, error) {
	b := Bind{Kind: Disk, Source: src, Sub: sub}
	switch at := mountOf(in.Mounts, src); {
	case at == nil || at.Mountpoint != src:
	case at.FSType == "tmpfs":
		b.Kind = Memory
	case at.FSType == hugetlbfs:
		return b, fmt.Errorf("the emptyDir %s is made of huge pages, which the VM has not; use medium Memory: %w",
			path.Base(src), errdefs.ErrInvalidArgument)
	}
	return b, nil
}

// subPath finds the volume that a sub path belongs to. kubelet mounts sub paths to a directory of
// their own; only the mount table knows what is behind it.
func (in Input) subPath(m specs.Mount, src, pod, name string) (Bind, error) {
	volume := path.Join(pod, volumesDir, emptyDir, name)
	at := mountOf(in.Mounts, src)
	if at == nil || at.Mountpoint != src {
		return Bind{}, fmt.Errorf("the sub path %s is not mounted, so there is no telling which volume it belongs to: %w",
			src, errdefs.ErrFailedPrecondition)
	}
	if sub, ok := within(at, mountOf(in.Mounts, volume), volume); ok {
		return in.emptyDir(volume, sub)
	}
	for _, p := range atomic {
		v := path.Join(pod, volumesDir, p, name)
		if _, ok := within(at, mountOf(in.Mounts, v), v); ok {
			return Bind{Kind: Copied, Source: src}, nil // Kubernetes does not update a sub path either
		}
	}
	if in.inPlugin(at, pod, name) {
		return in.persistent(m, src)
	}
	return in.hostPath(m, src, Owned)
}

// inPlugin says whether a mount shows something below the pod's volumes directory.
func (in Input) inPlugin(at *mountinfo.Info, pod, name string) bool {
	for _, o := range in.Mounts {
		rel, ok := strings.CutPrefix(o.Mountpoint, pod+"/"+volumesDir+"/")
		if parts := strings.Split(rel, "/"); !ok || len(parts) < 2 || parts[1] != name {
			continue
		}
		if _, ok := within(at, o, o.Mountpoint); ok {
			return true
		}
	}
	return false
}

// within returns the path of what is mounted at sub relative to dir, a directory in the mount at.
func within(sub, at *mountinfo.Info, dir string) (string, bool) {
	if sub == nil || at == nil || sub.Major != at.Major || sub.Minor != at.Minor {
		return "", false
	}
	base := path.Join(at.Root, strings.TrimPrefix(dir, at.Mountpoint))
	root := strings.TrimSuffix(sub.Root, "//deleted")
	if root == base {
		return "", true
	}
	rel, ok := strings.CutPrefix(root, strings.TrimSuffix(base, "/")+"/")
	return rel, ok
}

// mountOf returns the mount that a path is in. The last one of several at a place covers the others.
func mountOf(mounts []*mountinfo.Info, p string) *mountinfo.Info {
	var best *mountinfo.Info
	for _, m := range mounts {
		if m.Mountpoint != p && m.Mountpoint != "/" && !strings.HasPrefix(p, m.Mountpoint+"/") {
			continue
		}
		if best == nil || len(m.Mountpoint) >= len(best.Mountpoint) {
			best = m
		}
	}
	return best
}

// persistent is a volume of a plugin that keeps data, mounted on the host. A copy of it that can be
// written to would lose what is written.
func (in Input) persistent(m specs.Mount, src string) (Bind, error) {
	if in.Direct != nil {
		if ok, err := in.Direct(src); ok || err != nil {
			return Bind{Kind: Direct, Source: src}, err
		}
	}
	if readOnly(m) || in.HostPath == Live {
		return in.hostPath(m, src, Owned)
	}
	return Bind{}, fmt.Errorf("the volume %s is mounted on the host, and a VM cannot write to a file system that the "+
		"host has mounted: "+
		"give it to the pod as a raw block device (volumeDevices), let the CSI driver hand it over unmounted (direct "+
		"volume), mount it read-only, or outside a TEE share it live (runtime.host_path): %w", src,
		errdefs.ErrInvalidArgument)
}

// hostPath is a file or directory of the host that has no owner among the pod's volumes.
func (in Input) hostPath(m specs.Mount, src string, origin Origin) (Bind, error) {
	switch {
	case in.TEE:
		return Bind{}, fmt.Errorf("the source %s is the host's, and a confidential guest takes no files of the host into a "+
			"container: use a volume of the pod: %w", src, errdefs.ErrInvalidArgument)
	case in.HostPath == Refused:
		return Bind{}, fmt.Errorf("the source %s is the host's, which the configuration refuses (runtime.host_path): %w", src,
			errdefs.ErrInvalidArgument)
	}
	if in.HostPath == Live {
		return Bind{Kind: Shared, Origin: origin, Source: src, ReadOnly: readOnly(m)}, nil
	}
	return Bind{Kind: Once, Origin: origin, Source: src, ReadOnly: in.HostPath != Writable}, nil
}
